"""AUROC by who was X-rayed and how, and whether a group stands apart from the others.

Many groups are looked at, and their intervals are not corrected for that: of twenty gaps that are
none, about one has an interval without zero by chance. A flag is a hint of where to look, not a
test. Nor is a gap unfairness by itself: groups differ in which findings they have, how ill they are
and how they were X-rayed.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import (
    NAN,
    Estimate,
    mean_of_defined,
    sums_before,
    undefined_reasons,
)
from xray_lightning.runs.predictions import (
    ENOUGH_PATIENTS,
    SEVERAL_PATIENTS,
    Bools,
    Floats,
    Integers,
    ScoredImages,
)

log = logging.getLogger(__name__)

AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_EDGES = (18, 40, 60, 80)
_NAMED = {"sex": {"F": "female", "M": "male"}, "view": {"PA": "PA", "AP": "AP"}}
_VISITS = ("first image", "follow-up")
_COLUMN = {"sex": "sex", "age": "age", "view": "view", "visit": "follow_up"}


@dataclass(frozen=True)
class Attribute:
    """What images are grouped by.

    Attributes:
        by: its name, such as "sex".
        groups: the names of its groups.
        codes: the group of each image, -1 where unknown, shape (N,).
    """

    by: str
    groups: tuple[str, ...]
    codes: Integers


def attributes_of(table: pd.DataFrame) -> list[Attribute]:
    """How the images of a table can be grouped, by each of `sex`, `age`, `view`, `follow_up`.

    A column that is not there is left out, and said in the log.
    """
    missing = [column for column in _COLUMN.values() if column not in table]
    if missing:
        log.info("the predictions have no %s: no subgroups by that", ", ".join(missing))
    return [
        _attribute(by, table[column]) for by, column in _COLUMN.items() if column not in missing
    ]


def _attribute(by: str, column: pd.Series) -> Attribute:
    if by in _NAMED:
        names = _NAMED[by]
        codes = pd.Index(list(names)).get_indexer(pd.Index(column.astype(object)))
        return Attribute(by, tuple(names.values()), codes.astype(np.int64))
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = numbers >= 0  # NaN is not
    if by == "age":
        codes = np.searchsorted(_AGE_EDGES, numbers, side="right")
        return Attribute(by, AGE_BANDS, np.where(known, codes, -1))
    return Attribute(by, _VISITS, np.where(known, (numbers > 0).astype(np.int64), -1))


Draws = Mapping[str, Floats]  # by attribute

UNKNOWN = "unknown"
TOO_SMALL = "needs a finding that at least two of its patients have and two lack"
NO_OTHERS = "no finding has two patients with it and two without in this group and in the others"
FEW = "needs at least ten patients in the group and ten in the others"
NOT_KNOWN = "it is not known which group these images belong to"


@dataclass(frozen=True)
class _GroupRanking:
    """The order of one finding's scores within each group, for AUROC of groups and of the rest.

    Attributes:
        positives: the images with the finding, group by group, shape (P,).
        negatives: those without, group by group and by rising score, shape (M,).
        positive_ends: where each group begins among the positives, and the end, shape (G + 1,).
        negative_ends: the same of the negatives, shape (G + 1,).
        below: place among the negatives of group g from which on they score as high as positive
            p or higher, shape (G, P).
        not_above: place from which on they score higher, shape (G, P).
    """

    positives: Integers
    negatives: Integers
    positive_ends: Integers
    negative_ends: Integers
    below: Integers
    not_above: Integers

    @classmethod
    def of(cls, scores: Floats, labels: Bools, *, attribute: Attribute) -> "_GroupRanking":
        codes, groups = attribute.codes, np.arange(len(attribute.groups))
        order = np.lexsort((scores, codes))
        order = order[codes[order] >= 0]
        positives, negatives = order[labels[order]], order[~labels[order]]
        ends = np.append(groups, len(groups))
        positive_ends = np.searchsorted(codes[positives], ends)
        negative_ends = np.searchsorted(codes[negatives], ends)
        below, not_above = (
            np.stack(
                [
                    start + np.searchsorted(scores[negatives[start:end]], scores[positives], side)
                    for start, end in pairwise(negative_ends)
                ]
            )
            for side in ("left", "right")
        )
        return cls(positives, negatives, positive_ends, negative_ends, below, not_above)

    def wins(self, weights: Integers) -> Integers:
        """Weights of pairs and of images of each group.

        Returns:
            Shape (G + 2, G). The first G rows: twice the weight of the pairs in which a positive
            of the column's group scores higher than a negative of the row's group, a tie counting
            one half; then the weight of each group's positives, and of its negatives.
        """
        negative = sums_before(weights[self.negatives])
        starts = negative[self.negative_ends]
        positive = weights[self.positives]
        with_it = self._by_group(positive)
        found = np.empty((len(starts) + 1, len(starts) - 1), dtype=np.int64)
        found[:-2] = self._by_group(positive * (negative[self.below] + negative[self.not_above]))
        found[:-2] -= 2 * starts[:-1, None] * with_it
        found[-2], found[-1] = with_it, starts[1:] - starts[:-1]
        return found

    def _by_group(self, values: Integers) -> Integers:
        """Sums of values (..., P) of the positives over each group, shape (..., G)."""
        starts = self.positive_ends
        filled = np.flatnonzero(np.diff(starts))
        sums = np.zeros((*values.shape[:-1], len(starts) - 1), dtype=np.int64)
        if len(filled):
            sums[..., filled] = np.add.reduceat(values, starts[filled], axis=-1)
        return sums


def _aurocs(wins: Integers) -> Floats:
    """AUROC of each group, and of all images of other groups, (findings, G, 2); NaN: undefined.

    Args:
        wins: what each finding's ranking gives, shape (findings, G + 2, G).
    """
    twice, with_it, without = wins[:, :-2], wins[:, -2], wins[:, -1]
    own = np.diagonal(twice, axis1=1, axis2=2)
    rest = twice.sum(axis=(1, 2))[:, None] - twice.sum(axis=1) - twice.sum(axis=2) + own
    with_others = with_it.sum(axis=1, keepdims=True) - with_it
    without_others = without.sum(axis=1, keepdims=True) - without
    pairs = np.stack([with_it * without, with_others * without_others], axis=-1)
    values: Floats = np.full(pairs.shape, np.nan)
    np.divide(np.stack([own, rest], axis=-1), 2 * pairs, out=values, where=pairs > 0)
    return values


def _auroc_within(wins: Integers) -> Floats:
    """AUROC of each finding over the pairs of images of the same group, (findings,)."""
    own = np.diagonal(wins[:, :-2], axis1=1, axis2=2).sum(axis=1)
    pairs = (wins[:, -2] * wins[:, -1]).sum(axis=1)
    values: Floats = np.full(len(pairs), np.nan)
    np.divide(own, 2 * pairs, out=values, where=pairs > 0)
    return values


@dataclass(frozen=True)
class Subgroups:
    """The AUROC of every group of a table as a function of how often each patient counts."""

    images: ScoredImages
    attributes: tuple[Attribute, ...]
    rankings: tuple[tuple[_GroupRanking, ...], ...]  # by attribute and finding

    @classmethod
    def of(cls, images: ScoredImages) -> "Subgroups":
        """Prepare the groups that the table's columns tell of."""
        attributes = tuple(attributes_of(images.table))
        columns = list(zip(images.scores.T, images.labels.T, strict=True))
        rankings = tuple(
            tuple(_GroupRanking.of(*column, attribute=attribute) for column in columns)
            for attribute in attributes
        )
        return cls(images, attributes, rankings)

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """AUROC of each finding: in each group and its rest, and over pairs of the same view.

        Returns:
            By attribute, shape (findings, G, 2); `auroc_within_view`, shape (findings,).
        """
        weights = drawn[self.images.patients]
        found = {"auroc_within_view": np.full(len(self.images.findings), np.nan)}
        for attribute, rankings in zip(self.attributes, self.rankings, strict=True):
            wins = np.array([ranking.wins(weights) for ranking in rankings])
            found[attribute.by] = _aurocs(wins)
            if attribute.by == "view":
                found["auroc_within_view"] = _auroc_within(wins)
        return found

    def rows(self, plain: Draws, resampled: Draws) -> list[dict[str, Any]]:
        """The `subgroups` of the metrics: each group that has images, then the unknown ones.

        Macro AUROC is over the findings that at least two patients of the group have and two lack.
        `gap` is it minus that of all other images of known group, over the findings that have as
        many on both sides; `flagged` where its interval excludes zero.

        Args:
            plain: what `self` gives where every patient counts once, shape (findings, G, 2) each.
            resampled: what it gave of each draw, shape (R, findings, G, 2) each; R may be 0.
        """
        return [
            row
            for attribute in self.attributes
            for row in self._rows(attribute, plain[attribute.by], resampled[attribute.by])
        ]

    def _rows(
        self, attribute: Attribute, plain: Floats, resampled: Floats
    ) -> Iterator[dict[str, Any]]:
        known = attribute.codes >= 0
        for code, group in enumerate(attribute.groups):
            inside = attribute.codes == code
            if inside.any():
                usable = np.logical_and(*self.images.enough(inside, least=SEVERAL_PATIENTS))
                both = usable & np.logical_and(
                    *self.images.enough(known & ~inside, least=SEVERAL_PATIENTS)
                )
                sides = (inside, known & ~inside)
                yield self._described(attribute.by, group, inside) | _figures(
                    plain[:, code],
                    resampled[:, :, code],
                    usable=usable,
                    both=both,
                    few=min(map(self._patients, sides)) < ENOUGH_PATIENTS,
                )
        if not known.all():
            nothing = np.zeros(len(plain), dtype=bool)
            row = _figures(plain[:, 0], resampled[:, :, 0], usable=nothing, both=nothing, few=True)
            row["undefined_reason"] = dict.fromkeys(row["undefined_reason"], NOT_KNOWN)
            yield self._described(attribute.by, UNKNOWN, ~known) | row

    def _described(self, by: str, group: str, inside: Bools) -> dict[str, Any]:
        images, patients = int(inside.sum()), self._patients(inside)
        return {"by": by, "group": group, "images": images, "patients": patients}

    def _patients(self, inside: Bools) -> int:
        return len(np.unique(self.images.patients[inside]))


def _figures(
    plain: Floats, resampled: Floats, *, usable: Bools, both: Bools, few: bool
) -> dict[str, Any]:
    """Macro AUROC and gap from the AUROCs of a group and its rest, (F, 2) and (R, F, 2)."""
    found = {
        "auroc_macro": Estimate.of(
            _mean(plain[usable, 0]), mean_of_defined(resampled[:, usable, 0]), undefined=TOO_SMALL
        ),
        # Simulated without any gap, groups of 4 patients would be flagged in half of the cases, of
        # 10 in one of twelve.
        "gap": Estimate.of(
            _mean(plain[both, 0] - plain[both, 1]),
            mean_of_defined(resampled[:, both, 0] - resampled[:, both, 1]),
            undefined=NO_OTHERS,
            few=FEW if few else None,
        ),
    }
    figures: dict[str, Any] = {
        "findings": int(usable.sum()),
        **found["auroc_macro"].figures("auroc_macro"),
        **found["gap"].figures("gap"),
        "flagged": found["gap"].excludes_zero,
    }
    return figures | {"undefined_reason": undefined_reasons(figures, found)}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else NAN
