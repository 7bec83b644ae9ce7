"""Callbacks: the clocks of a fit, the guard of its loss, TensorBoard, and the last checkpoint."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_classifier
from fitting import batch, data, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from xray_lightning.errors import EXIT_RUN_FAILED, RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.losses import BinaryCrossEntropy
from xray_lightning.training import callbacks as module
from xray_lightning.training.callbacks import (
    GRID_IMAGES,
    WARMUP_STEPS,
    FiniteLoss,
    InputGrid,
    LastCheckpoint,
    Throughput,
    figure_places,
    input_figure,
    log_hyperparameters,
)


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


def test_the_rates_add_up(clock: Clock) -> None:
    logged: list[dict[str, float]] = []
    world: Any = SimpleNamespace(
        world_size=2,
        is_global_zero=False,
        current_epoch=0,
        global_step=0,
        callback_metrics={"val/loss": torch.tensor(0.25)},
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.5}])],
        loggers=[SimpleNamespace(log_metrics=lambda rates, step: logged.append(rates))],
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
    (rates,) = logged
    assert rates.pop("memory/host_bytes") > 100 * 2**20  # torch alone takes more
    assert rates.pop("memory/device_bytes", 0) >= 0
    assert rates == {
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fault_53_a_loss_that_is_no_number_ends_the_run_at_its_step_and_leaves_the_checkpoints(
    value: float, phantoms: Path, tmp_path: Path
) -> None:
    images = data(phantoms, tmp_path)
    steps = -(-len(images.table("train")) // images.batch_size)
    best = ModelCheckpoint(
        dirpath=tmp_path / "best",
        filename="best",
        monitor="val/auroc_macro",
        save_on_train_epoch_end=True,
    )
    failing = tiny_classifier(loss=FailsAt(steps + 2, value=value))
    with pytest.raises(RunFailedError, match="not a finite number at epoch 1, step 1;") as told:
        trainer(tmp_path, FiniteLoss(), best, epochs=3).fit(failing, datamodule=images)
    assert told.value.exit_code == EXIT_RUN_FAILED
    for name in ("best/best.ckpt", "last.ckpt"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint["global_step"] == steps
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def take(guard: FiniteLoss, *losses: float, device: str = "cpu", batches: int = 100) -> None:
    """Show it steps of these losses, without a model; so many make an epoch."""
    trainer: Any = SimpleNamespace(current_epoch=0, num_training_batches=batches)
    model: Any = SimpleNamespace(device=torch.device(device))
    for index, loss in enumerate(losses):
        guard.on_train_batch_end(trainer, model, {"loss": torch.tensor(loss)}, batch(1), index)


def test_fault_54_with_patience_single_bad_steps_are_counted_and_a_long_run_of_them_ends_it() -> (
    None
):
    guard = FiniteLoss(patience=2)
    take(guard, 1, math.nan, math.inf, 1, math.nan, 1)
    assert guard.skipped == 3
    with pytest.raises(RunFailedError, match="epoch 0, step 3"):
        take(guard, 1, math.nan, math.nan, math.nan)


def test_fault_53_a_gpu_is_asked_only_now_and_then_and_the_step_is_named_all_the_same() -> None:
    losses = [*[1.0] * 5, math.nan, *[1.0] * (FiniteLoss.CUDA_STEPS - 6)]
    guard = FiniteLoss()
    take(guard, *losses[:-1], device="meta")  # as on a GPU: anything but the CPU
    assert guard.skipped == 0  # not yet known
    with pytest.raises(RunFailedError, match="step 5;"):
        take(FiniteLoss(), *losses, device="meta")


def test_the_last_steps_of_an_epoch_are_looked_at_before_its_checkpoint() -> None:
    with pytest.raises(RunFailedError, match="step 1;"):
        take(FiniteLoss(), 1, math.nan, 1, device="meta", batches=3)


def test_history_and_findings_agree_with_what_is_logged(phantoms: Path, tmp_path: Path) -> None:
    throughput = Throughput(batch_size=16)
    fitted = trainer(tmp_path, throughput)
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


@pytest.mark.parametrize("images, axes", [(1, 1), (3, 3), (5, 8), (40, GRID_IMAGES)])
def test_the_grid_shows_the_first_images_under_their_findings(images: int, axes: int) -> None:
    given = batch(images)
    pixels, targets = given.images.numpy(), given.targets.zero_().numpy()
    targets[0, [2, 12]] = 1
    targets[-1] = 1
    figure = input_figure(pixels[:GRID_IMAGES], targets[:GRID_IMAGES])
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == axes
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == min(images, GRID_IMAGES)
    if images > 1:
        assert shown[0].get_title() == "Effusion\nPleural Thickening"
    if images in (3, 5):
        assert shown[1].get_title() == "No Finding"
        assert shown[-1].get_title() == "Atelectasis\nCardiomegaly\nand 12 more"
    assert (shown[0].images[0].get_array().data == pixels[0, 0]).all()


def test_the_board_holds_one_grid_and_the_hyper_parameters_with_their_metrics(
    phantoms: Path, tmp_path: Path
) -> None:
    fitted = trainer(tmp_path, InputGrid(), epochs=2, log_every_n_steps=1)
    fitted.loggers = [
        TensorBoardLogger(tmp_path, name="board", version="", default_hp_metric=False)
    ]
    fitted.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    metrics = {"auroc_macro": 0.75, "label_accuracy": None}
    log_hyperparameters(fitted, config={"lr": 0.1, "model": "resnet18"}, metrics=metrics)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert len(events.Images("inputs")) == 1
    assert [event.value for event in events.Scalars("test/auroc_macro")] == [0.75]
    assert "test/label_accuracy" not in events.Tags()["scalars"]
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_without_a_logger_nothing_is_drawn(phantoms: Path, tmp_path: Path) -> None:
    fitted = trainer(tmp_path, InputGrid())
    assert figure_places(fitted) == []
    fitted.fit(tiny_classifier(), datamodule=data(phantoms, tmp_path))
    log_hyperparameters(fitted, config={}, metrics={})


@pytest.mark.parametrize(
    "seconds, most_time, expected",
    [
        (0.01, 0.02, [0, 1, 2, 3, 4, 5, 6]),  # cheap: after every epoch
        (0.5, 0.02, [0, 3, 6]),  # half a second for each 25
        (30.0, 0.02, [0, 6]),  # the first and the last at any price
        (30.0, 1, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_last_state_is_saved_as_often_as_its_share_of_the_time_allows(
    seconds: float, most_time: float, expected: list[int], clock: Clock
) -> None:
    saved = []

    def save(path: Path) -> None:
        saved.append(fit.current_epoch)
        clock.now += seconds

    rank_0 = SimpleNamespace(broadcast=lambda told: told)
    fit: Any = SimpleNamespace(
        max_epochs=7, should_stop=False, strategy=rank_0, save_checkpoint=save
    )
    last = LastCheckpoint("last.ckpt", most_time=most_time)
    for epoch in range(7):
        fit.current_epoch = epoch
        last.on_train_epoch_end(fit, fit)
        clock.now += 10.0  # an epoch
    assert saved == expected


@pytest.mark.parametrize("most_time", [0, -1, 1.5, "all"])
def test_a_share_of_the_time_that_is_none_is_refused_by_its_key(most_time: Any) -> None:
    with pytest.raises(UserError, match=r"callbacks\.last\.most_time=.* above 0, at most 1"):
        LastCheckpoint("last.ckpt", most_time=most_time)
