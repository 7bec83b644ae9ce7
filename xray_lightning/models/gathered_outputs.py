"""Outputs of a network for a side's images: averaged with the mirror image's, gathered, scored."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_auroc


class Outputs(NamedTuple):
    """One side's predictions, each image once, in the order of the side's table."""

    rows: Tensor  # (N,) int64
    probabilities: Tensor  # (N, findings) float32
    targets: Tensor  # (N, findings) float32
    losses: Tensor  # (N,) float32


class Predictions(NamedTuple):
    """Result of `Trainer.predict` for one batch; each rank has those of its own images."""

    images: tuple[str, ...]  # names of (B,) images, empty where the loader is not a datamodule's
    rows: Tensor  # (B,) int64, of the test split's table
    probabilities: Tensor  # (B, findings) float32


def augmented_logits(model: Callable[[Tensor], Tensor], images: Tensor, tta: str | None) -> Tensor:
    """Logits (B, findings), float32; with `flip` their mean over image and mirror image.

    Logits are averaged, as nnU-Net does: if both agree, the mean equals them, and thresholds and
    calibration act on one scale with and without it.
    """
    logits = model(images).float()
    return logits if tta is None else (logits + model(images.flip(-1)).float()) / 2


def in_table_order(batches: Sequence[tuple[Tensor, ...]], *, ranks: int) -> list[Tensor]:
    """Gather tensors of a side's images from all ranks: each image once, in the table's order.

    Args:
        batches: this rank's: rows (B,) of the side's table, negative for repeats, and further
            tensors (B, ...).
        ranks: number of ranks; each has equally many rows, counting repeats: see EpochOrder.
    """
    parts = [torch.cat(part) for part in zip(*batches, strict=True)]
    if ranks > 1:
        for place, part in enumerate(parts):
            of_ranks = [torch.empty_like(part) for _ in range(ranks)]
            torch.distributed.all_gather(of_ranks, part.contiguous())
            parts[place] = torch.cat(of_ranks)
    order = torch.argsort(parts[0])
    order = order[parts[0][order] >= 0]
    return [part[order] for part in parts]


def finding_auroc(probabilities: Tensor, targets: Tensor) -> Tensor:
    """AUROC of each finding, NaN where the images are all positive or all negative: (findings,).

    Args:
        probabilities: (N, findings), or any scores that rank images alike, such as logits.
        targets: (N, findings) of 0 and 1.
    """
    targets = targets.int()
    positives = targets.sum(dim=0)
    defined = (positives > 0) & (positives < len(targets))
    auroc = torch.full((targets.shape[1],), math.nan)
    if defined.any():
        columns = defined.nonzero().squeeze(1)
        # A single column would be taken for another task: give torchmetrics at least two.
        chosen = columns if len(columns) > 1 else columns.repeat(2)
        values = multilabel_auroc(
            probabilities[:, chosen],
            targets[:, chosen],
            num_labels=len(chosen),
            average="none",
            validate_args=False,
        )
        auroc[columns] = values[: len(columns)]
    return auroc


def macro(by_finding: Tensor) -> Tensor:
    """Mean () over the findings whose value is not NaN; NaN if there is none."""
    return by_finding[~by_finding.isnan()].mean()
