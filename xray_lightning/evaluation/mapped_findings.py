"""Findings of another label set, each of them the union of some of the model's own findings.

A union is labelled if any of its findings is, and called if any of them reaches its operating
point. Its probability is 1 - (1 - p)(1 - q)..., as if its findings were independent given the
image. They are not quite (an infiltrate often comes with an effusion), so that the probability of a
union is somewhat too high for findings that occur together. It ranks images as the mean of
-log(1 - p) does: unlike the largest p, it rises with the probability of every finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xray_lightning.evaluation.bootstrap import FEW_PATIENTS, Estimate, Ranking, undefined_reasons
from xray_lightning.evaluation.predictive_values import FEW_CALLED, NONE_CALLED, few_patients
from xray_lightning.evaluation.resampled_scores import (
    COUNTS,
    confusion_by_patient,
    rates,
    unless_enough,
)
from xray_lightning.evaluation.resampled_scores import too_few as too_few_to_score
from xray_lightning.runs.predictions import (
    Bools,
    Floats,
    Integers,
    ScoredImages,
    one_class,
)

CALL_SCORES = ("auroc", "sensitivity", "specificity", "ppv")


@dataclass(frozen=True)
class MappedFindings:
    """Which of a model's findings make up each finding of another label set.

    Attributes:
        findings: those of the other label set.
        places: of each, the indices of the model's findings in it.
    """

    findings: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, named: Mapping[str, Sequence[str]], known: Sequence[str]) -> "MappedFindings":
        """From the names that `LabelMap.in_terms_of` gives."""
        order = {name: place for place, name in enumerate(known)}
        return cls(
            tuple(named), tuple(tuple(order[one] for one in ours) for ours in named.values())
        )

    def probabilities(self, single: Floats) -> Floats:
        """Probabilities of the unions (N, K) from those of the model's findings (N, F)."""
        with np.errstate(divide="ignore"):  # log(0) for a probability of 1; the union has 1, too
            absent = np.log1p(-single)
        columns = [
            # A union of one finding has its exact probability.
            single[:, places[0]]
            if len(places) == 1
            else -np.expm1(absent[:, list(places)].sum(axis=1))
            for places in self.places
        ]
        return np.stack(columns, axis=1)

    def any_of(self, single: Bools) -> Bools:
        """Whether any finding of each union is labelled, or called: (N, K) from (N, F)."""
        columns = [single[:, list(places)].any(axis=1) for places in self.places]
        return np.stack(columns, axis=1)

    def images(self, single: ScoredImages) -> ScoredImages:
        """Turn predictions of the model's findings into predictions of the unions."""
        return replace(
            single,
            findings=self.findings,
            scores=self.probabilities(single.scores),
            labels=self.any_of(single.labels),
        )


@dataclass(frozen=True)
class CallScores:
    """AUROC, sensitivity, specificity and PPV of calls, as a function of how often patients count.

    Attributes:
        images: what was scored; its labels are the truth.
        called: whether each finding is called in each image, shape (N, findings).
        rankings: one per finding.
        counts: as `Scores.counts`, shape (patients, 4, findings).
    """

    images: ScoredImages
    called: Bools
    rankings: tuple[Ranking, ...]
    counts: Integers

    @classmethod
    def of(cls, images: ScoredImages, called: Bools) -> "CallScores":
        """Prepare the scores."""
        pairs = zip(images.scores.T, images.labels.T, strict=True)
        return cls(
            images,
            called,
            tuple(Ranking.of(scores, truth) for scores, truth in pairs),
            confusion_by_patient(images, called),
        )

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """By the names of `CALL_SCORES`, shape (findings,); NaN: undefined."""
        weights = drawn[self.images.patients]
        # Not by the matrix product, whose rounding changes with the number of threads.
        found = rates(np.einsum("p,pcf->cf", drawn, self.counts))
        found["auroc"] = np.array([ranking.auroc(weights) for ranking in self.rankings])
        return {name: found[name] for name in CALL_SCORES}

    @property
    def confusion(self) -> dict[str, Integers]:
        """The counts of images by the names of `COUNTS`, shape (findings,)."""
        return dict(zip(COUNTS, self.counts.sum(axis=0), strict=True))

    @property
    def undefined(self) -> dict[str, list[str | None]]:
        """By score, the reason for each finding in case the score does not exist."""
        sides = [one_class(labels) for labels in self.images.labels.T]
        return dict.fromkeys(CALL_SCORES[:3], sides) | {"ppv": [NONE_CALLED] * len(sides)}

    @property
    def too_few(self) -> dict[str, list[str | None]]:
        """Why there are too few patients for an interval, of each finding."""
        few = too_few_to_score(self.images)
        called = [few_patients(self.images, calls, FEW_CALLED) for calls in self.called.T]
        return {name: few[name] for name in CALL_SCORES[:3]} | {"ppv": called}

    @property
    def enough(self) -> list[str | None]:
        """Why too few patients have or lack a finding; None where there are enough of both."""
        having, lacking = self.images.enough()
        return unless_enough(having & lacking, FEW_PATIENTS)


def either(first: Sequence[str | None], second: Sequence[str | None]) -> list[str | None]:
    """The first reason of each finding, or else the second."""
    return [one or other for one, other in zip(first, second, strict=True)]


def figures_of(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Values and intervals by name, and why some are None."""
    figures: dict[str, Any] = {}
    for name, one in found.items():
        figures |= one.figures(name)
    return figures | {"undefined_reason": undefined_reasons(figures, found)}
