"""A rank of the scaling benchmark: times what its stdin asks for, one JSON object a line.

DistributedDataParallel on Gloo with one thread a rank, as `strategy=mpi` and `strategy=ddp` use it
on a CPU, on one batch that stays in memory: no data loading, no logging.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from xray_lightning.models.backbones import build_backbone
from xray_lightning.training.strategies import die_with_parent

TIMEOUT = timedelta(seconds=300)
FINDINGS = 14
Shape = tuple[int, int]  # images a step, their side in pixels


def thin() -> nn.Module:
    """Five convolutions, 1 M parameters in all: a slow link sends its gradients in seconds."""
    layers: list[nn.Module] = []
    for channels, out in ((1, 32), (32, 64), (64, 128), (128, 256), (256, 256)):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, FINDINGS))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = thin() if name == "thin" else build_backbone(arch=name, findings=FINDINGS)
    return made.to(memory_format=torch.channels_last)


class Rank:
    """Builds each model once, and times it."""

    def __init__(self, *, size: int) -> None:
        self._size = size
        self._models: dict[tuple[str, str | None], Any] = {}
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._batches: dict[Shape, tuple[Tensor, Tensor]] = {}

    def answer(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Seconds of each repeat of what is asked for, by its kind.

        Args:
            ask: `model`, `batch` (images a rank), `side` (of the images), `repeats`, and `kinds`
                out of `step` (as DDP trains), `compute` (without its reduction) and `reduce` (the
                reduction of the same buckets alone). `alone`: without DDP and other ranks;
                `compression`: `bf16` or None; `threads`: CPU threads.
        """
        torch.set_num_threads(ask.get("threads", 1))
        model = self._model(ask["model"], ask.get("compression"), alone=ask.get("alone", False))
        shape = (int(ask["batch"]), int(ask["side"]))
        told: dict[str, Any] = {"bytes": self._bytes(model)}
        for kind in ask["kinds"]:
            once = self._step(model, shape)
            if kind == "reduce":
                half = ask.get("compression") == "bf16"
                once = self._reduction(model, torch.bfloat16 if half else torch.float32)
            apart = (
                model.no_sync if kind == "compute" and hasattr(model, "no_sync") else nullcontext
            )
            with apart():
                told[kind] = self._timed(once, ask["repeats"], together=not ask.get("alone"))
        told["buckets"] = buckets(model) if isinstance(model, DistributedDataParallel) else []
        return told

    def _model(self, name: str, compression: str | None, *, alone: bool) -> Any:
        key = (name + (" alone" if alone else ""), compression)
        if key not in self._models:
            built: Any = build(name)
            if not alone:
                built = DistributedDataParallel(built, gradient_as_bucket_view=True)
                if compression == "bf16":
                    built.register_comm_hook(None, bf16_compress_hook)
            self._models[key] = built
            self._optimizers[id(built)] = torch.optim.Adam(built.parameters(), fused=True)
        return self._models[key]

    def _bytes(self, model: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in model.parameters())

    def _step(self, model: Any, shape: Shape) -> Callable[[], None]:
        if shape not in self._batches:
            images = torch.randn(shape[0], 1, shape[1], shape[1])
            targets = torch.randint(0, 2, (shape[0], FINDINGS)).float()
            self._batches[shape] = images.contiguous(memory_format=torch.channels_last), targets
        images, targets = self._batches[shape]
        loss, optimizer = nn.BCEWithLogitsLoss(), self._optimizers[id(model)]

        def once() -> None:
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            optimizer.step()

        return once

    def _reduction(self, model: Any, kind: torch.dtype) -> Callable[[], None]:
        """A function that all-reduces all buckets asynchronously, in DDP's order and sizes."""
        parts = [torch.zeros(size // 4, dtype=kind) for size in buckets(model)]

        def once() -> None:
            for work in [dist.all_reduce(part, async_op=True) for part in parts]:
                work.wait()
            for part in parts:
                part.div_(self._size)

        return once

    def _timed(self, once: Callable[[], None], repeats: int, *, together: bool) -> list[float]:
        seconds = []
        if together:
            dist.barrier()
        for _ in range(repeats):
            start = perf_counter()
            once()
            seconds.append(perf_counter() - start)
        return seconds


def buckets(model: DistributedDataParallel) -> list[int]:
    """Bytes of each bucket that DDP reduces, in the order in which they become ready."""
    facts: Any = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    text = str(facts.get("rebuilt_bucket_sizes") or facts["bucket_sizes"])
    return [int(size) for size in text.split(",") if size.strip()]


def main() -> None:
    rank, size, address, port = sys.argv[1:]
    die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=int(rank),
        world_size=int(size),
        timeout=TIMEOUT,
    )
    try:
        own = Rank(size=int(size))
        for line in sys.stdin:
            sys.stdout.write(json.dumps(own.answer(json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
