"""Fitting through Lightning with our own loaders, checkpoints and callbacks, in process."""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import InterruptedRunError
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.losses import BinaryCrossEntropy
from xray_lightning.models.schedules import warmup_cosine
from xray_lightning.training.callbacks import AtomicCheckpointIO, LastCheckpoint, Throughput
from xray_lightning.training.interruption import Interruption
from xray_lightning.training.strategies import World

EPOCHS = 3
PLATEAU = {
    "interval": "epoch",
    "monitor": "val/loss",
    "scheduler": partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=10.0
    ),
}
COSINE = {"interval": "step", "needs_total_steps": True, "scheduler": warmup_cosine}
SCHEDULERS = {"none": None, "cosine": COSINE, "plateau": PLATEAU}


def data(phantoms: Path, tmp_path: Path, **further: Any) -> XrayDataModule:
    settings: dict[str, Any] = {"image_size": 32, "batch_size": 16} | further
    return XrayDataModule(
        name="phantom", root=str(phantoms), cache_dir=str(tmp_path / "cache"), **settings
    )


def classifier(scheduler: Any = None, loss: Any = None) -> Classifier:
    seed_everything(0, verbose=False)
    return Classifier(
        backbone=build_backbone(arch="resnet18", dropout=0.0),
        loss=loss or BinaryCrossEntropy(),
        normalize=Normalize(),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        scheduler=scheduler,
    )


def trainer(
    tmp_path: Path,
    *callbacks: Callback,
    epochs: int = EPOCHS,
    accelerator: str = "cpu",
    plugins: Sequence[Any] | None = None,
    **further: Any,
) -> Trainer:
    return Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=[*callbacks, LastCheckpoint(tmp_path / "last.ckpt")],
        plugins=[AtomicCheckpointIO(), *([LightningEnvironment()] if plugins is None else plugins)],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **further,
    )


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """One thread, so that sums come in one order; and the signal handlers put back."""
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Seen(Callback):
    """The rows of every training step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append(tuple(batch.rows.tolist()))


class StopAt(Callback):
    """Sends this process SIGTERM in a training step, as a cluster does that wants its node back."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("scheduler", "stop"),  # of 4 steps an epoch: in mid-epoch, at its last step, in the second
    [("none", 2), ("none", 4), ("cosine", 6), ("plateau", 4), ("plateau", 6)],
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resume_equals_an_uninterrupted_run(
    scheduler: str, stop: int, phantoms: Path, tmp_path: Path
) -> None:
    straight, throughput = Seen(), Throughput(batch_size=16)
    whole = classifier(SCHEDULERS[scheduler])
    whole_trainer = trainer(tmp_path / "a", straight, throughput)
    whole_trainer.fit(whole, datamodule=data(phantoms, tmp_path))

    folder = tmp_path / "b"
    before, after = Seen(), Seen()
    interruption = Interruption(folder, checkpoint=folder / "last.ckpt", world=World("none"))
    counted = Throughput(batch_size=16)
    stopped = trainer(folder, before, counted, StopAt(step=stop), interruption)
    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        stopped.fit(classifier(SCHEDULERS[scheduler]), datamodule=data(phantoms, tmp_path))
    assert len(before.rows) == stop

    resumed = classifier(SCHEDULERS[scheduler])
    again = Throughput(batch_size=16)
    resumed_trainer = trainer(folder, after, again)
    resumed_trainer.fit(
        resumed,
        datamodule=data(phantoms, tmp_path),
        ckpt_path=folder / "last.ckpt",
        weights_only=True,
    )
    assert before.rows + after.rows == straight.rows
    assert again.history[-1]["val_loss"] == throughput.history[-1]["val_loss"]
    assert again.history[-1]["lr"] == throughput.history[-1]["lr"]
    images = {row["epoch"]: row["images"] for row in throughput.history}
    assert all(row["images"] == images[row["epoch"]] for row in again.history)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
