"""Intervals of gaps between groups that hold for all of them together.

Of twenty gaps that are none, one has a 95 % interval of its own without zero. These intervals are
the max-T ones of Westfall & Young, "Resampling-Based Multiple Testing", 1993, and Romano & Wolf,
JASA 2005: with the standard error s_j of gap j, c is the 95 % quantile over the resamples r of
max_j |d_rj - d_j| / s_j, and the intervals are d_j +- c s_j. As all gaps are of the same draws, c
knows that the two groups of one attribute share one gap, and that the gaps of one group in AUROC
and in sensitivity go together.

Of groups of few patients that alone is too sure. Simulated without any gap (120 to 500 patients,
three to six findings in 2 to 30 % of the images, unequal groups, images of one patient alike; 300
tables of each of five kinds, 250 resamples), 6 to 15 % of the tables had a flag. With what follows
it was 1 to 4 %, and 2.5 % of all 1,500:

- Resamples of m patients vary by (m - 1) / m too little: what is missing is added for each
  finding, both groups, and the images with and without the finding (as in DeLong's variance;
  Obuchowski, Biometrics 1997, of several images a patient).
- Where all of ten patients are found, resampling says that all will always be: to the variance of
  a sensitivity or specificity is added that of one patient more who is found, and of one more who
  is missed (Agresti & Caffo, The American Statistician 2000).
- s_j is itself an estimate, the less sure the fewer patients it rests on: c becomes the quantile
  of Student's t that is as rare as c is of a normal variable. The degrees of freedom are
  2 / Var(s_j^2 / E s_j^2), from how the variance is spread over the patients (Satterthwaite,
  Biometrics 1946).
- A gap in AUROC, which may be over findings of two patients each, needs ten of them in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from xray_lightning.runs.predictions import Bools, Floats, Integers

LEVEL, POWER = 0.95, 0.8
_NORMAL = NormalDist()
_Z_POWER = _NORMAL.inv_cdf(POWER)
LEAST_RESAMPLES = 19  # of fewer, none lies beyond 95 %
FEW_RESAMPLES = f"needs at least {LEAST_RESAMPLES} resamples"
_LEAST_FREEDOM = 1.0


@dataclass(frozen=True)
class Part:
    """What a score of some images owes to each of their patients.

    Attributes:
        influence: by how much the score rises with a patient's weight, shape (patients,); the
            squares sum to its variance under resampling (the infinitesimal jackknife: Efron, "The
            Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6).
        unbiased: the same, so much larger that the squares sum to an unbiased variance.
        added: further variance.
    """

    influence: Floats
    unbiased: Floats
    added: float = 0.0


def auroc_part(ranks: Integers, labels: Bools, patients: Integers, count: int) -> Part:
    """What AUROC of images (I,), some with the finding and some without, owes to each patient.

    Args:
        ranks: the scores as whole numbers from 0.
        patients: number of each image's patient, below `count`.
    """
    without, having = (
        np.bincount(ranks[kept], minlength=int(ranks.max()) + 1) for kept in (~labels, labels)
    )
    lower = np.cumsum(without) - without / 2  # images that score less, a tie counting one half
    higher = having.sum() - np.cumsum(having) + having / 2
    found = _centred(lower[ranks[labels]] / without.sum(), patients[labels], count)
    passed = _centred(higher[ranks[~labels]] / having.sum(), patients[~labels], count)
    return Part(found[0] + passed[0], found[1] + passed[1])


def share_part(hits: Bools, patients: Integers, count: int) -> Part:
    """What the share of hits among images (I,) owes to each patient."""
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
        variance: what resampling misses of its variance.
        freedom: degrees of freedom that its variance is known with.
    """

    value: float
    drawn: Floats
    variance: float
    freedom: float

    @classmethod
    def of(cls, value: float, drawn: Floats, parts: Sequence[tuple[Part, Part]]) -> "Gap":
        """A gap from what it owes to each patient, of each finding in the group and elsewhere."""
        plain, unbiased = (
            np.sum([getattr(own, name) - getattr(rest, name) for own, rest in parts], axis=0)
            / len(parts)
            for name in ("influence", "unbiased")
        )
        added = sum(own.added + rest.added for own, rest in parts) / len(parts) ** 2
        squares = np.square(unbiased)
        total = float(squares.sum())
        variance = total - float(np.square(plain).sum()) + added
        # Were the influences normal, m patients of equal variance would give m.
        spread = float(np.square(squares).sum()) / total**2 - 1 / len(squares) if total else 1.0
        return cls(value, drawn, variance, max(2 / max(spread, 1e-9), _LEAST_FREEDOM))


@dataclass(frozen=True)
class JointInterval:
    """A gap's interval that holds together with those of all others.

    Attributes:
        ci95: low and high, at 95 % for all of them.
        smallest: the smallest gap whose interval would exclude zero in 80 % of such tables
            (simulated: 81 % of AUROC, 75 % of sensitivity); None where no gap is so large.
    """

    ci95: tuple[float, float]
    smallest: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether it lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0


def joint_intervals(gaps: Sequence[Gap]) -> list[JointInterval | None]:
    """The interval of each gap; None of one that no resample changes, or of too few resamples."""
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
        # That of the noncentral t (Johnson & Welch, Biometrika 1940): the error is estimated, too.
        smallest = (times + _Z_POWER * np.sqrt(1 + times**2 / (2 * freedom))) * deviation
        ends = (max(low, -1.0), min(high, 1.0))
        found.append(JointInterval(ends, float(smallest) if smallest <= 1 else None))
    return found


def _deviation(drawn: Floats) -> float:
    """Standard deviation of the resamples (R,) that exist."""
    known = drawn[~np.isnan(drawn)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


def _student(normal: float, freedom: float) -> float:
    """The value of Student's t that is as rare as a value of a normal variable.

    The inverse of Wallace's approximation (Annals of Mathematical Statistics 1959): of 8
    degrees of freedom and values up to 4 at most 1.2 % too large, of fewer more, never too small.
    """
    z = normal * (8 * freedom + 3) / (8 * freedom + 1)
    return float(np.sqrt(freedom * np.expm1(min(z**2 / freedom, 500.0))))
