"""A table of predictions as checked arrays, in an order that does not depend on the table's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.arrays import Bools, Floats, Integers

# What the columns of a finding start with.
PROBABILITY, LABEL = "prob_", "label_"

# With few patients in a class resampling sees too little of what might have been drawn. Simulated
# (400 patients, true AUROC 0.69), the 95 % interval of AUROC holds the truth in 50 % of the cases
# with 2 positive patients, 73 % with 3, 86 % with 5, 92 % with 10 and 94 % with 20.
ENOUGH_PATIENTS = 10
# An average over findings is steadier. Still, a class held by one patient never varies among the
# resamples that hold it.
SEVERAL_PATIENTS = 2


@dataclass(frozen=True)
class ScoredImages:
    """Predictions of N images as arrays.

    Images are sorted by name and patients numbered by sorted id, both as text, so that any number
    of ranks and a table read back from a file give the same figures to the last digit.

    Attributes:
        table: the predictions in the order of the arrays.
        findings: those that the table has columns of, in their order.
        scores: probabilities, shape (N, findings).
        labels: whether each image has each finding, shape (N, findings).
        patients: number of each image's patient, from 0, shape (N,).
    """

    table: pd.DataFrame
    findings: tuple[str, ...]
    scores: Floats
    labels: Bools
    patients: Integers

    @classmethod
    def of(cls, predictions: pd.DataFrame) -> "ScoredImages":
        """Check the table and take its arrays.

        Raises:
            UserError: a missing column, an empty table, or a label other than 0 and 1.
            RunFailedError: a probability that is not a number in 0..1, or an image twice.
        """
        findings = findings_of(predictions.columns, what="predictions")
        _check_rows(predictions)
        names = np.array([str(name) for name in predictions["image"]], dtype=object)
        table = predictions.iloc[np.argsort(names, kind="stable")].reset_index(drop=True)
        ids = np.array([str(patient) for patient in table["patient_id"]], dtype=object)
        return cls(
            table=table,
            findings=findings,
            scores=_scores(table, findings),
            labels=_labels(table, findings),
            patients=pd.factorize(ids, sort=True)[0].astype(np.int64),
        )

    @property
    def count(self) -> int:
        """How many patients there are."""
        return int(self.patients.max()) + 1

    def enough(
        self, images: Bools | None = None, *, least: int = ENOUGH_PATIENTS
    ) -> tuple[Bools, Bools]:
        """Whether enough patients have each finding, and whether enough lack it.

        Args:
            images: those that count, shape (N,); None for all.
            least: how many patients are enough.

        Returns:
            Two arrays of shape (findings,). A patient with images of both kinds counts for both.
        """
        kept = np.ones(len(self.patients), dtype=bool) if images is None else images
        labels, patients = self.labels[kept], self.patients[kept]
        return self._held(labels, patients) >= least, self._held(~labels, patients) >= least

    def _held(self, flags: Bools, patients: Integers) -> Integers:
        """How many patients have images with each flag, shape (findings,)."""
        held = [np.bincount(patients[column], minlength=self.count) for column in flags.T]
        counts: Integers = np.count_nonzero(held, axis=1)
        return counts


def findings_of(columns: Iterable[object], *, what: str) -> tuple[str, ...]:
    """The findings F of the columns prob_F, in their order; each needs a column label_F.

    Raises:
        UserError: names what lacks, and what the columns are of.
    """
    names = [str(column) for column in columns]
    by_kind = [
        [name.removeprefix(kind) for name in names if name.startswith(kind)]
        for kind in (PROBABILITY, LABEL)
    ]
    probabilities, labels = by_kind
    missing = [f"{PROBABILITY}{one}" for one in labels if one not in probabilities]
    missing += [f"{LABEL}{one}" for one in probabilities if one not in labels]
    if missing:
        raise UserError(f"{what}: no column {missing[0]} ({len(missing)} missing in all)")
    if not probabilities:
        raise UserError(
            f"{what}: no column {PROBABILITY}<Finding>; predictions have one of each finding"
        )
    return tuple(probabilities)


def _check_rows(predictions: pd.DataFrame) -> None:
    missing = [column for column in ("image", "patient_id") if column not in predictions]
    if missing:
        raise UserError(f"predictions: no column {missing[0]} ({len(missing)} missing in all)")
    if predictions.empty:
        raise UserError("predictions: no rows, nothing to evaluate")
    if predictions["patient_id"].isna().any():
        count = int(predictions["patient_id"].isna().sum())
        raise UserError(f"predictions: {count} rows without patient_id, which intervals need")
    twice = predictions["image"].duplicated()
    if twice.any():
        first = predictions.loc[twice, "image"].iloc[0]
        raise RunFailedError(
            f"predictions: {int(twice.sum())} images are there twice, such as {first}; "
            "each must count once"
        )


def _scores(table: pd.DataFrame, findings: Sequence[str]) -> Floats:
    scores = _numbers(table, PROBABILITY, findings)
    bad = ~(np.isfinite(scores) & (scores >= 0) & (scores <= 1))
    if bad.any():
        raise RunFailedError(
            f"predictions: {int(bad.sum())} of {bad.size} probabilities are NaN, infinite or "
            f"outside 0..1, in {int(bad.any(axis=1).sum())} of {len(bad)} images; no score given"
        )
    return scores


def _labels(table: pd.DataFrame, findings: Sequence[str]) -> Bools:
    labels = _numbers(table, LABEL, findings)
    right = np.isin(labels, (0, 1)).all(axis=0)
    if not right.all():
        column = f"{LABEL}{findings[int(np.argmin(right))]}"
        raise UserError(f"predictions: column {column} holds a value other than 0 and 1")
    present: Bools = labels == 1
    return present


def _numbers(table: pd.DataFrame, kind: str, findings: Sequence[str]) -> Floats:
    try:
        return table[[f"{kind}{finding}" for finding in findings]].to_numpy(
            dtype=np.float64, na_value=np.nan
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"predictions: a {kind} column holds text: {error}") from error
