"""Simultaneous confidence intervals of gaps between groups.

Of twenty true gaps of zero, one is expected to have an individual 95 % interval that excludes zero.
These intervals are the max-T ones of Westfall & Young, "Resampling-Based Multiple Testing", 1993,
and Romano & Wolf, JASA 2005: with the standard error s_j of gap j, c is the 95 % quantile over the
resamples r of max_j |d_rj - d_j| / s_j, and the intervals are d_j +- c s_j. As all gaps are of the
same draws, c accounts for their dependence: the two groups of one attribute share one gap, and the
gaps of one group in AUROC and in sensitivity are correlated.

For groups of few patients these intervals are too narrow. Simulated without any true gap (120 to
500 patients, three to six findings in 2 to 30 % of the images, unequal groups, images of one
patient alike; 300 tables of each of five kinds, 250 resamples), 6 to 15 % of the tables had a flag.
With the following corrections it was 1 to 4 %, and 2.5 % of all 1,500:

- The variance over resamples of m patients is too small by a factor of (m - 1) / m: the difference
  is added for each finding, both groups, and the images with and without the finding (as in
  DeLong's variance; Obuchowski, Biometrics 1997, for several images per patient).
- If all of ten patients are called right, resampling shows no variance: to that of a sensitivity or
  specificity is added the variance of one more patient called right and one more called wrong
  (Agresti & Caffo, The American Statistician 2000).
- s_j is itself an estimate, less certain the fewer patients it rests on: c is replaced by the value
  of Student's t that has the tail probability of c under a normal distribution. The degrees of
  freedom are 2 / Var(s_j^2 / E s_j^2), from how the variance is spread over the patients
  (Satterthwaite, Biometrics 1946).
- A gap in AUROC, which may average findings with two patients each, needs ten patients summed over
  its findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from xray_lightning.runs.predictions import Bools, Floats, Integers

LEVEL, POWER = 0.95, 0.8
_NORMAL = NormalDist()
_Z_POWER = _NORMAL.inv_cdf(POWER)
LEAST_RESAMPLES = 19  # with fewer, the quantile at `LEVEL` exceeds them all
FEW_RESAMPLES = f"needs at least {LEAST_RESAMPLES} resamples"
_LEAST_FREEDOM = 1.0


@dataclass(frozen=True)
class Part:
    """Influence of each patient on a score of some images.

    Attributes:
        influence: by how much the score rises with a patient's weight, shape (patients,); the
            squares sum to its variance under resampling (the infinitesimal jackknife: Efron, "The
            Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6).
        unbiased: the same, scaled so that the squares sum to an unbiased variance.
        added: variance to add for a share, see `share_part`.
    """

    influence: Floats
    unbiased: Floats
    added: float = 0.0


def auroc_part(ranks: Integers, labels: Bools, patients: Integers, count: int) -> Part:
    """Influence of each patient on the AUROC of images (I,), which must be of both classes.

    Args:
        ranks: ranks of the scores as whole numbers from 0; equal scores share one.
        patients: number of each image's patient, below `count`.
    """
    without, having = (
        np.bincount(ranks[kept], minlength=int(ranks.max()) + 1) for kept in (~labels, labels)
    )
    lower = np.cumsum(without) - without / 2  # negatives that score less, a tie counting half
    higher = having.sum() - np.cumsum(having) + having / 2
    found = _centred(lower[ranks[labels]] / without.sum(), patients[labels], count)
    passed = _centred(higher[ranks[~labels]] / having.sum(), patients[~labels], count)
    return Part(found[0] + passed[0], found[1] + passed[1])


def share_part(hits: Bools, patients: Integers, count: int) -> Part:
    """Influence of each patient on the share of hits among images (I,)."""
    plain, _ = _centred(hits.astype(np.float64), patients, count)
    drawn, share = len(np.unique(patients)), float(hits.mean())
    return Part(plain, plain, (share**2 + (1 - share) ** 2) / drawn**2)


def _centred(values: Floats, patients: Integers, count: int) -> tuple[Floats, Floats]:
    """Influence of each patient on the mean of the values (I,), plain and unbiased."""
    sums = np.zeros(count)
    sums += np.bincount(patients, (values - values.mean()) / len(values), count)
    drawn = len(np.unique(patients))
    return sums, sums * np.sqrt(drawn / max(drawn - 1, 1))


@dataclass(frozen=True)
class Gap:
    """A macro average of a group minus that of the others.

    Attributes:
        value: of the table itself.
        drawn: of each resample, shape (R,); NaN where it does not exist.
        variance: the part of its variance that the resamples lack.
        freedom: degrees of freedom of its variance estimate.
    """

    value: float
    drawn: Floats
    variance: float
    freedom: float

    @classmethod
    def of(cls, value: float, drawn: Floats, parts: Sequence[tuple[Part, Part]]) -> "Gap":
        """A gap with the parts of each of its findings, in the group and in the others."""
        plain, unbiased = (
            np.sum([getattr(own, name) - getattr(rest, name) for own, rest in parts], axis=0)
            / len(parts)
            for name in ("influence", "unbiased")
        )
        added = sum(own.added + rest.added for own, rest in parts) / len(parts) ** 2
        squares = np.square(unbiased)
        total = float(squares.sum())
        variance = total - float(np.square(plain).sum()) + added
        # For m patients with normal influences of equal variance this gives m.
        spread = float(np.square(squares).sum()) / total**2 - 1 / len(squares) if total else 1.0
        return cls(value, drawn, variance, max(2 / max(spread, 1e-9), _LEAST_FREEDOM))


@dataclass(frozen=True)
class JointInterval:
    """A gap's simultaneous interval.

    Attributes:
        ci95: low and high; the intervals of all gaps together hold at 95 %.
        smallest: the smallest true gap whose interval would exclude zero in 80 % of such tables
            (simulated: 81 % for AUROC, 75 % for sensitivity); None if it would exceed 1.
    """

    ci95: tuple[float, float]
    smallest: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


def joint_intervals(gaps: Sequence[Gap]) -> list[JointInterval | None]:
    """The interval of each gap; None if all its resamples agree, or with too few resamples."""
    if not gaps or len(gaps[0].drawn) < LEAST_RESAMPLES:
        return [None] * len(gaps)
    resamples = len(gaps[0].drawn)
    errors = [_deviation(gap.drawn) for gap in gaps]
    used = [(gap, error) for gap, error in zip(gaps, errors, strict=True) if error > 0]
    if not used:
        return [None] * len(gaps)
    apart = np.array([np.abs(gap.drawn - gap.value) / error for gap, error in used])
    largest = np.sort(np.where(np.isnan(apart), 0.0, apart).max(axis=0))
    # The quantile that holds its level with any number of resamples (Davison & Hinkley, "Bootstrap
    # Methods and their Application", 1997, section 4.2.5).
    c = float(largest[int(np.ceil(LEVEL * (resamples + 1))) - 1])
    found: list[JointInterval | None] = []
    for gap, error in zip(gaps, errors, strict=True):
        if not error > 0:
            found.append(None)
            continue
        freedom = 1 / (1 / gap.freedom + 1 / (resamples - 1))
        times = _student(c, freedom)
        deviation = float(np.sqrt(error**2 + gap.variance))
        low, high = gap.value - times * deviation, gap.value + times * deviation
        # As the error is an estimate: noncentral t (Johnson & Welch, Biometrika 1940).
        smallest = (times + _Z_POWER * np.sqrt(1 + times**2 / (2 * freedom))) * deviation
        ends = (max(low, -1.0), min(high, 1.0))
        found.append(JointInterval(ends, float(smallest) if smallest <= 1 else None))
    return found


def _deviation(drawn: Floats) -> float:
    """Standard deviation of the resamples (R,) without NaN; 0 for fewer than two."""
    known = drawn[~np.isnan(drawn)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


def _student(normal: float, freedom: float) -> float:
    """The value of Student's t with the tail probability of a value of a normal variable.

    The inverse of Wallace's approximation (Annals of Mathematical Statistics 1959). It is never too
    small; for 8 degrees of freedom and values up to 4 it is at most 1.2 % too large, for fewer
    degrees of freedom more.
    """
    z = normal * (8 * freedom + 3) / (8 * freedom + 1)
    return float(np.sqrt(freedom * np.expm1(min(z**2 / freedom, 500.0))))
