"""Cross-validation: validation predictions of all folds as one table, each image scored once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning import terminal
from xray_lightning.data.csv_table import shown
from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import Ranking
from xray_lightning.evaluation.metadata_baseline import MetadataModel
from xray_lightning.findings import differing
from xray_lightning.runs.predictions import (
    LABEL,
    Floats,
    Integers,
    ScoredImages,
    findings_of,
    read_predictions,
)


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of images by the models that were trained on the other folds.

    Attributes:
        table: of all folds, as `read_predictions` gives each.
        fold: number of each row's fold, shape (N,).
    """

    table: pd.DataFrame
    fold: Integers

    @classmethod
    def read(cls, files: Sequence[Path]) -> "OutOfFold":
        """Read a file of predictions for each fold.

        Raises:
            UserError: a file that cannot be read, shares a patient with another file, or has
                other findings.
        """
        tables = [read_predictions(file) for file in files]
        findings = findings_of(tables[0].columns, what=str(files[0]))
        file_of: dict[str, Path] = {}
        for file, table in zip(files, tables, strict=True):
            if (own := findings_of(table.columns, what=str(file))) != findings:
                raise UserError(f"{file}: its findings, {differing(own, findings)}: of {files[0]}")
            patients = set(table["patient_id"])
            if both := sorted(patients & file_of.keys()):
                raise UserError(
                    f"{file_of[both[0]]} and {file} share "
                    f"{terminal.counted(len(both), 'patient')}, such as {shown(both[0])}: give the "
                    "predictions_val.csv of each fold of one cross-validation, once"
                )
            file_of |= dict.fromkeys(patients, file)
        fold = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        return cls(pd.concat(tables, join="inner", ignore_index=True), fold)

    @property
    def spread(self) -> str:
        """One line with the macro AUROC within each fold."""
        macro: list[float | None] = []
        for number in range(int(self.fold.max()) + 1):
            images = ScoredImages.of(self.table[self.fold == number])
            ones = np.ones(len(images.table))
            pairs = zip(images.scores.T, images.labels.T, strict=True)
            aurocs = [Ranking.of(scores, labels).auroc(ones) for scores, labels in pairs]
            known = [auroc for auroc in aurocs if not np.isnan(auroc)]
            macro.append(float(np.mean(known)) if known else None)
        each = ", ".join(terminal.decimal(value) for value in macro)
        return (
            f"out-of-fold predictions of {len(macro)} models, pooled; macro AUROC within each "
            f"fold: {each}"
        )


@dataclass(frozen=True)
class OutOfFoldMetadata(MetadataModel):
    """For each image, the metadata baseline fitted on the images of the other folds.

    Attributes:
        by_fold: the baseline of each fold.
        fold_of: the fold of each image, by name.
    """

    by_fold: tuple[MetadataModel, ...]
    fold_of: dict[str, int]

    @classmethod
    def of(cls, predictions: OutOfFold) -> "OutOfFoldMetadata":
        """Fit each fold's baseline on the rows of the other folds, its model's training images."""
        table, fold = predictions.table, predictions.fold
        findings = findings_of(table.columns, what="predictions")
        labelled = table.rename(columns={f"{LABEL}{name}": name for name in findings})
        models = tuple(
            MetadataModel.fit(labelled[fold != number], findings)
            for number in range(int(fold.max()) + 1)
        )
        undefined = {name: why for one in models for name, why in one.undefined.items()}
        fold_of = dict(zip(table["image"], fold.tolist(), strict=True))
        return cls(len(table), {}, undefined, models, fold_of)

    def log_odds(self, table: pd.DataFrame) -> dict[str, Floats]:
        """Out-of-fold log odds (N,) of each finding that has a regression in every fold."""
        own = table["image"].map(self.fold_of).to_numpy(), np.arange(len(table))
        odds = [model.log_odds(table) for model in self.by_fold]
        known = [name for name in odds[0] if name not in self.undefined]
        return {name: np.stack([one[name] for one in odds])[own] for name in known}
