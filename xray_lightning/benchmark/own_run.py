"""The arms that are whole runs of this project, through Lightning, into a run folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from xray_lightning.benchmark.workload import CHECKED_STEPS, LEARNING_RATE, Workload
from xray_lightning.data.transforms import Normalize
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.losses import BinaryCrossEntropy
from xray_lightning.training.board import InputGrid
from xray_lightning.training.checkpoints import LastCheckpoint
from xray_lightning.training.results import FILE_NAME, RunRecord
from xray_lightning.training.run import Job, run
from xray_lightning.training.speed import Speed
from xray_lightning.training.strategies import Single
from xray_lightning.training.world import World

SPEED_FIELDS = {field.name for field in fields(Speed)}
EVERY_SWITCH = {"fused": True, "cuda_graph": True}  # those that are off by default: experiment=fast


class _Losses(Callback):
    """Keeps the loss of every step; each look waits for the device, so only the check uses it."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.kept.append(float(outputs["loss"]))


def check(
    workload: Workload,
    switches: Mapping[str, Any],
    *,
    folder: Path,
    cache_dir: Path,
    started: float,
) -> list[float]:
    """The losses of the first steps, in float32."""
    losses = _Losses()
    trainer = _trainer(epochs=1, limit_train_batches=CHECKED_STEPS, limit_val_batches=0)
    job = _job(
        workload,
        switches,
        folder=folder,
        cache_dir=cache_dir,
        started=started,
        precision="32-true",
        trainer=trainer,
        callbacks=[losses],
    )
    run(job)
    return losses.kept


def measure(
    workload: Workload,
    switches: Mapping[str, Any],
    *,
    folder: Path,
    cache_dir: Path,
    started: float,
    precision: str,
) -> dict[str, Any]:
    """Fit for the workload's steps, validate once at the end, and read the clocks of results.json.

    The callbacks and the logger are those of a default run.
    """
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(
        dirpath=checkpoints,
        filename="best",
        monitor="val/auroc_macro",
        mode="max",
        save_weights_only=True,
        save_on_train_epoch_end=True,
        every_n_epochs=workload.epochs,
        enable_version_counter=False,
    )
    last = LastCheckpoint(checkpoints / "last.ckpt")
    job = _job(
        workload,
        switches,
        folder=folder,
        cache_dir=cache_dir,
        started=started,
        precision=precision,
        trainer=_trainer(epochs=workload.epochs, check_val_every_n_epoch=workload.epochs),
        callbacks=[best, last, LearningRateMonitor(), InputGrid()],
        loggers=[TensorBoardLogger(folder, name="tensorboard", version="")],
    )
    run(job)
    job.record.end("finished")
    record = json.loads((folder / FILE_NAME).read_text())
    timing = record["timing"]
    return {
        "images_per_second": timing["steady_images_per_second"],
        "data_wait_fraction": timing["data_wait_fraction"],
        "timed_steps": workload.timed_steps,
        "last_loss": record["history"][-1]["train_loss"],
        "peak_memory_bytes": timing["peak_memory_bytes"],
        "timing": timing,
    }


def _trainer(*, epochs: int, **further: Any) -> partial[Trainer]:
    return partial(
        Trainer,
        max_epochs=epochs,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **further,
    )


def _job(
    workload: Workload,
    switches: Mapping[str, Any],
    *,
    folder: Path,
    cache_dir: Path,
    started: float,
    precision: str,
    trainer: partial[Trainer],
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
) -> Job:
    switches = {**EVERY_SWITCH, **switches}
    seed_everything(workload.seed, verbose=False)
    speed = Speed(
        threads=workload.threads,
        **{key: value for key, value in switches.items() if key in SPEED_FIELDS},
    )
    of_data = {key: switches[key] for key in ("cache", "device_memory_share") if key in switches}
    classifier = Classifier(
        backbone=build_backbone(arch=workload.arch, weights_path=workload.weights),
        loss=BinaryCrossEntropy(),
        normalize=Normalize(),
        optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE, fused=switches["fused"]),
        channels_last=speed.channels_last,
    )
    name = "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord.start(folder, name=name, command="", seed=workload.seed, config={})
    record.write()
    return Job(
        folder=folder,
        record=record,
        world=World("none"),
        started=started,
        data=workload.data_module(cache_dir=cache_dir, **of_data),
        classifier=classifier,
        trainer=trainer,
        strategy=Single(),
        accelerator=workload.accelerator,
        precision=precision,
        judge=lambda **predictions: {},  # nothing is tested
        callbacks=callbacks,
        loggers=loggers,
        stages=["fit"],
        speed=speed,
    )
