"""Scores of groups of images: AUROC, sensitivity and specificity for any weights of patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_lightning.evaluation.bootstrap import share, sums_before
from xray_lightning.evaluation.grouping import Attribute
from xray_lightning.runs.predictions import Bools, Floats, Integers, ScoredImages


@dataclass(frozen=True)
class GroupRanking:
    """One finding's scores sorted within each group, for AUROC of each group and of the rest.

    Attributes:
        positives: the images with the finding, group by group, shape (P,).
        negatives: those without, group by group and by rising score, shape (M,).
        positive_ends: where each group begins among the positives, and the end, shape (G + 1,).
        negative_ends: the same of the negatives, shape (G + 1,).
        below: index in `negatives` of the first of group g that scores as high as positive p or
            higher, shape (G, P).
        not_above: index of the first of group g that scores higher, shape (G, P).
    """

    positives: Integers
    negatives: Integers
    positive_ends: Integers
    negative_ends: Integers
    below: Integers
    not_above: Integers

    @classmethod
    def of(cls, scores: Floats, labels: Bools, *, attribute: Attribute) -> "GroupRanking":
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


def aurocs_of_groups(wins: Integers) -> Floats:
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
    return share(np.stack([own, rest], axis=-1), 2 * pairs)


def auroc_within_groups(wins: Integers) -> Floats:
    """AUROC of each finding over the pairs of images of the same group, (findings,)."""
    own = np.diagonal(wins[:, :-2], axis1=1, axis2=2).sum(axis=1)
    pairs = (wins[:, -2] * wins[:, -1]).sum(axis=1)
    return share(own, 2 * pairs)


@dataclass(frozen=True)
class GroupRates:
    """Sensitivity and specificity of each group, from counts of each patient's images.

    Attributes:
        counts: per patient, group of each attribute and finding, the numbers of true positive,
            positive, true negative and negative images, shape (patients, all groups x 4 x
            findings). Whole numbers, whose sums are so small that they are exact in any order.
        groups: number of groups of each attribute.
        findings: number of findings.
    """

    counts: npt.NDArray[Any]
    groups: tuple[int, ...]
    findings: int

    @classmethod
    def of(
        cls, images: ScoredImages, attributes: Sequence[Attribute], called: Bools
    ) -> "GroupRates":
        labels = images.labels
        cells = np.stack([called & labels, labels, ~called & ~labels, ~labels], axis=1)
        groups = tuple(len(attribute.groups) for attribute in attributes)
        counts = np.zeros((images.count, sum(groups), *cells.shape[1:]))
        start = 0
        for attribute in attributes:
            kept = attribute.codes >= 0
            places = (images.patients[kept], start + attribute.codes[kept])
            np.add.at(counts, places, cells[kept])
            start += len(attribute.groups)
        # Upper bound of the sums of a draw; float32 holds whole numbers up to 2^24.
        most = images.count * int(np.bincount(images.patients).max())
        exact = np.float32 if most < 2**24 else np.float64
        return cls(counts.reshape(images.count, -1).astype(exact), groups, labels.shape[1])

    def __call__(self, drawn: Integers) -> Iterator[Floats]:
        """Per attribute, both rates of each group and of its rest, shape (2, findings, G, 2)."""
        sums = (drawn.astype(self.counts.dtype) @ self.counts).astype(np.float64)
        by_group = sums.reshape(-1, 2, 2, self.findings)  # group, rate, part or whole, finding
        start = 0
        for groups in self.groups:
            own = by_group[start : start + groups].transpose(2, 1, 3, 0)
            part, whole = np.stack([own, own.sum(axis=-1, keepdims=True) - own], axis=-1)
            yield share(part, whole)
            start += groups
