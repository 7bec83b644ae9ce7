"""The test metrics of results.json, from a table of predictions.

They are exact (no binning), count every image once, and say so where a number does not exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.bootstrap import (
    Bools,
    Floats,
    Integers,
    Ranking,
    bootstrap_auroc,
    percentile_interval,
)
from xray_lightning.findings import FINDINGS

# The paper's decision threshold, of label accuracy and of findings without one of their own.
THRESHOLD = 0.5

NO_POSITIVES = "no image has the finding"
NO_NEGATIVES = "every image has the finding"
NO_FINDINGS = "no finding has both images with it and images without it"
FEW_PATIENTS = "needs at least two patients with the finding and two without"
NO_RESAMPLES = "no resamples were asked for"


def auroc(scores: Floats, labels: Bools, weights: Floats | None = None) -> float | None:
    """Area under the ROC curve of scores (N,), ties exact; None where one class is absent."""
    columns = np.ones((len(scores), 1)) if weights is None else weights[:, None]
    value = float(Ranking.of(scores, labels).auroc(columns)[0])
    return None if np.isnan(value) else value


def average_precision(scores: Floats, labels: Bools) -> float | None:
    """Mean precision over the recall steps of scores (N,); None where one class is absent.

    The step-wise sum of (R_n - R_(n-1)) P_n over the distinct scores, without interpolation, as
    scikit-learn's average_precision_score.
    """
    if not labels.any() or labels.all():
        return None
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each run of ties
    hits = np.cumsum(labels[order])[last]
    precision = hits / (last + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


@dataclass(frozen=True)
class _Table:
    """Predictions as arrays over N images and F findings."""

    scores: Floats  # (N, F)
    labels: Bools  # (N, F)
    patients: Integers  # (N,), numbered from 0


class Evaluator:
    """Turns predictions into the `metrics.test` part of results.json.

    Args:
        resamples: patient-level bootstrap resamples behind the intervals; 0 for none.
        seed: of the resamples.
        confidence: of the intervals. It is part of their names: `auroc_ci95` for 0.95.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, *, resamples: int = 1000, seed: int = 0, confidence: float = 0.95) -> None:
        if resamples < 0:
            raise UserError(f"evaluation.resamples={resamples}: must be at least 0")
        if not 0 < confidence < 1:
            raise UserError(f"evaluation.confidence={confidence}: must lie between 0 and 1")
        self.resamples = resamples
        self.seed = seed
        self.confidence = confidence
        self._interval = f"ci{100 * confidence:g}"

    def __call__(
        self, predictions: pd.DataFrame, *, thresholds: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Compute every metric.

        Args:
            predictions: one row per image with columns `image`, `patient_id`, and for each
                finding `prob_<Finding>` in 0..1 and `label_<Finding>` of 0 or 1.
            thresholds: operating point by finding, at or above which sensitivity and specificity
                call it present; 0.5 for those not named. Label accuracy is always at 0.5, as the
                paper's.

        Returns:
            Plain floats, ints, lists and None, ready for JSON. None stands for a number that does
            not exist; its reason is under `undefined_reason` beside it. `undefined` maps each
            finding without AUROC, left out of both macro averages, to the reason.

        Raises:
            UserError: a missing column, an empty table, a label other than 0 and 1, or a
                threshold that is not a number or of an unknown finding.
            RunFailedError: a probability that is not a number in 0..1, or an image twice.
        """
        table = _read(predictions)
        cuts = _cuts(thresholds or {})
        rankings = [
            Ranking.of(table.scores[:, i], table.labels[:, i]) for i in range(len(FINDINGS))
        ]
        resampled = bootstrap_auroc(
            rankings, patients=table.patients, resamples=self.resamples, seed=self.seed
        )
        rows = {
            finding: self._finding(table, i, cut=cuts[finding], resampled=resampled[:, i])
            for i, finding in enumerate(FINDINGS)
        }
        return self._summary(table, rows, resampled)

    def _finding(
        self, table: _Table, column: int, *, cut: float, resampled: Floats
    ) -> dict[str, Any]:
        scores, labels = table.scores[:, column], table.labels[:, column]
        called = scores >= cut
        interval, few = self._ci(table, column, resampled)
        one_class = NO_NEGATIVES if labels.all() else NO_POSITIVES
        row: dict[str, Any] = {
            "auroc": auroc(scores, labels),
            f"auroc_{self._interval}": interval,
            "average_precision": average_precision(scores, labels),
            "positives": int(labels.sum()),
            "threshold": cut,
            "sensitivity": _share(called[labels]),
            "specificity": _share(~called[~labels]),
        }
        row["undefined_reason"] = {
            name: one_class if row["auroc"] is None else few
            for name, value in row.items()
            if value is None
        }
        return row

    def _ci(
        self, table: _Table, column: int, resampled: Floats
    ) -> tuple[list[float] | None, str | None]:
        """The interval of one finding's AUROC, or why there is none."""
        if not self.resamples:
            return None, NO_RESAMPLES
        labels = table.labels[:, column]
        # A class held by one patient never varies among the resamples that hold it: its interval
        # would look narrow just where least is known.
        for side in (labels, ~labels):
            if len(np.unique(table.patients[side])) < 2:
                return None, FEW_PATIENTS
        interval = percentile_interval(resampled, confidence=self.confidence)
        return interval, None if interval else FEW_PATIENTS

    def _summary(
        self, table: _Table, rows: dict[str, dict[str, Any]], resampled: Floats
    ) -> dict[str, Any]:
        undefined = {
            finding: row["undefined_reason"]["auroc"]
            for finding, row in rows.items()
            if row["auroc"] is None
        }
        kept = [finding for finding in rows if finding not in undefined]
        interval = f"auroc_macro_{self._interval}"
        summary: dict[str, Any] = {
            "images": len(table.labels),
            "patients": int(table.patients.max()) + 1,
            "label_accuracy": float(np.mean((table.scores >= THRESHOLD) == table.labels)),
            "always_negative_accuracy": float(np.mean(~table.labels)),
            "auroc_macro": _mean([rows[finding]["auroc"] for finding in kept]),
            "auroc_macro_findings": len(kept),
            interval: self._macro_ci(rows, kept, resampled),
            "auroc_micro": auroc(table.scores.ravel(), table.labels.ravel()),
            "average_precision_macro": _mean([rows[f]["average_precision"] for f in kept]),
        }
        reasons = {name: NO_FINDINGS for name, value in summary.items() if value is None}
        if interval in reasons and kept:
            reasons[interval] = FEW_PATIENTS if self.resamples else NO_RESAMPLES
        if "auroc_micro" in reasons:
            reasons["auroc_micro"] = "all labels are the same"
        return summary | {
            "undefined": undefined,
            "undefined_reason": reasons,
            "per_finding": rows,
        }

    def _macro_ci(
        self, rows: dict[str, dict[str, Any]], kept: Sequence[str], resampled: Floats
    ) -> list[float] | None:
        """The interval of the mean over the findings that each resample holds in both classes."""
        if all(rows[finding][f"auroc_{self._interval}"] is None for finding in kept):
            return None
        values = resampled[:, [FINDINGS.index(finding) for finding in kept]]
        held = ~np.isnan(values)
        sums, counts = np.where(held, values, 0.0).sum(axis=1), held.sum(axis=1)
        macro = sums[counts > 0] / counts[counts > 0]
        return percentile_interval(macro, confidence=self.confidence)


def _read(predictions: pd.DataFrame) -> _Table:
    """Check the table and take its arrays."""
    wanted = ["image", "patient_id", *_columns("prob"), *_columns("label")]
    missing = [column for column in wanted if column not in predictions]
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
    scores, labels = _numbers(predictions, "prob"), _numbers(predictions, "label")
    bad = ~(np.isfinite(scores) & (scores >= 0) & (scores <= 1))
    if bad.any():
        raise RunFailedError(
            f"predictions: {int(bad.sum())} of {bad.size} probabilities are NaN, infinite or "
            f"outside 0..1, in {int(bad.any(axis=1).sum())} of {len(bad)} images; no score given"
        )
    if not np.isin(labels, (0, 1)).all():
        column = _columns("label")[int(np.argmin(np.isin(labels, (0, 1)).all(axis=0)))]
        raise UserError(f"predictions: column {column} holds a value other than 0 and 1")
    patients, _ = pd.factorize(predictions["patient_id"])
    return _Table(scores=scores, labels=labels == 1, patients=patients.astype(np.int64))


def _columns(kind: str) -> list[str]:
    return [f"{kind}_{finding}" for finding in FINDINGS]


def _numbers(predictions: pd.DataFrame, kind: str) -> Floats:
    try:
        return predictions[_columns(kind)].to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise UserError(f"predictions: a {kind}_ column holds text: {error}") from error


def _cuts(thresholds: Mapping[str, float]) -> dict[str, float]:
    unknown = [name for name in thresholds if name not in FINDINGS]
    if unknown:
        raise UserError(f"thresholds: {unknown[0]!r} is no finding")
    cuts = {finding: float(thresholds.get(finding, THRESHOLD)) for finding in FINDINGS}
    for finding, cut in cuts.items():
        if not np.isfinite(cut):
            raise UserError(f"thresholds: {finding} has {cut}, which is no operating point")
    return cuts


def _share(flags: Bools) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
