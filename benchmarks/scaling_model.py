"""Cost model of a data-parallel step, fitted to measured steps and extrapolated to GPU clusters.

    compute(b)  = c + a b                        b images a rank; c and a for each network
    reduce(B)   = L + f B max(1/W, s/w)          B bytes of gradients, w the link's bytes/s
    step        = compute + reduce - o min(reduce, compute)

with f = 2 (n - 1) / n for a ring all-reduce over n ranks (Patarasuk and Yuan 2009), L its latency,
W the bytes/s that the ranks themselves process, s the bytes on a link for each byte of gradients
(with headers and acknowledgements), and o the share of the reduction that overlaps with the
computation. A ring processes one part while it sends another, so that the larger of 1/W and s/w
counts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

MBIT = 1e6 / 8  # bytes/s


@dataclass(frozen=True)
class Point:
    """One measured setting: medians of its repeats, in seconds.

    Attributes:
        link: speed in Mbit/s; None if it is not limited.
        seen: whether the fit uses the point, or it is held out.
    """

    network: str
    ranks: int
    batch: int  # images a rank
    bytes: float  # of the gradients that are reduced; 0 for one rank
    link: float | None
    compute: float
    reduce: float = 0.0
    step: float = 0.0
    seen: bool = True


@dataclass(frozen=True)
class Fit:
    """The model's constants.

    Attributes:
        compute: for each network, seconds a step and seconds an image.
        latency: seconds of a reduction of zero bytes.
        rank_bandwidth: bytes/s of a reduction that the link does not limit.
        overhead: bytes on a link for each byte of gradients.
        overlap: share of the reduction that overlaps with the computation, 0 to 1.
    """

    compute: dict[str, tuple[float, float]]
    latency: float
    rank_bandwidth: float
    overhead: float
    overlap: float

    def computing(self, network: str, batch: float) -> float:
        step, image = self.compute[network]
        return step + image * batch

    def reducing(self, size: float, *, ranks: int, link: float | None) -> float:
        wire = self.overhead / (link * MBIT) if link else 0.0
        return self.latency + ring(ranks) * size * max(1 / self.rank_bandwidth, wire)

    def step(self, point: Point) -> float:
        """Predicted seconds of a step of this setting, from its sizes alone."""
        compute = self.computing(point.network, point.batch)
        if point.ranks == 1:
            return compute
        reduce = self.reducing(point.bytes, ranks=point.ranks, link=point.link)
        return compute + reduce - self.overlap * min(reduce, compute)


def ring(ranks: int) -> float:
    """How many times the buffer's size each rank sends in a ring all-reduce."""
    return 2 * (ranks - 1) / ranks


def fit(points: Sequence[Point]) -> Fit:
    """Fit by least squares of relative errors to the `seen` points of several ranks."""
    seen = [point for point in points if point.seen and point.ranks > 1]
    compute = {}
    for name in {point.network for point in seen}:
        own = [point for point in seen if point.network == name]
        rows = [[1.0, point.batch] for point in own]
        constant, image = _relative_least_squares(rows, [point.compute for point in own])
        compute[name] = (constant, image)
    latency, inverse, overhead = _reduction_constants(seen)
    constants = Fit(compute, max(0.0, latency), 1 / inverse, overhead, 0.0)
    return Fit(**{**asdict(constants), "compute": compute, "overlap": _overlap(constants, seen)})


def _reduction_constants(seen: Sequence[Point]) -> list[float]:
    """Latency, 1 / `rank_bandwidth`, and bytes on a link for each byte of gradients."""
    on_link = [point.link is not None for point in seen]
    for _ in range(len(seen)):  # until it no longer changes whether ranks or link limit each point
        rows = []
        for point, limited in zip(seen, on_link, strict=True):
            sent = ring(point.ranks) * point.bytes
            wire = sent / (point.link * MBIT) if point.link and limited else 0.0
            rows.append([1.0, 0.0 if limited else sent, wire])
        found = _relative_least_squares(rows, [point.reduce for point in seen])
        now = [p.link is not None and found[2] / (p.link * MBIT) > found[1] for p in seen]
        if now == on_link:
            break
        on_link = now
    return [max(0.0, found[0]), max(found[1], 1e-15), found[2]]


def _relative_least_squares(
    rows: Sequence[Sequence[float]], values: Sequence[float]
) -> list[float]:
    weights = 1 / np.asarray(values)
    scaled = np.asarray(rows) * weights[:, None]
    size = np.abs(scaled).max(axis=0)
    size[size == 0] = 1.0
    found = np.linalg.lstsq(scaled / size, np.ones(len(values)), rcond=None)[0] / size
    return [float(value) for value in found]


def _overlap(constants: Fit, seen: Iterable[Point]) -> float:
    """The overlap that fits the seen steps best."""
    hidden, most = [], []
    for point in seen:
        compute = constants.computing(point.network, point.batch)
        reduce = constants.reducing(point.bytes, ranks=point.ranks, link=point.link)
        most.append(min(reduce, compute) / point.step)
        hidden.append((compute + reduce - point.step) / point.step)
    share = float(np.dot(most, hidden) / np.dot(most, most))
    return min(1.0, max(0.0, share))


