"""The test metrics of results.json, from a table of predictions.

They are exact, count every image once, and say so where a number does not exist.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, check_whole
from xray_lightning.evaluation.abstention import Abstention, AbstentionScores
from xray_lightning.evaluation.bootstrap import (
    ALL_THE_SAME,
    NAN,
    NO_FINDINGS,
    NO_PREVALENCES,
    Estimate,
    mean_of_defined,
    resampled,
    undefined_reasons,
)
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.decision_curves import DecisionCurves
from xray_lightning.evaluation.grouping import SUBGROUPS, check_subgroups
from xray_lightning.evaluation.metadata_baseline import (
    CombinedModel,
    MetadataModel,
    MetadataScores,
)
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.evaluation.predictive_values import StatedPrevalence, predictive_values
from xray_lightning.evaluation.resampled_scores import COUNTS, MACRO, THRESHOLD, Scores, too_few
from xray_lightning.evaluation.subgroups import Subgroups
from xray_lightning.runs.predictions import Bools, Floats, ScoredImages, one_class

# As many bins of equal width as Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
# The error depends on their number: compare it only with one of 15 bins.
BINS = 15


def reliability(probabilities: Floats, labels: Bools) -> dict[str, Any]:
    """Brier score, expected calibration error and reliability curve of one finding.

    The Brier score is the mean of (probability - label)^2 (Brier, Monthly Weather Review 1950).
    The expected calibration error is the mean over the images of the distance between their bin's
    mean probability and its share of positives (Naeini et al., AAAI 2015), here of the
    probability of the finding, not of the likelier answer. Of a rare finding almost all images lie
    in the lowest bin, so that a small error says little: look at the curve too.

    Args:
        probabilities: in 0..1, shape (N,), N at least 1.
        labels: shape (N,).

    Returns:
        `brier`, `expected_calibration_error`, and `reliability`: each bin that has images, with
        `low` and `high` (a probability on an edge is in the lower bin), `images`,
        `mean_probability` and `share_positive`.
    """
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], probabilities, side="left")
    images = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(images)
    mean = np.bincount(bins, weights=probabilities, minlength=BINS)[filled] / images[filled]
    share = np.bincount(bins, weights=labels, minlength=BINS)[filled] / images[filled]
    error = np.sum(images[filled] * np.abs(mean - share)) / len(labels)
    return {
        "brier": float(np.mean((probabilities - labels) ** 2)),
        "expected_calibration_error": float(error),
        "reliability": [
            {
                "low": float(edges[place]),
                "high": float(edges[place + 1]),
                "images": int(images[place]),
                "mean_probability": float(mean[i]),
                "share_positive": float(share[i]),
            }
            for i, place in enumerate(filled)
        ],
    }


_OF_FINDING = ("auroc", "average_precision", "sensitivity", "specificity")

# Macro averages beside AUROC, by name: AUROC of metadata alone, the model's gain over it, AUROC of
# metadata and model combined, its gain over metadata, and AUROC over pairs of images of the same
# view, in which the view cannot help.
_MACRO_BESIDE = {
    "metadata_auroc_macro": "metadata_auroc",
    "gain_over_metadata_macro": "gain_over_metadata",
    "combined_auroc_macro": "combined_auroc",
    "gain_of_combined_macro": "gain_of_combined",
    "auroc_within_view_macro": "auroc_within_view",
}
NO_VIEW = "no two images of the same known view, one with the finding and one without"

Draws = Mapping[str, Floats]  # by score
Estimates = Mapping[str, Sequence[Estimate]]  # by score: one per finding, or one over all
Rows = Mapping[str, Mapping[str, Any]]  # by finding


def _estimates(
    images: ScoredImages, plain: Draws, draws: Draws, *, metadata: MetadataScores
) -> Estimates:
    """Every score with its interval.

    Args:
        images: the predictions.
        plain: what `Scores` gives of the table itself.
        draws: what it gives of each resample, with a first axis of the resamples.
        metadata: what gave the scores of the metadata baseline.
    """
    few = too_few(images)
    beside = {
        **metadata.undefined,
        "auroc_within_view": [NO_VIEW] * len(images.findings),
    }
    plain, draws = (
        {
            **one,
            "gain_over_metadata": one["auroc"] - one["metadata_auroc"],
            "gain_of_combined": one["combined_auroc"] - one["metadata_auroc"],
        }
        for one in (plain, draws)
    )
    few |= dict.fromkeys(beside, few["auroc"]) | dict.fromkeys(_MACRO_BESIDE, few["auroc_macro"])
    sides = [one_class(labels) for labels in images.labels.T]
    found = {
        name: Estimate.each(
            plain[name],
            draws[name],
            undefined=beside.get(name, sides if name in _OF_FINDING else [ALL_THE_SAME]),
            few=few[name],
        )
        for name in plain.keys() & few.keys()
    }
    # In each draw, the mean over the findings whose score exists in that draw.
    for macro, name in (MACRO | _MACRO_BESIDE).items():
        defined = ~np.isnan(plain[name if name in beside else "auroc"])
        values = plain[name][defined]
        value = float(values.mean()) if len(values) else NAN
        drawn = mean_of_defined(draws[name][:, defined])
        why = next(filter(None, beside.get(name, ())), NO_FINDINGS)
        found[macro] = [Estimate.of(value, drawn, undefined=why, few=few[macro][0])]
    return found


def _per_finding(
    images: ScoredImages, estimates: Estimates, *, scores: Scores, cuts: Floats
) -> dict[str, dict[str, Any]]:
    """The metrics of each finding; `cuts` (findings,) are those that `scores` was made with."""
    confusion = scores.counts.sum(axis=0)  # (4, findings)
    rows = {}
    for column, finding in enumerate(images.findings):
        labels = images.labels[:, column]
        found = {name: estimates[name][column] for name in (*_OF_FINDING, *_MACRO_BESIDE.values())}
        row = {
            **found["auroc"].figures("auroc"),
            **found["average_precision"].figures("average_precision"),
            **{
                key: value
                for name in _MACRO_BESIDE.values()
                for key, value in found[name].figures(name).items()
            },
            "positives": int(labels.sum()),
            "prevalence": float(labels.mean()),
            "threshold": float(cuts[column]),
            **found["sensitivity"].figures("sensitivity"),
            **found["specificity"].figures("specificity"),
            **dict(zip(COUNTS, confusion[:, column].tolist(), strict=True)),
            **reliability(images.scores[:, column], labels),
        }
        rows[finding] = row | {"undefined_reason": undefined_reasons(row, found)}
    return rows


def _overall(
    images: ScoredImages,
    estimates: Estimates,
    rows: Rows,
    *,
    scores: Scores,
    prevalences: Floats | None,
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """The figures over all findings, and the reason of each that is None.

    Args:
        rows: what `_per_finding` gave.
        prevalences: share of the training images with each finding, shape (findings,), or None.
            The prevalence baseline gives every image these probabilities.
    """
    labels = images.labels
    accuracy = brier = None
    if prevalences is not None:
        accuracy = float(np.mean((prevalences >= THRESHOLD) == labels))
        brier = float(np.mean((prevalences - labels) ** 2))
    names = ("label_accuracy", "auroc_macro", "auroc_micro", "average_precision_macro")
    found = {name: estimates[name][0] for name in (*names, *_MACRO_BESIDE, "brier_macro")}
    once = np.ones(len(labels), dtype=np.int64)
    precision_micro = scores.micro.scores(once).average_precision
    figures = {
        "images": len(labels),
        "patients": images.count,
        "images_without_finding": int((~labels.any(axis=1)).sum()),
        **found["label_accuracy"].figures("label_accuracy"),
        "always_negative_accuracy": float(np.mean(~labels)),
        "prevalence_accuracy": accuracy,
        "auroc_macro_findings": sum(row["auroc"] is not None for row in rows.values()),
        **found["auroc_macro"].figures("auroc_macro"),
        **found["auroc_micro"].figures("auroc_micro"),
        **found["average_precision_macro"].figures("average_precision_macro"),
        "average_precision_micro": None if np.isnan(precision_micro) else precision_micro,
        **{k: v for name in _MACRO_BESIDE for k, v in found[name].figures(name).items()},
        **found["brier_macro"].figures("brier_macro"),
        "prevalence_brier_macro": brier,
        "expected_calibration_error_macro": _mean_error(rows),
    }
    return figures, undefined_reasons(
        figures,
        found,
        prevalence_accuracy=NO_PREVALENCES,
        average_precision_micro=ALL_THE_SAME,
        prevalence_brier_macro=NO_PREVALENCES,
    )


def _joined(rows: Rows, further: Rows) -> dict[str, dict[str, Any]]:
    """The metrics of each finding with further ones, and the reasons of both."""
    key = "undefined_reason"
    return {
        finding: {**row, **further[finding], key: {**row[key], **further[finding].get(key, {})}}
        for finding, row in rows.items()
    }


def _calibrated(
    images: ScoredImages, estimates: Estimates, calibration: Calibration, probabilities: Floats
) -> dict[str, Any]:
    """How well calibrated the calibrated probabilities (N, findings) are."""
    rows = {
        finding: reliability(probabilities[:, i], images.labels[:, i])
        for i, finding in enumerate(images.findings)
    }
    found = {"brier_macro": estimates["calibrated_brier_macro"][0]}
    figures = {
        "method": calibration.method,
        "images": calibration.images,
        "undefined": dict(calibration.undefined),
        **found["brier_macro"].figures("brier_macro"),
        "expected_calibration_error_macro": _mean_error(rows),
        "per_finding": rows,
    }
    return figures | {"undefined_reason": undefined_reasons(figures, found)}


def _mean_error(rows: Rows) -> float:
    return float(np.mean([row["expected_calibration_error"] for row in rows.values()]))


class Evaluator:
    """Turns predictions into the `metrics.test` part of results.json.

    Args:
        resamples: patient-level bootstrap resamples behind the 95 % intervals; 0 for none. All
            intervals are of the same resamples.
        seed: of the resamples.
        prevalence: of the findings at the place of use; an argument of `StatedPrevalence.of`, or
            its result.
        subgroups: the columns that images are grouped by; see `attributes_of`.

    Raises:
        UserError: an option out of range.
    """

    def __init__(
        self,
        *,
        resamples: int = 1000,
        seed: int = 0,
        prevalence: object = None,
        subgroups: Sequence[str] = SUBGROUPS,
    ) -> None:
        check_whole("evaluation.resamples", resamples, least=0)
        check_whole("evaluation.seed", seed, least=0)
        self.resamples = resamples
        self.seed = seed
        if not isinstance(prevalence, StatedPrevalence):
            prevalence = StatedPrevalence.of(prevalence)
        self.prevalence: StatedPrevalence = prevalence
        self.subgroups = check_subgroups(subgroups)

    def __call__(
        self,
        predictions: pd.DataFrame,
        *,
        operating_points: OperatingPoints | None = None,
        calibration: Calibration | None = None,
        abstention: Abstention | None = None,
        prevalences: Mapping[str, float] | None = None,
        metadata: MetadataModel | None = None,
        combined: CombinedModel | None = None,
    ) -> dict[str, Any]:
        """Compute every metric.

        Args:
            predictions: one row per image with columns `image`, `patient_id`, and for each
                finding `prob_<Finding>` in 0..1 and `label_<Finding>` of 0 or 1; for subgroups
                also `age` (years), `sex` ("M", "F"), `view` ("PA", "AP") and `follow_up` (0 for
                the patient's first image), as far as they are there and known, and any further
                column that `subgroups` names.
            operating_points: cuts at or above which a finding is called present, for all metrics
                of calls; None for 0.5. Label accuracy always uses 0.5, as in the paper.
            calibration: for the `calibrated` block and the decision curves; everything else uses
                the raw probabilities. None for no calibration.
            abstention: the thresholds below which the model says no; None for none.
            prevalences: share of the training images with each finding, for the
                baseline that gives each image the same probabilities; None for no such baseline.
            metadata: the baseline that sees no image, fitted on training images; None for none.
            combined: metadata and the model together, fitted on validation; None for none.

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
        stated = self.prevalence.of_findings(images.findings)
        shares = None
        if prevalences is not None:
            shares = _by_finding(prevalences, images.findings, what="prevalences")
        calibrated = None
        if calibration is not None:
            _refuse_others(calibration.slope, images.findings, what="calibration")
            calibrated = calibration.apply(images.scores, findings=images.findings)
        scores = Scores.of(images, cuts=cuts, calibrated=calibrated)
        called = images.scores >= cuts
        subgroups = Subgroups.of(images, called=called, names=self.subgroups)
        baseline = MetadataScores.of(images, metadata, combined)
        if abstention is not None:
            _refuse_others(abstention.low, images.findings, what="abstention")
        silent = AbstentionScores.of(images, abstention, cuts)
        plain, draws = resampled(
            lambda drawn: scores(drawn) | subgroups(drawn) | baseline(drawn) | silent(drawn),
            patients=images.count,
            resamples=self.resamples,
            seed=self.seed,
        )
        estimates = _estimates(images, plain, draws, metadata=baseline)
        rows = _per_finding(images, estimates, scores=scores, cuts=cuts)
        rows = _joined(rows, predictive_values(images, called, plain, draws, stated=stated))
        rows = _joined(rows, silent.rows(plain, draws))
        rows = _joined(rows, self._decision_curves(images, calibration, calibrated))
        figures, missing = _overall(images, estimates, rows, scores=scores, prevalences=shares)
        return {
            **figures,
            "undefined": {
                finding: row["undefined_reason"]["auroc"]
                for finding, row in rows.items()
                if row["auroc"] is None
            },
            "undefined_reason": missing,
            # The cuts themselves are the `threshold` of each finding.
            "operating_point": None
            if operating_points is None
            else {k: v for k, v in operating_points.to_plain().items() if k != "cuts"},
            "abstention": None
            if abstention is None
            else {key: getattr(abstention, key) for key in ("alpha", "confidence", "patients")},
            "calibrated": None
            if calibration is None or calibrated is None
            else _calibrated(images, estimates, calibration, calibrated),
            "subgroups": subgroups.rows(plain, draws),
            "metadata_model": None if metadata is None else metadata.to_plain(),
            "combined_model": None if combined is None else combined.to_plain(),
            "per_finding": rows,
        }

    def _decision_curves(
        self, images: ScoredImages, calibration: Calibration | None, calibrated: Floats | None
    ) -> Rows:
        """The decision curve of each finding, of its calibrated probabilities if it has them."""
        left = images.findings if calibration is None else calibration.undefined
        curves = DecisionCurves.of(images, images.scores if calibrated is None else calibrated)
        found = curves.rows(
            resamples=self.resamples,
            seed=self.seed,
            calibrated=np.array([finding not in left for finding in images.findings]),
        )
        return {finding: {"decision_curve": curve} for finding, curve in found.items()}


def _by_finding(values: Mapping[str, float], findings: Sequence[str], *, what: str) -> Floats:
    """The values in the order of the findings, checked to be in 0..1, shape (findings,)."""
    _refuse_others(values, findings, what=what)
    numbers = np.array([values[finding] for finding in findings], dtype=np.float64)
    for finding, number in zip(findings, numbers, strict=True):
        if not 0 <= number <= 1:  # NaN neither
            raise UserError(f"{what}: {finding} has {number:g}, which does not lie from 0 to 1")
    return numbers


def _refuse_others(values: Mapping[str, float], findings: Sequence[str], *, what: str) -> None:
    """Refuse values whose findings are not exactly those of the predictions."""
    for name in sorted(set(values) ^ set(findings)):
        fault = "missing" if name in findings else "no finding of the predictions"
        raise UserError(f"{what}: {name!r} is {fault}")
