"""The arms that are bare loops: the others' loaders before a step, and the step alone."""

import resource
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from xray_lightning.benchmark.arms import COMPUTE_ONLY, PAPER_LOOP
from xray_lightning.benchmark.loaders import LOADERS
from xray_lightning.benchmark.step import Step
from xray_lightning.benchmark.workload import CHECKED_STEPS, Workload, training_side
from xray_lightning.data.transforms import Normalize
from xray_lightning.training.throughput import WARMUP_STEPS

AHEAD = 64  # batches that the loaders go on with behind the window, as in a long epoch
TRIAL_STEPS = 4

Placed = Iterator[tuple[Tensor, Tensor]]


def check(workload: Workload, arm: str) -> list[float]:
    """The losses of the first steps, in float32."""
    step = Step(workload, precision="32-true", own=arm != PAPER_LOOP)
    batches = _batches(workload, arm, step, steps=CHECKED_STEPS)
    return [float(step(*batch)) for batch in islice(batches, CHECKED_STEPS)]


def measure(
    workload: Workload, arm: str, *, precision: str, steps: int, warmup: int = WARMUP_STEPS
) -> dict[str, Any]:
    """Time the steps after the warm-up as one window, the device's work waited for at both ends.

    The window ends early where it has taken `workload.most_seconds`.
    """
    step = Step(workload, precision=precision, own=arm != PAPER_LOOP)
    if arm == COMPUTE_ONLY:
        batches: Placed = _one_batch(workload, step)
    else:
        batches = _batches(workload, arm, step, steps=warmup + steps + AHEAD)
    for _ in range(warmup):
        step(*next(batches))
    step.synchronize()
    start, waited, done = perf_counter(), 0.0, 0
    loss = torch.zeros(())
    while done < steps and perf_counter() - start < workload.most_seconds:
        asked = perf_counter()
        batch = next(batches)
        waited += perf_counter() - asked
        loss = step(*batch)
        done += 1
    step.synchronize()
    seconds = perf_counter() - start
    return {
        "images_per_second": done * workload.batch_size / seconds,
        "data_wait_fraction": waited / seconds,
        "timed_steps": done,
        "last_loss": float(loss),
        "peak_memory_bytes": peak_memory(workload.accelerator),
    }


def trial(workload: Workload, *, precision: str) -> float:
    """Images a second of `paper_workers` over a few steps, to choose the number of workers by."""
    found = measure(workload, "paper_workers", precision=precision, steps=TRIAL_STEPS, warmup=3)
    return float(found["images_per_second"])


def _batches(workload: Workload, arm: str, step: Step, *, steps: int) -> Placed:
    side = training_side(workload)
    if arm == COMPUTE_ONLY:
        yield from _decoded_ahead(workload, step, steps=steps)
        return
    for images, targets in LOADERS[arm](workload, side, workload.order(steps=steps)):
        yield step.place(images, targets, standardised=arm != "timm")


def _decoded_ahead(workload: Workload, step: Step, *, steps: int) -> Placed:
    """The order's batches as our own decoder and normalisation make them."""
    data = workload.data_module(cache_dir=Path(), cache="off")
    data.setup()
    for batch in islice(data.train_dataloader(), steps):
        yield step.place(Normalize()(batch.images), batch.targets, standardised=True)


def _one_batch(workload: Workload, step: Step) -> Placed:
    batch = next(_decoded_ahead(workload, step, steps=1))
    while True:
        yield batch


def peak_memory(accelerator: str) -> dict[str, int | None]:
    """Bytes: this process's peak and its workers' share at this moment; the device's peak."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    device = torch.cuda.max_memory_allocated() if accelerator == "cuda" else None
    return {"host": own + sum(map(_share, _children())), "device": device}


def _children() -> list[int]:
    listed = Path("/proc/self/task").glob("*/children")
    return [int(number) for path in listed for number in path.read_text().split()]


def _share(process: int) -> int:
    """The process's proportional set size: pages that several share are split among them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
