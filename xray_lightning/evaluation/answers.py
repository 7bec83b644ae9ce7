"""What checkpoints answer to every image of a side, each alone and averaged, as tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.evaluation.ensemble import (
    Array,
    Member,
    average,
    member_logits,
    probabilities_of,
)
from xray_lightning.models.classifier import Outputs
from xray_lightning.progress import Display
from xray_lightning.training.predictions import prediction_table


@dataclass(frozen=True)
class SidePredictions:
    """Predictions of one side: the ensemble's, and each member's."""

    whole: pd.DataFrame
    each: list[pd.DataFrame]


@dataclass(frozen=True)
class Answers:
    """Asks every member for its answers, one side at a time, and keeps them in `given`."""

    members: Sequence[Member]
    data: XrayDataModule
    average: str
    device: torch.device
    precision: str
    progress: Display
    given: dict[str, SidePredictions] = field(default_factory=dict)

    def of(self, side: str) -> SidePredictions:
        loaders = {
            "train": self.data.train_dataloader,
            "val": self.data.val_dataloader,
            "test": self.data.test_dataloader,
        }
        table = self.data.table(side)
        with self.progress(f"scoring {side} images", len(table)) as advance:
            logits = member_logits(
                self.members,
                loaders[side](),
                images=len(table),
                device=self.device,
                precision=self.precision,
                advance=advance,
            )
        self.given[side] = SidePredictions(
            whole=labelled(self.data, average(logits, of=self.average), side=side),
            each=[labelled(self.data, probabilities_of(one), side=side) for one in logits],
        )
        return self.given[side]


def labelled(data: XrayDataModule, probabilities: Array, *, side: str) -> pd.DataFrame:
    """Probabilities (N, findings) of a side's images with their labels, as `Evaluator` takes them.

    Args:
        data: set up; the rows are in the order of its table of the side.
    """
    table = data.table(side)
    outputs = Outputs(
        rows=torch.arange(len(table)),
        probabilities=torch.from_numpy(probabilities),
        targets=torch.empty(0),  # the table has them
        losses=torch.empty(0),  # which loss it was trained with is not in a checkpoint
    )
    return prediction_table(table, outputs, side=side, findings=data.findings)
