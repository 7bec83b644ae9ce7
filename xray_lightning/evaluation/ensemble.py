"""Ensembles of checkpoints: members restored, run over images, and their predictions averaged."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.loader import Batch
from xray_lightning.errors import RunFailedError
from xray_lightning.evaluation.fitted_in_checkpoint import check_alike, chosen_tta
from xray_lightning.models.checkpoint import RestoredModel, read_checkpoint, restore
from xray_lightning.models.gathered_outputs import Outputs, augmented_logits
from xray_lightning.progress import Advance, Display
from xray_lightning.runs.predictions import prediction_table

Array = npt.NDArray[np.float32]

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Member:
    """One checkpoint: its file, its `xray` entry (`described`), and its model."""

    path: Path
    sha256: str
    described: dict[str, Any]
    model: RestoredModel
    tta: str | None = None  # `flip`: logits are averaged with the mirror image's

    @classmethod
    def read(cls, path: Path, *, tta: str | None = None) -> "Member":
        """Read and restore a checkpoint.

        Args:
            tta: `flip` or `none`; None for the one that its operating points were fitted with.

        Raises:
            UserError: it cannot be read, or its weights do not fit its recipe.
        """
        checkpoint = read_checkpoint(path)
        model = restore(checkpoint, source=path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described = dict(checkpoint["xray"])
        return cls(path, digest, described, model, chosen_tta(tta, described))


def read_members(paths: Sequence[Path], *, tta: str | None = None) -> list[Member]:
    """Read checkpoints that may be averaged.

    Raises:
        UserError: one cannot be read, is there twice, or was trained with other findings, another
            split, image size or normalisation than the first.
    """
    members = [Member.read(path, tta=tta) for path in paths]
    check_alike(members)
    return members


def member_logits(
    members: Sequence[Member],
    batches: Iterable[Batch],
    *,
    images: int,
    device: torch.device,
    precision: str,
    advance: Advance,
) -> Array:
    """Logits of each member for each image, in one pass over the images.

    Args:
        batches: of one side, in whatever order.
        images: how many the side has, N.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        advance: called with each batch's number of images.

    Returns:
        Logits, float32 (members, N, findings), in the order of the side's table.

    Raises:
        RunFailedError: a NaN or infinite logit.
    """
    logits = torch.full((len(members), images, len(members[0].described["findings"])), torch.nan)
    models = [member.model.to(device) for member in members]
    dtype = AUTOCAST[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for batch in batches:
            pixels = batch.images.to(device)
            for place, (member, model) in enumerate(zip(members, models, strict=True)):
                logits[place, batch.rows] = augmented_logits(model, pixels, member.tta).cpu()
            advance(len(batch.rows))
    for member, answers in zip(members, logits, strict=True):
        if invalid := int((~answers.isfinite()).any(dim=1).sum()):
            raise RunFailedError(
                f"{member.path} gives no number for {invalid} of {images} images (NaN or infinite "
                "logits)"
            )
    return logits.numpy()


def probabilities_of(logits: Array) -> Array:
    """The sigmoid in float32, bit for bit as the classifier computes it."""
    return torch.from_numpy(logits).sigmoid().numpy()


def average(logits: Array, *, of: str) -> Array:
    """The ensemble's probabilities, float32 (N, findings).

    Args:
        logits: the members', float32 (members, N, findings).
        of: `probabilities` (arithmetic mean) or `logits` (the geometric mean of the odds).
    """
    if len(logits) == 1:
        return probabilities_of(logits[0])
    if of == "logits":
        wide = torch.from_numpy(logits.mean(axis=0, dtype=np.float64))
        return wide.sigmoid().float().numpy()
    mean: Array = probabilities_of(logits).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


@dataclass(frozen=True)
class Answers:
    """Runs all members on one side at a time; keeps the ensemble's predictions in `given`."""

    members: Sequence[Member]
    data: XrayDataModule
    average: str
    device: torch.device
    precision: str
    progress: Display
    given: dict[str, pd.DataFrame] = field(default_factory=dict)

    def of(self, side: str) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        """Predictions of one side: the ensemble's, and each member's."""
        table = self.data.table(side)
        with self.progress(f"scoring {side} images", len(table)) as advance:
            logits = member_logits(
                self.members,
                getattr(self.data, f"{side}_dataloader")(),
                images=len(table),
                device=self.device,
                precision=self.precision,
                advance=advance,
            )
        whole, *each = (
            labelled(self.data, probabilities, side=side)
            for probabilities in (average(logits, of=self.average), *map(probabilities_of, logits))
        )
        self.given[side] = whole
        return whole, each


def labelled(data: XrayDataModule, probabilities: Array, *, side: str) -> pd.DataFrame:
    """A table of predictions for `Evaluator`: a side's probabilities (N, findings) and its labels.

    Args:
        data: after `setup`; the probabilities are in the order of its table of the side.
    """
    table = data.table(side)
    outputs = Outputs(
        rows=torch.arange(len(table)),
        probabilities=torch.from_numpy(probabilities),
        targets=torch.empty(0),  # not used: the labels are in the table
        losses=torch.empty(0),  # not used: a checkpoint does not name its loss
    )
    return prediction_table(
        table, outputs, side=side, findings=data.findings, further=data.further_columns
    )
