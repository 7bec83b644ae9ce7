"""One arm of the benchmark in a process of its own: a bare training loop, or a run of train.py."""

import argparse
import json
import logging
import os
import resource
import runpy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks.arms import (
    ARMS,
    CHECKED_STEPS,
    COMPUTE_ONLY,
    LEARNING_RATE,
    PAPER_LOOP,
    Workload,
    training_side,
)
from benchmarks.loaders import LOADERS
from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import InterruptedRunError, RunFailedError, XrayError, one_line
from xray_lightning.files import write_atomically
from xray_lightning.hardware import Speed
from xray_lightning.models.backbones import build_backbone
from xray_lightning.runs.results_json import FILE_NAME
from xray_lightning.training.callbacks import WARMUP_STEPS
from xray_lightning.training.launch import quoted
from xray_lightning.training.strategies import die_with_parent

EAGER_STEPS = 3  # before a CUDA graph is captured, for cuDNN's search and the optimizer's state


class Step:
    """Forward, loss, backward and optimizer on one batch.

    Args:
        precision: `32-true`, or `bf16-mixed` for autocast.
        own: True for this project's step: one-channel backbone, channels-last, fused Adam,
            `Speed`'s process-wide switches, on CUDA replayed as a graph. False for the paper's:
            torchvision's three-channel model, NCHW, plain Adam, torch's defaults.
    """

    def __init__(self, workload: Workload, *, precision: str, own: bool) -> None:
        cuda = workload.accelerator == "cuda"
        self.device = torch.device(workload.accelerator)
        speed = Speed(threads=workload.threads)
        if own:
            speed.prepare(accelerator=workload.accelerator, local_ranks=1)
        elif workload.threads is not None:
            torch.set_num_threads(workload.threads)
        self._own = own
        self._precision = precision
        self._graphed = own and cuda
        layout = torch.channels_last if own else torch.contiguous_format
        self._model = build_backbone(
            arch=workload.arch, in_channels=1 if own else 3, weights_path=workload.weights
        )
        self._model.to(memory_format=layout).to(self.device)
        self._optimizer = torch.optim.Adam(
            self._model.parameters(),
            lr=LEARNING_RATE,
            fused=own or None,  # None is torch's default
            capturable=self._graphed,
        )
        self._criterion = nn.BCEWithLogitsLoss()
        self._normalize = Normalize().to(self.device)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._static: tuple[Tensor, Tensor, Tensor] | None = None  # images, targets, loss

    def place(
        self, images: Tensor, targets: Tensor, *, standardised: bool
    ) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, standardised and in the model's memory layout.

        Args:
            images: (B, C, S, S), float32, already standardised or from 0 to 1.
            targets: (B, 14).
        """
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, torch.float32, non_blocking=True)
        if not standardised:
            images = self._normalize(images * 255)
        if self._own:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, targets

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Train on a placed batch; returns its loss, a scalar on the device."""
        self._calls += 1
        if not self._graphed:
            return self._eager(images, targets)
        if self._calls <= EAGER_STEPS:
            return self._aside(images, targets)
        if self._graph is None or self._static is None:
            return self._capture(images, targets)
        for kept, new in zip(self._static[:2], (images, targets), strict=True):
            if new is not kept:
                kept.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._static[2]

    def _eager(self, images: Tensor, targets: Tensor) -> Tensor:
        mixed = self._precision == "bf16-mixed"
        # A graph must not depend on casts that an earlier step has cached.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=mixed, cache_enabled=not self._graphed
        ):
            logits = self._model(images)
        loss: Tensor = self._criterion(logits.float(), targets)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def _aside(self, images: Tensor, targets: Tensor) -> Tensor:
        """A step on a side stream, as PyTorch wants the steps before a capture."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._eager(images, targets)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, images: Tensor, targets: Tensor) -> Tensor:
        self._graph = torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)
        # thread_local: a loader's thread that pins the next batch must not fail the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loss = self._eager(images, targets)
        self._static = (images, targets, loss)
        self._graph.replay()  # capturing has only recorded the step
        return loss

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


AHEAD = 64  # batches after the window, so that loaders work to its end as in a long epoch
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
    """Time the steps after the warm-up as one window, with the device synchronised at both ends.

    The window ends early once it has taken `workload.most_seconds`.
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
    """Batches in training order, decoded and normalised by this project's own code."""
    data = workload.data_module(cache_dir=Path(), cache="off")
    data.setup()
    for batch in islice(data.train_dataloader(), steps):
        yield step.place(Normalize()(batch.images), batch.targets, standardised=True)


def _one_batch(workload: Workload, step: Step) -> Placed:
    batch = next(_decoded_ahead(workload, step, steps=1))
    while True:
        yield batch


def peak_memory(accelerator: str) -> dict[str, int | None]:
    """Bytes: `host`, this process's peak RSS plus its workers' current PSS; `device`, its peak."""
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


TRAIN_PY = Path(__file__).resolve().parent.parent / "train.py"
LOSSES = "losses.json"
SPEED_FIELDS = {field.name for field in fields(Speed)}
EVERY_SWITCH = {"fused": True, "cuda_graph": True}  # off by default, on in experiment=fast


