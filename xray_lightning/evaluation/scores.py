"""Scores of predictions, plain and in each resample of the patients, ready to be paired."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import (
    FEW_OF_ALL,
    FEW_PATIENTS,
    NO_FINDINGS,
    NO_NEGATIVES,
    NO_POSITIVES,
    NO_RESAMPLES,
    ONE_PATIENT,
    Ranking,
    mean_of_defined,
    resampled,
)
from xray_lightning.runs.predictions import SEVERAL_PATIENTS, Bools, Floats, Integers, ScoredImages

# The paper's decision threshold, of label accuracy and of findings without one of their own.
THRESHOLD = 0.5

_Numbers = TypeVar("_Numbers", Integers, Floats)

COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")


@dataclass(frozen=True)
class Scores:
    """The scores of one table as a function of how often each patient counts.

    Attributes:
        patients: number of each image's patient, shape (N,).
        rankings: one per finding.
        micro: all findings in one ranking.
        counts: of each patient the images that are true positives, false positives, false
            negatives and true negatives of each finding at its cut, shape (patients, 4, findings).
        sums: of each patient the number of images, the number of right labels at 0.5, and the sum
            of the squared errors of the raw and, where there are any, of the calibrated
            probabilities, shape (patients, 3 or 4).
    """

    patients: Integers
    rankings: tuple[Ranking, ...]
    micro: Ranking
    counts: Integers
    sums: Floats

    @classmethod
    def of(cls, images: ScoredImages, *, cuts: Floats, calibrated: Floats | None) -> "Scores":
        """Prepare the scores.

        Args:
            images: the predictions.
            cuts: at or above which each finding is called present, shape (findings,).
            calibrated: calibrated probabilities, shape (N, findings), or None.
        """
        scores, labels = images.scores, images.labels
        rows, findings = scores.shape
        called = scores >= cuts
        cells = [called & labels, called & ~labels, ~called & labels, ~called & ~labels]
        right = ((scores >= THRESHOLD) == labels).sum(axis=1)
        errors = [
            ((probabilities - labels) ** 2).sum(axis=1)
            for probabilities in (scores, calibrated)
            if probabilities is not None
        ]
        return cls(
            patients=images.patients,
            rankings=tuple(Ranking.of(scores[:, i], labels[:, i]) for i in range(findings)),
            micro=Ranking.of(
                scores.ravel(), labels.ravel(), images=np.repeat(np.arange(rows), findings)
            ),
            counts=_by_patient(images, np.stack(cells, axis=1).astype(np.int64)),
            sums=_by_patient(images, np.column_stack([np.ones(rows), right, *errors])),
        )

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """The scores where each patient counts `drawn` (patients,) times.

        Returns:
            Arrays of shape (findings,) or, where the score is one number, (1,); NaN: undefined.
        """
        weights = drawn[self.patients]
        ranked = np.array([ranking.scores(weights) for ranking in self.rankings])
        # Not by the matrix product, whose rounding changes with the number of threads.
        confusion = np.einsum("p,pcf->cf", drawn, self.counts)
        labels, right, *errors = np.einsum("p,ps->s", drawn, self.sums)
        hits, alarms, missed, passed = confusion
        scores = {
            "auroc": ranked[:, 0],
            "average_precision": ranked[:, 1],
            "auroc_micro": np.array([self.micro.auroc(weights)]),
            "sensitivity": _share(hits, hits + missed),
            "specificity": _share(passed, passed + alarms),
            "label_accuracy": np.array([right / (labels * len(self.rankings))]),
        }
        for name, error in zip(("brier_macro", "calibrated_brier_macro"), errors, strict=False):
            scores[name] = np.array([error / (labels * len(self.rankings))])
        return scores

    def confusion(self) -> list[dict[str, int]]:
        """The four counts of each finding over all images."""
        return [dict(zip(COUNTS, map(int, row), strict=True)) for row in self.counts.sum(axis=0).T]


def _by_patient(images: ScoredImages, values: _Numbers) -> _Numbers:
    sums = np.zeros((images.count, *values.shape[1:]), dtype=values.dtype)
    np.add.at(sums, images.patients, values)
    return sums


def _share(part: Integers, whole: Integers) -> Floats:
    shares: Floats = np.full(part.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def prevalence_scores(labels: Bools, prevalences: Floats) -> tuple[float, float]:
    """Label accuracy at 0.5 and macro Brier score of giving each image the same probabilities.

    Args:
        labels: shape (N, findings).
        prevalences: share of the training images with each finding, shape (findings,).
    """
    accuracy = float(np.mean((prevalences >= THRESHOLD) == labels))
    return accuracy, float(np.mean((prevalences - labels) ** 2))


MACRO = {"auroc_macro": "auroc", "average_precision_macro": "average_precision"}
OVERALL = ("label_accuracy", "brier_macro")
SCORES = (*MACRO, *OVERALL)
ONE_CLASS = (NO_POSITIVES, NO_NEGATIVES)


@dataclass(frozen=True)
class TableScores:
    """What predictions score; None where it does not exist. `per_finding` is AUROC.

    `always_negative` is the label accuracy of answering that no image has any finding.
    """

    auroc_macro: float | None
    average_precision_macro: float | None
    label_accuracy: float
    always_negative: float
    brier_macro: float
    per_finding: dict[str, float | None]


@dataclass(frozen=True)
class Resampled:
    """The scores of one table, and the same scores in each resample.

    The draws depend on the seed and the patients alone: of two tables of the same images, row i is
    of the same draw.

    Attributes:
        findings: those that the macro averages are over.
        drawn: shape (R,) by score, and by finding for its AUROC; NaN where not defined.
        why: the reason why a score, or only its interval, does not exist; None where both do.
    """

    images: int
    patients: int
    findings: tuple[str, ...]
    scores: TableScores
    drawn: dict[str, Floats]
    why: dict[str, str | None]

    @classmethod
    def of(cls, predictions: pd.DataFrame, *, resamples: int, seed: int) -> "Resampled":
        """Score a table; see `Evaluator` for what it holds."""
        images = ScoredImages.of(predictions)
        plain, draws = resampled(
            _Statistic.of(images), patients=images.count, resamples=resamples, seed=seed
        )
        per_finding = dict(zip(images.findings, map(_known, plain["auroc"].tolist()), strict=True))
        macro = {name: mean_of_defined(plain[kind][None])[0] for name, kind in MACRO.items()}
        return cls(
            images=len(images.labels),
            patients=images.count,
            findings=tuple(name for name, value in per_finding.items() if value is not None),
            scores=TableScores(
                auroc_macro=_known(macro["auroc_macro"]),
                average_precision_macro=_known(macro["average_precision_macro"]),
                label_accuracy=float(plain["label_accuracy"][0]),
                always_negative=float(np.mean(~images.labels)),
                brier_macro=float(plain["brier_macro"][0]),
                per_finding=per_finding,
            ),
            drawn={
                **{name: mean_of_defined(draws[kind]) for name, kind in MACRO.items()},
                **{name: draws[name][:, 0] for name in OVERALL},
                **dict(zip(images.findings, draws["auroc"].T, strict=True)),
            },
            why=_reasons(images, resamples=resamples),
        )


@dataclass(frozen=True)
class _Statistic:
    """The scores as a function of how often each patient counts.

    Attributes:
        patients: number of each image's patient, shape (N,).
        findings: how many there are.
        rankings: one per finding that some images have and others lack, by its column.
        right: share of each image's labels that are right at 0.5, shape (N,).
        squares: mean squared error of each image's probabilities, shape (N,).
    """

    patients: Integers
    findings: int
    rankings: Mapping[int, Ranking]
    right: Floats
    squares: Floats

    @classmethod
    def of(cls, images: ScoredImages) -> "_Statistic":
        scores, labels = images.scores, images.labels
        both = labels.any(axis=0) & ~labels.all(axis=0)
        rankings = {
            i: Ranking.of(scores[:, i], labels[:, i]) for i in np.flatnonzero(both).tolist()
        }
        right = ((scores >= THRESHOLD) == labels).mean(axis=1)
        squares = np.square(scores - labels).mean(axis=1)
        return cls(images.patients, len(images.findings), rankings, right, squares)

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        weights = drawn[self.patients]
        ranked = np.full((self.findings, 2), np.nan)
        for column, ranking in self.rankings.items():
            ranked[column] = ranking.scores(weights)
        total = weights.sum()
        # Not by the matrix product, whose rounding changes with the number of threads.
        return {
            "auroc": ranked[:, 0],
            "average_precision": ranked[:, 1],
            "label_accuracy": np.array([(weights * self.right).sum() / total]),
            "brier_macro": np.array([(weights * self.squares).sum() / total]),
        }


def _reasons(images: ScoredImages, *, resamples: int) -> dict[str, str | None]:
    """Why a score or its interval does not exist, as the metrics of a single table say it."""
    enough = np.logical_and(*images.enough())
    why: dict[str, str | None] = {}
    for column, finding in enumerate(images.findings):
        labels = images.labels[:, column]
        if labels.all() or not labels.any():
            why[finding] = NO_NEGATIVES if labels.all() else NO_POSITIVES
        elif not resamples:
            why[finding] = NO_RESAMPLES
        else:
            why[finding] = None if enough[column] else FEW_PATIENTS
    macro: str | None = NO_FINDINGS
    if any(reason not in ONE_CLASS for reason in why.values()):
        several = np.logical_and(*images.enough(least=SEVERAL_PATIENTS)).any()
        macro = NO_RESAMPLES if not resamples else None if several else FEW_OF_ALL
    alone = ONE_PATIENT if images.count < 2 else None
    overall = alone if resamples else NO_RESAMPLES
    return why | dict.fromkeys(MACRO, macro) | dict.fromkeys(OVERALL, overall)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
