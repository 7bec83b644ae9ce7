"""The test metrics of results.json, from a table of predictions.

They are exact, count every image once, and say so where a number does not exist.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, check_whole
from xray_lightning.evaluation.bootstrap import Floats, resampled
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.scored_images import ScoredImages
from xray_lightning.evaluation.scores import THRESHOLD, Scores
from xray_lightning.evaluation.subgroups import Subgroups
from xray_lightning.evaluation.summary import Summary
from xray_lightning.evaluation.thresholds import OperatingPoints


class Evaluator:
    """Turns predictions into the `metrics.test` part of results.json.

    Args:
        resamples: patient-level bootstrap resamples behind the 95 % intervals; 0 for none. All
            intervals are of the same resamples.
        seed: of the resamples.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, *, resamples: int = 1000, seed: int = 0) -> None:
        check_whole("evaluation.resamples", resamples, least=0)
        check_whole("evaluation.seed", seed, least=0)
        self.resamples = resamples
        self.seed = seed

    def __call__(
        self,
        predictions: pd.DataFrame,
        *,
        operating_points: OperatingPoints | None = None,
        calibration: Calibration | None = None,
        prevalences: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Compute every metric.

        Args:
            predictions: one row per image with columns `image`, `patient_id`, and for each
                finding `prob_<Finding>` in 0..1 and `label_<Finding>` of 0 or 1; for subgroups
                also `age` (years), `sex` ("M", "F"), `view` ("PA", "AP") and `follow_up` (0 for
                the patient's first image), as far as they are there and known.
            operating_points: at or above which sensitivity, specificity and the confusion counts
                call a finding present; None for 0.5. Label accuracy is always at 0.5, as the
                paper's.
            calibration: of which the `calibrated` block tells what it would change. Everything
                else is of the probabilities as they are.
            prevalences: share of the training images with each finding, for the
                baseline that gives each image the same probabilities; None for no such baseline.

        Returns:
            Plain floats, ints, lists and None, ready for JSON. None stands for a number that does
            not exist; its reason is under `undefined_reason` beside it. `undefined` maps each
            finding without AUROC, left out of both macro averages, to the reason. The order of
            the rows changes nothing.

        Raises:
            UserError: a missing column, an empty table, a label other than 0 and 1, or a cut or
                prevalence that is not a number from 0 to 1 of each finding.
            RunFailedError: a probability that is not a number in 0..1, or an image twice.
        """
        images = ScoredImages.of(predictions)
        cuts = np.full(len(images.findings), THRESHOLD)
        if operating_points is not None:
            cuts = _by_finding(operating_points.cuts, images.findings, what="operating points")
        shares = (
            None
            if prevalences is None
            else _by_finding(prevalences, images.findings, what="prevalences")
        )
        calibrated = None
        if calibration is not None:
            _refuse_others(calibration.slope, images.findings, what="calibration")
            calibrated = calibration.apply(images.scores, findings=images.findings)
        scores = Scores.of(images, cuts=cuts, calibrated=calibrated)
        subgroups = Subgroups.of(images)
        plain, draws = resampled(
            lambda drawn: scores(drawn) | subgroups(drawn),
            patients=images.count,
            resamples=self.resamples,
            seed=self.seed,
        )
        summary = Summary(images, plain, draws)
        rows = summary.per_finding(cuts=cuts, scores=scores)
        figures, missing = summary.overall(rows, scores=scores, prevalences=shares)
        return {
            **figures,
            "undefined": {
                finding: row["undefined_reason"]["auroc"]
                for finding, row in rows.items()
                if row["auroc"] is None
            },
            "undefined_reason": missing,
            "operating_point": _described(operating_points),
            "calibrated": None
            if calibration is None or calibrated is None
            else summary.calibrated(calibration, calibrated),
            "subgroups": subgroups.rows(plain, draws),
            "per_finding": rows,
        }


def _described(points: OperatingPoints | None) -> dict[str, Any] | None:
    """How the cuts were chosen; the cuts themselves are the `threshold` of each finding."""
    if points is None:
        return None
    return {
        "rule": points.rule,
        "target": points.target,
        "images": points.images,
        "undefined": dict(points.undefined),
    }


def _by_finding(values: Mapping[str, float], findings: Sequence[str], *, what: str) -> Floats:
    """A number from 0 to 1 of each finding, in their order, shape (findings,)."""
    _refuse_others(values, findings, what=what)
    numbers = np.array([values[finding] for finding in findings], dtype=np.float64)
    for finding, number in zip(findings, numbers, strict=True):
        if not 0 <= number <= 1:  # NaN neither
            raise UserError(f"{what}: {finding} has {number:g}, which does not lie from 0 to 1")
    return numbers


def _refuse_others(values: Mapping[str, float], findings: Sequence[str], *, what: str) -> None:
    """Refuse what is not of the findings of the predictions."""
    for name in sorted(set(values) ^ set(findings)):
        fault = "missing" if name in findings else "no finding of the predictions"
        raise UserError(f"{what}: {name!r} is {fault}")
