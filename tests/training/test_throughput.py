"""The clocks of a fit, and the guard against a loss that is no number."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_classifier
from lightning.pytorch.callbacks import ModelCheckpoint
from test_fit import data, trainer
from torch import Tensor

from xray_lightning.data.loader import Batch
from xray_lightning.errors import EXIT_RUN_FAILED, RunFailedError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.losses import BinaryCrossEntropy
from xray_lightning.training import callbacks as module
from xray_lightning.training.callbacks import WARMUP_STEPS, FiniteLoss, Throughput


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Logger:
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append(metrics)


def batch(images: int, *, ranks: int = 1) -> Batch:
    """One rank's part of a global batch of so many images."""
    empty = torch.zeros(0)
    return Batch(images=empty, targets=empty, rows=empty, draws=empty, scale=ranks / images)


def test_the_rates_add_up(clock: Clock, phantoms: Path) -> None:
    logger = Logger()
    world: Any = SimpleNamespace(
        world_size=2,
        current_epoch=0,
        global_step=0,
        callback_metrics={"val/loss": torch.tensor(0.25)},
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}])],
        loggers=[logger],
    )
    model = tiny_classifier()
    model._train_sums += torch.tensor([1.5, 2.0])
    throughput = Throughput(batch_size=16)
    throughput.on_train_start(world, model)
    throughput.on_train_epoch_start(world, model)
    sizes = [16] * (WARMUP_STEPS + 4) + [7]
    for step, size in enumerate(sizes):
        clock.now += 1  # the wait for the batch
        throughput.on_train_batch_start(world, model, batch(size, ranks=2), step)
        clock.now += 3  # the step
        throughput.on_train_batch_end(world, model, None, batch(size, ranks=2), step)
    clock.now += 10  # validation
    throughput.on_train_epoch_end(world, model)
    clock.now += 2  # checkpoints
    throughput.on_train_end(world, model)

    steady = 4 * 16 + 7
    assert throughput.first_step_at == 101
    assert throughput.timing() == {
        "fit": 4 * len(sizes) + 12,
        "fit_images_per_second": sum(sizes) / (4 * len(sizes) + 12),
        "steady_images_per_second": steady / (5 * 4),
        "step_seconds": 4,
        "data_wait_fraction": 0.25,
    }
    assert throughput.images_per_second == sum(sizes) / (4 * len(sizes))
    (logged,) = logger.logged
    assert logged.pop("memory/host_bytes") > 100 * 2**20  # torch alone takes more
    assert logged.pop("memory/device_bytes", 0) >= 0
    assert logged == {
        "train/images_per_second": sum(sizes) / (4 * len(sizes)),
        "train/step_seconds": 4,
        "train/data_wait_fraction": 0.25,
    }
    (row,) = throughput.history
    assert math.isnan(row.pop("val_auroc_macro"))  # it was not there: null in results.json
    assert row == {
        "epoch": 0,
        "train_loss": 0.75,
        "val_loss": 0.25,
        "lr": 0.5,
        "seconds": 4 * len(sizes) + 10,
        "images": sum(sizes),
    }


def test_before_the_first_step_every_rate_is_unknown() -> None:
    throughput = Throughput(batch_size=16)
    assert set(throughput.timing().values()) == {None}
    assert throughput.images_per_second is None


class FailsAt(BinaryCrossEntropy):
    """A loss of this value in one training step, counted from 1."""

    def __init__(self, step: int, *, value: float) -> None:
        super().__init__()
        self.step, self.value = step, value
        self.done = 0

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.done += 1
        losses = super().elementwise(logits, targets)
        bad = torch.is_grad_enabled() and self.done == self.step
        return losses * self.value if bad else losses


def steps_an_epoch(phantoms: Path, tmp_path: Path) -> int:
    module = data(phantoms, tmp_path)
    return -(-len(module.table("train")) // module.batch_size)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_at_its_step_and_leaves_the_checkpoints(
    value: float, phantoms: Path, tmp_path: Path
) -> None:
    steps = steps_an_epoch(phantoms, tmp_path)
    best = ModelCheckpoint(
        dirpath=tmp_path / "best",
        filename="best",
        monitor="val/auroc_macro",
        save_on_train_epoch_end=True,
    )
    failing = tiny_classifier(loss=FailsAt(steps + 2, value=value))
    with pytest.raises(RunFailedError, match="not a finite number at epoch 1, step 1;") as told:
        trainer(tmp_path, FiniteLoss(), best).fit(failing, datamodule=data(phantoms, tmp_path))
    assert told.value.exit_code == EXIT_RUN_FAILED
    for name in ("best/best.ckpt", "last.ckpt"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint["global_step"] == steps
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


class Steps:
    """FiniteLoss in steps whose losses a test gives, without a model."""

    def __init__(self, guard: FiniteLoss, *, device: str, batches: int) -> None:
        self.guard = guard
        self.trainer: Any = SimpleNamespace(current_epoch=0, num_training_batches=batches)
        self.model: Any = SimpleNamespace(device=torch.device(device))

    def take(self, *losses: float, first: int = 0) -> None:
        for index, loss in enumerate(losses, start=first):
            outputs = {"loss": torch.tensor(loss)}
            self.guard.on_train_batch_end(self.trainer, self.model, outputs, batch(1), index)


def test_with_patience_single_bad_steps_are_counted_and_a_long_run_of_them_ends_it() -> None:
    guard = FiniteLoss(patience=2)
    steps = Steps(guard, device="cpu", batches=100)
    steps.take(1, math.nan, math.inf, 1, math.nan, 1)
    assert guard.skipped == 3
    with pytest.raises(RunFailedError, match="epoch 0, step 3"):
        steps.take(1, math.nan, math.nan, math.nan)


def test_a_gpu_is_asked_only_now_and_then_and_the_step_is_named_all_the_same() -> None:
    guard = FiniteLoss()
    steps = Steps(guard, device="meta", batches=100)  # as on a GPU: anything but the CPU
    steps.take(*[1.0] * 5, math.nan, *[1.0] * (FiniteLoss.CUDA_STEPS - 7))
    assert guard.skipped == 0  # not yet known
    with pytest.raises(RunFailedError, match="step 5;"):
        steps.take(1.0, first=FiniteLoss.CUDA_STEPS - 1)


def test_the_last_steps_of_an_epoch_are_looked_at_before_its_checkpoint() -> None:
    steps = Steps(FiniteLoss(), device="meta", batches=3)
    with pytest.raises(RunFailedError, match="step 1;"):
        steps.take(1, math.nan, 1)


def test_history_and_findings_agree_with_what_is_logged(phantoms: Path, tmp_path: Path) -> None:
    throughput = Throughput(batch_size=16)
    fitted = trainer(tmp_path, throughput, epochs=1)
    fitted.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    (row,) = throughput.history
    metrics = fitted.callback_metrics
    assert row["val_loss"] == float(metrics["val/loss"])
    assert row["val_auroc_macro"] == float(metrics["val/auroc_macro"])
    assert row["train_loss"] == pytest.approx(float(metrics["train/loss"]))
    names = [key.removeprefix("val/auroc/") for key in metrics if key.startswith("val/auroc/")]
    assert names
    assert set(names) <= set(FINDINGS)
    defined = [float(metrics[f"val/auroc/{name}"]) for name in names]
    assert sum(defined) / len(defined) == pytest.approx(row["val_auroc_macro"])
