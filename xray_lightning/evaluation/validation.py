"""The validation predictions that operating points and calibration are fitted on, checked."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.arrays import Bools, Floats
from xray_lightning.evaluation.scored_images import LABEL, PROBABILITY, findings_of

SIDE = "val"

NO_POSITIVES = "no validation image has the finding"
NO_NEGATIVES = "every validation image has the finding"
SAME_SCORE = "all validation images have the same score"


@dataclass(frozen=True)
class Validation:
    """Probabilities and labels of the validation images.

    Attributes:
        findings: in the order of the columns.
        scores: probabilities, shape (N, findings).
        labels: whether the finding is there, shape (N, findings).
    """

    findings: tuple[str, ...]
    scores: Floats
    labels: Bools

    @classmethod
    def of(cls, predictions: pd.DataFrame, *, purpose: str) -> "Validation":
        """Take the arrays of a table whose `split` is "val" in every row, and of no other.

        What is fitted must not have seen the test images, and was not trained on these.

        Args:
            predictions: one row per image with columns `split`, and for each finding
                `prob_<Finding>` in 0..1 and `label_<Finding>` of 0 or 1.
            purpose: what is fitted, for messages.

        Raises:
            UserError: another split, a missing column, no rows, a label other than 0 and 1.
            RunFailedError: a probability that is not a number in 0..1.
        """
        findings = findings_of(predictions.columns, what=f"{purpose}: the predictions")
        probabilities = [f"{PROBABILITY}{finding}" for finding in findings]
        truths = [f"{LABEL}{finding}" for finding in findings]
        if "split" not in predictions:
            raise UserError(f"{purpose}: the predictions have no column split")
        if predictions.empty:
            raise UserError(f"{purpose}: no validation images; choose a split that has some")
        others = sorted(set(predictions["split"].astype(str)) - {SIDE})
        if others:
            raise UserError(
                f"{purpose}: fitted on the split {SIDE!r} alone, and the predictions hold "
                f"{', '.join(map(repr, others))}"
            )
        scores = _numbers(predictions[probabilities], purpose=purpose)
        labels = _numbers(predictions[truths], purpose=purpose)
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN neither
            raise RunFailedError(f"{purpose}: a probability is NaN or outside 0..1; nothing fitted")
        if not np.isin(labels, (0, 1)).all():
            raise UserError(f"{purpose}: a label_ column holds a value other than 0 and 1")
        return cls(findings=findings, scores=scores, labels=labels == 1)


def one_sided(labels: Bools) -> str | None:
    """Why nothing can be fitted to labels (N,), or None where both classes are there."""
    if not labels.any():
        return NO_POSITIVES
    return NO_NEGATIVES if labels.all() else None


def _numbers(columns: pd.DataFrame, *, purpose: str) -> Floats:
    try:
        return columns.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise UserError(f"{purpose}: the predictions hold text for a number: {error}") from error
