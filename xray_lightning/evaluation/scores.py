"""Every score of a table of predictions that has an interval, under any draw of its patients."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xray_lightning.evaluation.bootstrap import Bools, Floats, Integers, Ranking
from xray_lightning.evaluation.scored_images import ScoredImages

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
