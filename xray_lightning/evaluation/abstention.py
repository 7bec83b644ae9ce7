"""Abstention: two thresholds per finding, between which the model answers neither yes nor no.

The model says yes at or above the operating point and no below a lower threshold. The lower
threshold is the largest one at which, with the requested confidence, less than a share alpha of the
patients it says no to is missed (learn then test: Angelopoulos et al., arXiv 2110.01052, with fixed
sequence testing). A patient's score is the lowest over the patient's images. A patient is missed if
an image that scores below the threshold shows the finding.

The k patients with the lowest scores are tested against alpha by the binomial tail P(Bin(k, alpha)
<= misses), for rising k, until a test fails. Let t be the lowest threshold at which the true share
of misses is alpha or more, and N the number of patients below t. Given N, these are independent
draws from all patients below t, so their misses are Bin(N, p) with p >= alpha. A threshold above t
is chosen only if the test at k = N passes, which has a probability of at most 1 - confidence. The
k of the first test depends on no label.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import ONE_PATIENT, Estimate, share, undefined_reasons
from xray_lightning.evaluation.fitted_value_checks import FittedValues
from xray_lightning.evaluation.operating_points import CLOSEST, OperatingPoints
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import (
    ENOUGH_PATIENTS,
    Bools,
    Floats,
    Integers,
    ScoredImages,
    validation_arrays,
)

FIRST = 5  # the tests start at a fifth of the patients: saying no to fewer is of little use
NEVER_NO = "it says no of no patient"
FEW_NO = "needs at least ten patients whom it says no of"


@dataclass(frozen=True)
class Abstention:
    """The lower threshold of each finding: the model says no where its probability is below.

    Attributes:
        alpha, confidence: see `AbstentionRule`.
        patients: validation patients that it was fitted on.
        low: the lower threshold of each finding, at most its operating point; 0, below which no
            probability lies, for a finding without one.
        undefined: the reason, for each finding without one.
    """

    alpha: float
    confidence: float
    patients: int
    low: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Dicts, text and numbers alone, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object, *, findings: Sequence[str] = FINDINGS) -> "Abstention":
        """Restore what `to_plain` returned, checked against these findings.

        Raises:
            UserError: one line, if `plain` is anything else.
        """
        fitted = FittedValues(plain, findings, "the checkpoint's abstention thresholds")
        return cls(
            alpha=fitted.share("alpha"),
            confidence=fitted.share("confidence"),
            patients=fitted.count("patients"),
            low=fitted.by_finding("low", low=0.0, high=1.0),
            undefined=fitted.undefined(),
        )


@dataclass(frozen=True)
class AbstentionRule:
    """Fits the lower thresholds on validation; see the module's docstring.

    Args:
        alpha: upper limit of the share of missed patients among those the model says no to.
        confidence: probability, over draws of the validation patients, that the limit is kept; it
            holds for each finding separately, not jointly.

    Raises:
        UserError: a value that is not strictly between 0 and 1.
    """

    alpha: float = 0.05
    confidence: float = 0.9

    def __post_init__(self) -> None:
        for key, value in (("alpha", self.alpha), ("confidence", self.confidence)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < 1:
                raise UserError(
                    f"evaluation.abstention.{key}={value} must be a number between 0 and 1; "
                    "evaluation.abstention=null for no abstention"
                )

    def fit(self, predictions: pd.DataFrame, points: OperatingPoints) -> Abstention:
        """Fit on a table of validation predictions; see `validation_arrays`.

        Args:
            predictions: as described there, with `patient_id` as well.
            points: fitted on the same images.
        """
        findings, scores, labels = validation_arrays(predictions, purpose="abstention")
        numbers, known = pd.factorize(predictions["patient_id"].astype(str))
        found: dict[str, float | str] = {}
        for column, finding in enumerate(findings):
            found[finding] = points.undefined.get(finding) or self.threshold(
                scores[:, column], labels[:, column], numbers, high=points.cuts[finding]
            )
        return Abstention(
            alpha=float(self.alpha),
            confidence=float(self.confidence),
            patients=len(known),
            low={f: 0.0 if isinstance(low, str) else low for f, low in found.items()},
            undefined={f: low for f, low in found.items() if isinstance(low, str)},
        )

    def threshold(
        self, scores: Floats, labels: Bools, patients: Integers, *, high: float
    ) -> float | str:
        """The lower threshold for scores and labels (N,), or why there is none.

        Args:
            patients: number of each image's patient, from 0, shape (N,).
            high: upper limit of the threshold, the operating point.
        """
        count = int(patients.max()) + 1
        allowed = misses_allowed(self.alpha, 1 - self.confidence, count)
        enough = np.flatnonzero(allowed >= 0)
        if not len(enough):
            return f"needs more validation patients than {count} to say no of any"
        lowest, lowest_with = (
            np.sort(_least(values, patients, count))
            for values in (scores, np.where(labels, scores, np.inf))
        )
        # The first k, of at least a fifth of the patients, that allows one more miss than k - 1.
        steps = np.flatnonzero(np.diff(allowed, prepend=-1) > 0)
        least = max(enough[0], count / FIRST)
        start = min(steps[steps >= least], default=math.ceil(least))
        above = np.append(lowest[1:], np.inf)  # the score that follows k = 1, 2, ... patients
        told_apart = above - lowest > CLOSEST * above
        told_apart[-1] = True
        sizes = np.flatnonzero(told_apart) + 1
        sizes = sizes[sizes >= start]
        if np.searchsorted(lowest, high, side="left") < start:  # a set that no test is of
            return "its operating point is below every threshold that is tested"
        misses = np.searchsorted(lowest_with, above[sizes - 1], side="left")
        failed = np.flatnonzero(misses > allowed[sizes])
        if len(failed) and failed[0] == 0:
            k = sizes[0]
            return (
                f"of the {k} validation patients with the lowest scores {misses[0]} are missed, "
                f"and at most {allowed[k]} may be"
            )
        k = sizes[failed[0] - 1] if len(failed) else count
        return float(high if k == count else min(high, (lowest[k - 1] + lowest[k]) / 2))


def _least(values: Floats, patients: Integers, count: int) -> Floats:
    least: Floats = np.full(count, np.inf)
    np.minimum.at(least, patients, values)
    return least


@lru_cache(maxsize=64)  # a decision curve asks for two entries per threshold
def misses_allowed(alpha: float, risk: float, most: int) -> Integers:
    """The largest m with P(Bin(k, alpha) <= m) <= risk, for each k from 0 to `most` patients.

    Returns:
        Shape (most + 1,), by k; -1 where not even m = 0 satisfies this.
    """
    allowed = np.full(most + 1, -1, dtype=np.int64)
    m, beyond = -1, 1.0  # beyond: P(Bin(k, alpha) <= m + 1), here for k = 0
    for k in range(most + 1):
        if k > 0:  # P(Bin(k) <= m) = P(Bin(k - 1) <= m) - alpha P(Bin(k - 1) = m)
            beyond -= alpha * _binomial(m + 1, k - 1, alpha)
        while beyond <= risk:
            m += 1
            beyond += _binomial(m + 1, k, alpha)
        allowed[k] = m
    return allowed


def _binomial(hits: int, of: int, share: float) -> float:
    """P(Bin(of, share) = hits)."""
    if hits > of:
        return 0.0
    ways = math.lgamma(of + 1) - math.lgamma(hits + 1) - math.lgamma(of - hits + 1)
    return math.exp(ways + hits * math.log(share) + (of - hits) * math.log1p(-share))


@dataclass(frozen=True)
class AbstentionScores:
    """Shares of answers and of misses on a table, as a function of how often each patient counts.

    Attributes:
        counts: per patient and finding, the number of images, the number answered yes or no, 1 if
            the model says no to the patient, and 1 if the patient is missed by that, shape
            (patients, 4, findings).
    """

    images: ScoredImages
    fitted: Abstention | None
    cuts: Floats
    counts: Integers

    @classmethod
    def of(
        cls, images: ScoredImages, fitted: Abstention | None, cuts: Floats
    ) -> "AbstentionScores":
        """Count by patient; all 0 if `fitted` is None. `cuts` (findings,): the operating points."""
        counts = np.zeros((images.count, 4, len(images.findings)), dtype=np.int64)
        if fitted is None:
            return cls(images, None, cuts, counts)
        low = np.array([fitted.low[finding] for finding in images.findings])
        no = images.scores < low
        answered = no | (images.scores >= cuts)
        np.add.at(counts[:, 0], images.patients, 1)
        np.add.at(counts[:, 1], images.patients, answered.astype(np.int64))
        np.maximum.at(counts[:, 2], images.patients, no.astype(np.int64))
        np.maximum.at(counts[:, 3], images.patients, (no & images.labels).astype(np.int64))
        return cls(images, fitted, cuts, counts)

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """Shares of each finding, shape (findings,); NaN: undefined."""
        if self.fitted is None:
            return {}
        images, answered, no, missed = np.einsum("p,pcf->cf", drawn, self.counts)
        return {"answered": answered / images, "misses_among_no": share(missed, no)}

    def rows(
        self, plain: Mapping[str, Floats], draws: Mapping[str, Floats]
    ) -> dict[str, dict[str, Any]]:
        """The figures of each finding, for JSON; none where no thresholds were fitted."""
        if self.fitted is None:
            return {finding: {} for finding in self.images.findings}
        found = {}
        for column, finding in enumerate(self.images.findings):
            missing = self.fitted.undefined.get(finding)
            patients = int(self.counts[:, 2, column].sum())
            few = {
                "answered": None if self.images.count > 1 else ONE_PATIENT,
                "misses_among_no": None if patients >= ENOUGH_PATIENTS else FEW_NO,
            }
            estimates = {
                name: Estimate.of(
                    math.nan if missing else float(plain[name][column]),
                    draws[name][:, column],
                    undefined=missing or NEVER_NO,
                    few=few[name],
                )
                for name in few
            }
            figures: dict[str, Any] = {
                "low": None if missing else self.fitted.low[finding],
                "high": float(self.cuts[column]),
                **estimates["answered"].figures("answered"),
                **estimates["misses_among_no"].figures("misses_among_no"),
                "patients": patients,
            }
            reasons = undefined_reasons(figures, estimates, low=missing or "")
            found[finding] = {"abstention": figures | {"undefined_reason": reasons}}
        return found
