"""Scores of predictions, plain and in each resample of the patients, ready to be paired."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import (
    FEW_OF_ALL,
    FEW_PATIENTS,
    FEW_WITH,
    FEW_WITHOUT,
    NO_FINDINGS,
    ONE_PATIENT,
    Numbers,
    Ranking,
    Statistic,
    mean_of_defined,
    resampled,
    share,
)
from xray_lightning.runs.predictions import (
    SEVERAL_PATIENTS,
    Bools,
    Floats,
    Integers,
    ScoredImages,
    one_class,
)

# The paper's decision threshold: for label accuracy and findings without an operating point.
THRESHOLD = 0.5

MACRO = {"auroc_macro": "auroc", "average_precision_macro": "average_precision"}
OVERALL = ("label_accuracy", "brier_macro")
SCORES = (*MACRO, *OVERALL)  # those that tables are compared by

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
            counts=confusion_by_patient(images, scores >= cuts),
            sums=sums_by_patient(images, np.column_stack([np.ones(rows), right, *errors])),
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
        scores = {
            "auroc": ranked[:, 0],
            "average_precision": ranked[:, 1],
            "auroc_micro": np.array([self.micro.auroc(weights)]),
            **rates(confusion),
            "label_accuracy": np.array([right / (labels * len(self.rankings))]),
        }
        for name, error in zip(("brier_macro", "calibrated_brier_macro"), errors, strict=False):
            scores[name] = np.array([error / (labels * len(self.rankings))])
        return scores


def sums_by_patient(images: ScoredImages, values: Numbers) -> Numbers:
    """Sums of values (N, ...) over the images of each patient, shape (patients, ...)."""
    sums = np.zeros((images.count, *values.shape[1:]), dtype=values.dtype)
    np.add.at(sums, images.patients, values)
    return sums


def confusion_by_patient(images: ScoredImages, called: Bools) -> Integers:
    """Each patient's confusion counts of images, as in `COUNTS`, shape (patients, 4, findings).

    Args:
        called: whether each finding is called in each image, shape (N, findings).
    """
    labels = images.labels
    cells = [called & labels, called & ~labels, ~called & labels, ~called & ~labels]
    return sums_by_patient(images, np.stack(cells, axis=1).astype(np.int64))


def rates(confusion: Integers) -> dict[str, Floats]:
    """Sensitivity, specificity, PPV and NPV (findings,) of counts (4, findings); NaN: undefined."""
    hits, alarms, missed, passed = confusion
    return {
        "sensitivity": share(hits, hits + missed),
        "specificity": share(passed, passed + alarms),
        "ppv": share(hits, hits + alarms),
        "npv": share(passed, passed + missed),
    }


def too_few(images: ScoredImages) -> dict[str, list[str | None]]:
    """Why there are too few patients for an interval, by score; None where there are enough.

    Returns:
        Lists of length (findings,) or, where the score is one number, of length 1.
    """
    with_it, without = images.enough()
    several = np.logical_and(*images.enough(least=SEVERAL_PATIENTS)).any()
    of_any = (images.labels.any(axis=1), (~images.labels).any(axis=1))
    ranked = unless_enough(with_it & without, FEW_PATIENTS)
    overall = unless_enough([images.count > 1], ONE_PATIENT)
    return {
        "auroc": ranked,
        "average_precision": ranked,
        "sensitivity": unless_enough(with_it, FEW_WITH),
        "specificity": unless_enough(without, FEW_WITHOUT),
        **dict.fromkeys(MACRO, unless_enough([several], FEW_OF_ALL)),
        "auroc_micro": unless_enough(
            [all(len(np.unique(images.patients[kept])) > 1 for kept in of_any)], FEW_OF_ALL
        ),
        **dict.fromkeys((*OVERALL, "calibrated_brier_macro"), overall),
    }


def unless_enough(enough: Iterable[bool | np.bool_], reason: str) -> list[str | None]:
    """`reason` for each false entry, None for each true one."""
    return [None if one else reason for one in enough]


@dataclass(frozen=True)
class TableScores:
    """Scores of a table of predictions; None if undefined. `per_finding` is AUROC.

    `always_negative` is the label accuracy of answering that no image has any finding.
    """

    auroc_macro: float | None
    average_precision_macro: float | None
    label_accuracy: float | None
    always_negative: float
    brier_macro: float | None
    per_finding: dict[str, float | None]


@dataclass(frozen=True)
class Resampled:
    """The scores of one table, and the same scores in each resample.

    The draws depend on the seed and the patients alone: of two tables of the same images, row i is
    of the same draw. Keys of what is given "by score" are the names of `SCORES` and, for AUROC, of
    each finding.

    Attributes:
        findings: those that the macro averages are over.
        plain: by score; NaN where not defined.
        drawn: shape (R,) by score; NaN where not defined.
        undefined: by score, the reason in case it does not exist.
        few: by score, why there are too few patients for an interval; None where there are enough.
    """

    images: int
    patients: int
    findings: tuple[str, ...]
    scores: TableScores
    plain: dict[str, float]
    drawn: dict[str, Floats]
    undefined: dict[str, str | None]
    few: dict[str, str | None]

    @classmethod
    def of(cls, predictions: pd.DataFrame, *, resamples: int, seed: int) -> "Resampled":
        """Score a table; see `Evaluator` for what it holds."""
        images = ScoredImages.of(predictions)
        plain, draws = resampled(
            _paired_statistic(images), patients=images.count, resamples=resamples, seed=seed
        )
        few = too_few(images)
        values = {
            **{name: float(mean_of_defined(plain[kind][None])[0]) for name, kind in MACRO.items()},
            **{name: float(plain[name][0]) for name in OVERALL},
            **dict(zip(images.findings, plain["auroc"].tolist(), strict=True)),
        }
        known = {name: None if np.isnan(value) else value for name, value in values.items()}
        return cls(
            images=len(images.labels),
            patients=images.count,
            findings=tuple(name for name in images.findings if known[name] is not None),
            scores=TableScores(
                **{name: known[name] for name in SCORES},
                always_negative=float(np.mean(~images.labels)),
                per_finding={finding: known[finding] for finding in images.findings},
            ),
            plain=values,
            drawn={
                **{name: mean_of_defined(draws[kind]) for name, kind in MACRO.items()},
                **{name: draws[name][:, 0] for name in OVERALL},
                **dict(zip(images.findings, draws["auroc"].T, strict=True)),
            },
            undefined={
                **dict.fromkeys(MACRO, NO_FINDINGS),
                **dict.fromkeys(OVERALL, None),
                **dict(zip(images.findings, map(one_class, images.labels.T), strict=True)),
            },
            few={
                **{name: few[name][0] for name in SCORES},
                **dict(zip(images.findings, few["auroc"], strict=True)),
            },
        )


def _paired_statistic(images: ScoredImages) -> Statistic:
    """The scores that tables are compared by, as a function of how often each patient counts."""
    scores, labels = images.scores, images.labels
    rankings = [Ranking.of(*columns) for columns in zip(scores.T, labels.T, strict=True)]
    per_image = {
        "label_accuracy": ((scores >= THRESHOLD) == labels).mean(axis=1),  # (N,)
        "brier_macro": np.square(scores - labels).mean(axis=1),
    }

    def statistic(drawn: Integers) -> dict[str, Floats]:
        weights = drawn[images.patients]
        ranked = np.array([ranking.scores(weights) for ranking in rankings])
        # Not by the matrix product, whose rounding changes with the number of threads.
        overall = {
            name: np.array([(weights * values).sum() / weights.sum()])
            for name, values in per_image.items()
        }
        return {"auroc": ranked[:, 0], "average_precision": ranked[:, 1], **overall}

    return statistic
