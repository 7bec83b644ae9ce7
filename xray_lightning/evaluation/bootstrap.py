"""Resamples of patients, and AUROC and average precision under them.

Images of one patient look alike and share findings, so that resampling images would give
intervals that are too narrow. Patients are drawn with replacement instead (the cluster bootstrap:
Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8). A draw is a weight
for each patient, how often it was drawn, and every score is computed with these weights, so that
nothing is copied or sorted again:

    rankings = [Ranking.of(scores[:, i], labels[:, i]) for i in range(14)]
    for drawn in patient_draws(count, resamples=1000, seed=0):
        weights = drawn[patients]  # of each image, (N,)
        resampled = [ranking.auroc(weights) for ranking in rankings]

Two quantities of the same draws are paired: their difference has an interval of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from xray_lightning.runs.predictions import Bools, Floats, Integers

NAN = float("nan")

# Why a score, or only its interval, does not exist.
NO_FINDINGS = "no finding has both images with it and images without it"
ALL_THE_SAME = "all labels are the same"
FEW_PATIENTS = "needs at least ten patients with the finding and ten without"
FEW_WITH = "needs at least ten patients with the finding"
FEW_WITHOUT = "needs at least ten patients without the finding"
FEW_OF_ALL = "needs a finding that at least two patients have and two lack"
ONE_PATIENT = "needs at least two patients"
# If all resamples agree, an interval of zero width would claim certainty from too little data.
NO_SPREAD = "every resample gives the same, which does not tell how sure that is"
NO_RESAMPLES = "no resamples were asked for"
NO_PREVALENCES = "no prevalences of the training images were given"

Numbers = TypeVar("Numbers", Integers, Floats)

# Takes how often each patient counts, shape (patients,); returns named arrays.
Statistic = Callable[[Integers], Mapping[str, Floats]]


def patient_draws(patients: int, *, resamples: int, seed: int) -> Iterator[Integers]:
    """Draw as many patients as there are, with replacement, again and again.

    The same arguments give the same draws, so that two tables of the same patients can be compared
    draw by draw.

    Args:
        patients: how many there are.
        resamples: how many draws.
        seed: of the draws.

    Yields:
        How often each patient was drawn, shape (patients,), which sums to `patients`. Indexing it
        with the number of each image's patient gives the weights of the images.
    """
    random = np.random.default_rng(seed)
    equal = np.full(patients, 1 / patients)
    for _ in range(resamples):
        yield random.multinomial(patients, equal)


def resampled(
    statistic: Statistic, *, patients: int, resamples: int, seed: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """A statistic of the table itself and of each draw of its patients.

    Args:
        statistic: of how often each patient counts; it gives named arrays of fixed shapes.
        patients, resamples, seed: see `patient_draws`.

    Returns:
        The arrays with every patient counted once; and those of all draws, with a first axis of
        length `resamples`. Row i of each array, whatever its name, belongs to the same draw.
    """
    plain = dict(statistic(np.ones(patients, dtype=np.int64)))
    draws: dict[str, Floats] = {
        name: np.empty((resamples, *value.shape)) for name, value in plain.items()
    }
    for row, drawn in enumerate(patient_draws(patients, resamples=resamples, seed=seed)):
        for name, value in statistic(drawn).items():
            draws[name][row] = value
    return plain, draws


class RankScores(NamedTuple):
    """Both scores of one ranking; NaN where no image has the finding, or every image has it."""

    auroc: float
    average_precision: float


@dataclass(frozen=True)
class Ranking:
    """One finding's sorted scores, from which AUROC and AP follow for any weights of the images.

    Attributes:
        positives: the image index of each score with the finding, by rising score, shape (P,).
        negatives: the image index of each score without it, by rising score, shape (M,).
        below: how many negatives score lower than each positive, shape (P,).
        not_above: how many negatives score lower or the same, shape (P,).
        first: place of the first positive with the same score as each positive, shape (P,).
    """

    positives: Integers
    negatives: Integers
    below: Integers
    not_above: Integers
    first: Integers

    @classmethod
    def of(cls, scores: Floats, labels: Bools, *, images: Integers | None = None) -> "Ranking":
        """Sort scores with their labels.

        Args:
            scores: shape (S,), no NaN.
            labels: whether each has the finding, shape (S,).
            images: the index of the image whose weight each score takes, shape (S,); None if
                score i belongs to image i. Needed to rank a part of the images, or several
                findings in one ranking (micro average).
        """
        if images is None:
            images = np.arange(len(scores))
        with_it, without = np.flatnonzero(labels), np.flatnonzero(~labels)
        with_it = with_it[np.argsort(scores[with_it], kind="stable")]
        without = without[np.argsort(scores[without], kind="stable")]
        positive, negative = scores[with_it], scores[without]
        return cls(
            positives=images[with_it],
            negatives=images[without],
            below=np.searchsorted(negative, positive, side="left"),
            not_above=np.searchsorted(negative, positive, side="right"),
            first=np.searchsorted(positive, positive, side="left"),
        )

    def auroc(self, weights: npt.NDArray[Any]) -> float:
        """Area under the ROC curve, each image counting `weights` (N,) times.

        It is the weighted share of (positive, negative) pairs in which the positive scores
        higher, a tie counting one half (Mann-Whitney; Hanley & McNeil, Radiology 1982). Equal to
        scikit-learn's roc_auc_score; NaN where one class has no weight.
        """
        return self._auroc(weights[self.positives], sums_before(weights[self.negatives]))

    def scores(self, weights: npt.NDArray[Any]) -> RankScores:
        """AUROC and average precision, each image counting `weights` (N,) times.

        Average precision is the step-wise sum of (R_n - R_(n-1)) P_n over the distinct scores,
        without interpolation: equal to scikit-learn's average_precision_score.
        """
        positive = weights[self.positives]
        before = sums_before(weights[self.negatives])  # (M + 1,)
        auroc = self._auroc(positive, before)
        if np.isnan(auroc):
            return RankScores(NAN, NAN)
        # Weight of the positives and of all images that score at least as high as each positive.
        hits = positive.sum() - sums_before(positive)[self.first]
        called = hits + (before[-1] - before[self.below])
        # If `called` is 0, the weight of the positive itself is 0, too: any divisor will do.
        precision = hits / np.where(called > 0, called, 1)
        return RankScores(auroc, float((positive * precision).sum() / positive.sum()))

    def _auroc(self, positive: npt.NDArray[Any], before: npt.NDArray[Any]) -> float:
        pairs = float(positive.sum()) * float(before[-1])
        if not pairs > 0:
            return NAN
        wins = before[self.below] + before[self.not_above]  # twice the wins: no halves for ties
        # Not by the inner product, whose rounding changes with the number of threads.
        return float((positive * wins).sum()) / 2 / pairs


def sums_before(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cumulative sums of the weights (M,), from 0 to the sum of all, shape (M + 1,)."""
    import torch  # late: reading an exported model's thresholds should not wait for it

    sums = np.empty(len(weights) + 1, dtype=weights.dtype)
    sums[0] = 0
    # Most of the time is spent here. 25,000 integers on a Xeon core: 8 us; NumPy's cumsum 55 us.
    torch.cumsum(torch.from_numpy(weights), 0, out=torch.from_numpy(sums[1:]))
    return sums