def errors(fitted: Fit, points: Iterable[Point]) -> list[float]:
    """Relative errors of predicted steps, in the points' order."""
    return [fitted.step(point) / point.step - 1 for point in points]


# -- on paper --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Assumptions about GPUs and what connects them; nothing here was measured by this project.

    Attributes:
        images_per_second: of one GPU, published.
        inside: bytes/s of a GPU to its neighbours in a node, as achieved by an all-reduce.
        between: bytes/s of a GPU's share of its node's network, likewise.
        hop: seconds of latency of one ring message between nodes.
        backward: share of a step's computation that a reduction can overlap with.
    """

    name: str
    images_per_second: float
    inside: float
    between: float
    gpus_a_node: int = 8
    hop: float = 10e-6
    backward: float = 2 / 3


# ResNet50, 224 px; docs/scaling.md has the references of the throughputs. A node has eight GPUs.
# An InfiniBand adapter has 200 Gbit/s (A100) or 400 Gbit/s (H100), of which 80 % is assumed.
CLUSTERS = (
    Cluster("A100, eight adapters a node", 2711, inside=0.8 * 300e9, between=0.8 * 25e9),
    Cluster("A100, one adapter a node", 2711, inside=0.8 * 300e9, between=0.8 * 25e9 / 8),
    Cluster("H100, eight adapters a node", 7500, inside=0.8 * 450e9, between=0.8 * 50e9),
)
RESNET50 = 25.6e6  # parameters
GOYAL_BATCH = 8192  # largest at which ResNet50 kept its accuracy on ImageNet (Goyal et al. 2017)
BASE_BATCH, BASE_RATE = 256, 0.1  # of the same paper
DATASETS = {"ChestX-ray14": 86_524, "a million images": 1_000_000}
EPOCHS = 25
GPU_COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


def reduction(cluster: Cluster, gpus: int, *, size: float) -> float:
    """Seconds of a hierarchical all-reduce: a ring inside each node, then rings over the nodes, one
    for each GPU of a node with that GPU's share of the bytes (as NCCL, one adapter a GPU)."""
    inside = min(gpus, cluster.gpus_a_node)
    nodes = math.ceil(gpus / cluster.gpus_a_node)
    seconds = ring(inside) * size / cluster.inside
    if nodes > 1:
        seconds += ring(nodes) * size / inside / cluster.between
        seconds += 2 * (nodes - 1) * cluster.hop
    return seconds


def on_paper(
    cluster: Cluster, gpus: int, *, batch: int, value_bytes: int = 4, parameters: float = RESNET50
) -> dict[str, float]:
    """Estimated step of `gpus` GPUs with `batch` images each.

    Returns:
        Seconds of `compute` and `reduce`, and the efficiency if nothing overlaps (`worst`) and if
        the reduction overlaps with the backward pass (`best`).
    """
    compute = batch / cluster.images_per_second
    reduce = reduction(cluster, gpus, size=parameters * value_bytes)
    exposed = max(0.0, reduce - cluster.backward * compute)
    return {
        "gpus": gpus,
        "batch": batch,
        "global_batch": gpus * batch,
        "compute": compute,
        "reduce": reduce,
        "worst": compute / (compute + reduce),
        "best": compute / (compute + exposed),
    }


def training_hours(
    cluster: Cluster, gpus: int, *, batch: int, images: int, epochs: int = EPOCHS
) -> dict[str, float]:
    """Estimated steps and hours of a training in which no reduction overlaps with computation."""
    step = on_paper(cluster, gpus, batch=batch)
    steps = math.ceil(images / (gpus * batch))
    seconds = epochs * steps * (step["compute"] + step["reduce"])
    return {"steps_an_epoch": steps, "steps": epochs * steps, "hours": seconds / 3600}


def scaled_rate(global_batch: int) -> float:
    """Learning rate of SGD by the linear scaling rule (Goyal et al. 2017): 0.1 at 256 images."""
    return BASE_RATE * global_batch / BASE_BATCH


def most_gpus(batch: int) -> int:
    """Number of GPUs with `batch` images each in a global batch of `GOYAL_BATCH`."""
    return GOYAL_BATCH // batch


def points_of(visits: Sequence[Mapping[str, Any]]) -> list[Point]:
    """One point for each measured setting: medians over the repeats of all its rounds.

    The time of a repeat is that of its slowest rank.
    """
    settings: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for visit in visits:
        key = tuple(visit[name] for name in ("network", "ranks", "batch", "link", "compression"))
        settings.setdefault(key, []).append(visit)
    points = []
    for (network, ranks, batch, link, compression), own in settings.items():
        seconds = {
            kind: median(time for visit in own for time in visit["seconds"][kind])
            for kind in own[0]["seconds"]
        }
        size = 0.0 if ranks == 1 else own[0]["bytes"] / (2 if compression == "bf16" else 1)
        compute = seconds["compute"]
        points.append(
            Point(
                network,
                ranks,
                batch,
                size,
                link,
                compute,
                seconds.get("reduce", 0.0),
                seconds.get("step", compute),
                seen=bool(own[0]["seen"]),
            )
        )
    return points
