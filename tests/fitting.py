"""Builders of what a fit in this process is made of."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.loader import Batch
from xray_lightning.findings import FINDINGS
from xray_lightning.training.callbacks import AtomicCheckpointIO, LastCheckpoint


def data(phantoms: Path, tmp_path: Path, **further: Any) -> XrayDataModule:
    return XrayDataModule(
        name="phantom",
        root=str(phantoms),
        cache_dir=str(tmp_path / "cache"),
        **{"image_size": 32, "batch_size": 16} | further,
    )


def trainer(
    tmp_path: Path, *callbacks: Callback, epochs: int = 1, accelerator: str = "cpu", **further: Any
) -> Trainer:
    """One that leaves `last.ckpt` in the folder and nothing else."""
    return Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=[*callbacks, LastCheckpoint(tmp_path / "last.ckpt")],
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **further,
    )


def batch(images: int, *, repeats: int = 0, ranks: int = 1) -> Batch:
    """One rank's random images and labels; the last `repeats` rows are marked as repeats."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.arange(images)
    rows[images - repeats :] = ~rows[images - repeats :]
    shape = (images, 1, 32, 32)
    return Batch(
        images=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        targets=torch.randint(0, 2, (images, len(FINDINGS)), generator=generator).float(),
        rows=rows,
        draws=torch.arange(images),
        scale=ranks / (images - repeats),
    )