def interval95(values: npt.NDArray[Any]) -> list[float] | None:
    """The central 95 % of the resampled values (R,) that are not NaN, or None without any.

    None, too, if both ends are equal: an interval of zero width would claim certainty.

    The percentile interval [low, high] of Efron & Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 13.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)] if low < high else None


def share(part: Numbers, whole: Numbers) -> Floats:
    """Part divided by whole, elementwise; NaN where the whole is 0."""
    shares: Floats = np.full(part.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis of (R, F) without NaN, shape (R,); NaN where all values are NaN."""
    held = ~np.isnan(values)
    count = held.sum(axis=-1)
    means: Floats = np.full(count.shape, np.nan)
    np.divide(np.where(held, values, 0.0).sum(axis=-1), count, out=means, where=count > 0)
    return means


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval over patients.

    Attributes:
        value: None where the score does not exist.
        ci95: low and high; None where there is no interval.
        reason: why one of them is None; None where both are there.
    """

    value: float | None
    ci95: tuple[float, float] | None
    reason: str | None = None

    @classmethod
    def of(
        cls, value: float, drawn: Floats, *, undefined: str | None = None, few: str | None = None
    ) -> "Estimate":
        """The interval of a score from its resamples.

        Args:
            value: of the table itself; NaN where it does not exist.
            drawn: of each resample, shape (R,); NaN where it does not exist.
            undefined: the reason, where `value` is NaN.
            few: why there are too few patients for an interval; None where there are enough.
        """
        if np.isnan(value):
            return cls(None, None, undefined)
        if few or not len(drawn):
            return cls(float(value), None, few if len(drawn) else NO_RESAMPLES)
        interval = interval95(drawn)
        if interval is None:
            return cls(float(value), None, NO_SPREAD)
        return cls(float(value), (interval[0], interval[1]))

    @classmethod
    def each(
        cls,
        plain: Floats,
        draws: Floats,
        *,
        undefined: Sequence[str | None],
        few: Sequence[str | None],
    ) -> "list[Estimate]":
        """The estimate of each finding.

        Args:
            plain: shape (findings,).
            draws: shape (R, findings).
            undefined, few: see `of`, of each finding.
        """
        return [
            cls.of(float(value), drawn, undefined=why, few=reason)
            for value, drawn, why, reason in zip(plain, draws.T, undefined, few, strict=True)
        ]

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)

    def figures(self, name: str) -> dict[str, Any]:
        """For JSON: the value as `name`, the interval as `name`_ci95."""
        return {name: self.value, f"{name}_ci95": None if self.ci95 is None else list(self.ci95)}

    def to_plain(self) -> dict[str, Any]:
        """For JSON, for a difference of two scores: with whether the interval excludes zero."""
        return {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "excludes_zero": self.excludes_zero,
            "undefined_reason": self.reason,
        }


def undefined_reasons(
    figures: Mapping[str, Any], estimates: Mapping[str, Estimate], **further: str
) -> dict[str, str | None]:
    """The reason of each figure that is None, in the order of the figures.

    Args:
        figures: by name, with those that `Estimate.figures` gives.
        estimates: by the same names.
        further: the reason of each other figure that can be None.
    """
    why: dict[str, str | None] = dict(further)
    for name, found in estimates.items():
        why |= dict.fromkeys((name, f"{name}_ci95"), found.reason)
    return {name: why[name] for name, value in figures.items() if value is None}