class FirstLosses(Callback):
    """Writes the loss of every step; that synchronises the device, so only the check uses it.

    Args:
        path: a JSON file, a list of the losses so far.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._losses.append(float(outputs["loss"]))
        write_atomically(self._path, json.dumps(self._losses))


def whole_run(
    options: argparse.Namespace, workload: Workload, switches: Mapping[str, Any]
) -> dict[str, Any]:
    """Fit with train.py in this process; returns its first losses, or timings of its results.json.

    A timed run validates once, at the end, with a default run's callbacks and logger.

    Args:
        switches: what differs from experiment=fast.
    """
    folder: Path = options.folder
    overrides = run_overrides(workload, switches, folder=folder, cache_dir=options.cache_dir)
    if options.task == "check":
        overrides += [
            "precision=32-true",
            "trainer.max_epochs=1",
            f"+trainer.limit_train_batches={CHECKED_STEPS}",
            "+trainer.limit_val_batches=0",
            "logger=none",
            *(f"callbacks.{name}=null" for name in ("best", "last", "inputs")),
            "+callbacks.losses._target_=benchmarks.loop.FirstLosses",
            f"+callbacks.losses.path={quoted(folder / LOSSES)}",
        ]
    else:
        overrides += [
            f"precision={options.precision}",
            f"trainer.max_epochs={workload.epochs}",
            f"+trainer.check_val_every_n_epoch={workload.epochs}",
            f"+callbacks.best.every_n_epochs={workload.epochs}",
        ]
    _train(overrides, started=options.started)
    if options.task == "check":
        return {"losses": json.loads((folder / LOSSES).read_text())}
    results = json.loads((folder / FILE_NAME).read_text())
    timing = results["timing"]
    return {
        "images_per_second": timing["steady_images_per_second"],
        "data_wait_fraction": timing["data_wait_fraction"],
        "timed_steps": workload.timed_steps,
        "last_loss": results["history"][-1]["train_loss"],
        "peak_memory_bytes": timing["peak_memory_bytes"],
        "timing": timing,
    }


def run_overrides(
    workload: Workload, switches: Mapping[str, Any], *, folder: Path, cache_dir: Path
) -> list[str]:
    """The command line of train.py for a workload, without precision and epochs."""
    switches = {**EVERY_SWITCH, **switches}
    speed = {key: value for key, value in switches.items() if key in SPEED_FIELDS}
    data = {key: switches[key] for key in ("cache", "device_memory_share") if key in switches}
    threads = "null" if workload.threads is None else workload.threads
    return [
        "name=benchmark",
        f"hydra.run.dir={quoted(folder)}",
        f"seed={workload.seed}",
        "stages=[fit]",
        "report=false",
        "data=nih",
        f"data.name={quoted(Path(workload.data).name)}",
        f"data.root={quoted(workload.data)}",
        f"data.split={quoted(workload.split)}",
        "data.allow_patient_overlap=true",  # only the speed is measured
        f"data.image_size={workload.image_size}",
        f"data.batch_size={workload.batch_size}",
        f"data.cache_dir={quoted(cache_dir)}",
        *(f"data.{key}={value}" for key, value in data.items()),
        f"model.arch={workload.arch}",
        f"model.weights_path={quoted(workload.weights)}",
        f"optimizer.lr={LEARNING_RATE}",
        f"optimizer.fused={switches['fused']}",
        f"accelerator={workload.accelerator}",
        f"speed.threads={threads}",
        *(f"speed.{key}={value}" for key, value in speed.items()),
    ]


def _train(overrides: list[str], *, started: float) -> None:
    """Run train.py in this process, which has imported torch already and ends when the run does."""
    os.environ["XRAY_STARTED"] = str(started)
    sys.argv = [str(TRAIN_PY), *overrides]
    try:
        runpy.run_path(str(TRAIN_PY), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise


TASKS = ("check", "trial", "time")


def main() -> int:
    options = _parser().parse_args()
    die_with_parent()  # a killed benchmark leaves nothing that goes on computing
    logging.captureWarnings(True)
    try:
        result = _do(options)
    except (XrayError, InterruptedRunError) as error:
        sys.stderr.write(f"{one_line(error)}\n")
        return error.exit_code
    write_atomically(options.out, json.dumps(result))
    return 0


def _do(options: argparse.Namespace) -> dict[str, Any]:
    workload = Workload.read(options.workload)
    if options.workers is not None:
        workload = replace(workload, workers=options.workers)
    switches = ARMS[options.arm].run
    if switches is not None:
        return whole_run(options, workload, switches)
    if options.task == "check":
        return {"losses": check(workload, options.arm)}
    if options.task == "trial":
        return {"images_per_second": trial(workload, precision=options.precision)}
    found = measure(workload, options.arm, precision=options.precision, steps=workload.timed_steps)
    return _with_finite_loss(found)


def _with_finite_loss(found: dict[str, Any]) -> dict[str, Any]:
    if not abs(found["last_loss"]) < float("inf"):
        raise RunFailedError(f"the last loss is {found['last_loss']}: nothing was trained")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arm")
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--folder", type=Path, required=True, help="for the run folder")
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--started", type=float, default=monotonic(), help="in time.monotonic()")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
