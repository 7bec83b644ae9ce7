"""What was computed, written out for results.json with the reason of whatever is missing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xray_lightning.evaluation.bootstrap import Bools, Floats, interval95, mean_of_defined
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.reliability import reliability
from xray_lightning.evaluation.scored_images import SEVERAL_PATIENTS, ScoredImages
from xray_lightning.evaluation.scores import Scores, prevalence_scores
from xray_lightning.evaluation.undefined import (
    ALL_THE_SAME,
    FEW_OF_ALL,
    FEW_PATIENTS,
    FEW_WITH,
    FEW_WITHOUT,
    NO_FINDINGS,
    NO_NEGATIVES,
    NO_POSITIVES,
    NO_PREVALENCES,
    NO_RESAMPLES,
    NO_SPREAD,
    ONE_PATIENT,
    reasons,
)

Rows = Mapping[str, Mapping[str, Any]]  # by finding

_MACROS = ("auroc", "average_precision")
_FEW = {
    "auroc_ci95": FEW_PATIENTS,
    "average_precision_ci95": FEW_PATIENTS,
    "sensitivity_ci95": FEW_WITH,
    "specificity_ci95": FEW_WITHOUT,
}


class Summary:
    """The scores of one table as plain numbers, each with its interval.

    Args:
        images: the predictions.
        plain: what `Scores` gives of the table itself.
        draws: what it gives of each resample, with a first axis of the resamples.
    """

    def __init__(
        self, images: ScoredImages, plain: Mapping[str, Floats], draws: Mapping[str, Floats]
    ) -> None:
        self.images, self.plain, self.draws = images, plain, draws
        self.with_it, self.without = images.enough()
        self.both = self.with_it & self.without  # the findings whose AUROC has an interval
        several = np.logical_and(*images.enough(least=SEVERAL_PATIENTS))
        self.averaged = bool(several.any())  # whether the macro averages have one
        self.defined = ~np.isnan(plain["auroc"])  # those of the macro averages
        self.no_resamples = None if len(draws["auroc"]) else NO_RESAMPLES
        self.flat: set[tuple[str, int]] = set()  # intervals left out since they have no width

    def per_finding(self, *, cuts: Floats, scores: Scores) -> dict[str, dict[str, Any]]:
        """The metrics of each finding; `cuts` (findings,) are those that `scores` was made with."""
        return {
            finding: self._finding(column, cut=float(cuts[column]), confusion=confusion)
            for column, (finding, confusion) in enumerate(
                zip(self.images.findings, scores.confusion(), strict=True)
            )
        }

    def _finding(self, column: int, *, cut: float, confusion: dict[str, int]) -> dict[str, Any]:
        labels = self.images.labels[:, column]
        row = {
            **self._scored("auroc", column, enough=self.both[column]),
            **self._scored("average_precision", column, enough=self.both[column]),
            "positives": int(labels.sum()),
            "prevalence": float(labels.mean()),
            "threshold": cut,
            **self._scored("sensitivity", column, enough=self.with_it[column]),
            **self._scored("specificity", column, enough=self.without[column]),
            **confusion,
            **reliability(self.images.scores[:, column], labels),
        }
        one_class = NO_NEGATIVES if labels.all() else NO_POSITIVES
        why = {name: self.no_resamples or few for name, few in _FEW.items()}
        for name in ("auroc", "average_precision", "sensitivity", "specificity"):
            if row[name] is None:
                why[name] = why[f"{name}_ci95"] = one_class
        why |= self._flat(column)
        return row | {"undefined_reason": reasons(row, why)}

    def overall(
        self, rows: Rows, *, scores: Scores, prevalences: Floats | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The figures over all findings, and the reason of each that is None.

        Args:
            rows: what `per_finding` gave.
            scores: of the table.
            prevalences: share of the training images with each finding, shape (findings,), or None.
        """
        labels = self.images.labels
        by_prevalence: tuple[float | None, float | None] = (None, None)
        if prevalences is not None:
            by_prevalence = prevalence_scores(labels, prevalences)
        several = self.images.count > 1
        figures = {
            "images": len(labels),
            "patients": self.images.count,
            **self._scored("label_accuracy", enough=several),
            "always_negative_accuracy": float(np.mean(~labels)),
            "prevalence_accuracy": by_prevalence[0],
            "auroc_macro_findings": int(self.defined.sum()),
            **self._macro("auroc"),
            **self._scored("auroc_micro", enough=bool(np.all(self._patients_of_any()))),
            **self._macro("average_precision"),
            "average_precision_micro": _number(scores.micro.plain.average_precision),
            **self._scored("brier_macro", enough=several),
            "prevalence_brier_macro": by_prevalence[1],
            "expected_calibration_error_macro": _mean_error(rows),
        }
        return figures, reasons(figures, self._why(figures) | self._flat(0))

    def _why(self, figures: Mapping[str, Any]) -> dict[str, str]:
        few = self.no_resamples or FEW_OF_ALL
        why = {
            **dict.fromkeys(("prevalence_accuracy", "prevalence_brier_macro"), NO_PREVALENCES),
            **dict.fromkeys(("label_accuracy_ci95", "brier_macro_ci95"), self._one_patient()),
        }
        for name in _MACROS:
            why[f"{name}_macro"] = NO_FINDINGS
            why[f"{name}_macro_ci95"] = few if self.defined.any() else NO_FINDINGS
            why[f"{name}_micro"] = ALL_THE_SAME
        why["auroc_micro_ci95"] = ALL_THE_SAME if figures["auroc_micro"] is None else few
        return why

    def calibrated(self, calibration: Calibration, probabilities: Floats) -> dict[str, Any]:
        """How well calibrated the calibrated probabilities (N, findings) are."""
        rows = {
            finding: reliability(probabilities[:, i], self.images.labels[:, i])
            for i, finding in enumerate(self.images.findings)
        }
        name, several = "calibrated_brier_macro", self.images.count > 1
        interval = self._interval("brier_macro", self.draws[name][:, 0], enough=several)
        figures = {
            "method": calibration.method,
            "images": calibration.images,
            "undefined": dict(calibration.undefined),
            "brier_macro": _number(self.plain[name][0]),
            "brier_macro_ci95": interval,
            "expected_calibration_error_macro": _mean_error(rows),
            "per_finding": rows,
        }
        why = {"brier_macro_ci95": self._one_patient()}
        return figures | {"undefined_reason": reasons(figures, why | self._flat(0))}

    def _scored(self, name: str, column: int = 0, *, enough: bool) -> dict[str, Any]:
        """A score and its interval, which it has where `enough` patients are there."""
        interval = self._interval(name, self.draws[name][:, column], column, enough=enough)
        return {name: _number(self.plain[name][column]), f"{name}_ci95": interval}

    def _interval(
        self, name: str, draws: Floats, column: int = 0, *, enough: bool
    ) -> list[float] | None:
        interval = interval95(draws) if enough else None
        if enough and interval is None and len(draws):
            self.flat.add((f"{name}_ci95", column))
        return interval

    def _flat(self, column: int) -> dict[str, str]:
        return {name: NO_SPREAD for name, of in self.flat if of == column}

    def _macro(self, name: str) -> dict[str, Any]:
        """The mean over the findings that have the score, in each draw over those it has in it."""
        values = self.plain[name][self.defined]
        draws = mean_of_defined(self.draws[name][:, self.defined])
        return {
            f"{name}_macro": float(values.mean()) if len(values) else None,
            f"{name}_macro_ci95": self._interval(f"{name}_macro", draws, enough=self.averaged),
        }

    def _one_patient(self) -> str:
        return self.no_resamples or ONE_PATIENT

    def _patients_of_any(self) -> Bools:
        """Whether two patients or more have some finding, and whether two lack one."""
        labels, patients = self.images.labels, self.images.patients
        sides = (labels.any(axis=1), (~labels).any(axis=1))
        return np.array([len(np.unique(patients[side])) > 1 for side in sides])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean_error(rows: Rows) -> float:
    return float(np.mean([row["expected_calibration_error"] for row in rows.values()]))
