"""AUROC, sensitivity and specificity by who was X-rayed and how, and gaps between groups.

As many gaps are tested, groups are flagged by simultaneous intervals (`gap_intervals`): if no group
differs, at most one table in twenty has any flag. An unflagged gap may still exist: beside each gap
stands the smallest one that a group of this size would have shown. Nor is a gap unfairness by
itself: groups differ in which findings they have, how ill they are and how they were X-rayed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xray_lightning.evaluation.bootstrap import (
    NAN,
    NO_SPREAD,
    Estimate,
    mean_of_defined,
    undefined_reasons,
)
from xray_lightning.evaluation.gap_intervals import (
    FEW_RESAMPLES,
    LEAST_RESAMPLES,
    Gap,
    JointInterval,
    Part,
    auroc_part,
    joint_intervals,
    share_part,
)
from xray_lightning.evaluation.group_scores import (
    GroupRanking,
    GroupRates,
    auroc_within_groups,
    aurocs_of_groups,
)
from xray_lightning.evaluation.grouping import SUBGROUPS, Attribute, attributes_of
from xray_lightning.runs.predictions import (
    ENOUGH_PATIENTS,
    SEVERAL_PATIENTS,
    Bools,
    Floats,
    Integers,
    ScoredImages,
)
from xray_lightning.runs.summary import GAPS

Draws = Mapping[str, Floats]

UNKNOWN = "unknown"
TOO_SMALL = "needs a finding that at least two of its patients have and two lack"
NO_OTHERS = "no finding has two patients with it and two without in this group and in the others"
FEW = "needs at least ten patients in the group and ten in the others"
FEW_TOGETHER = (
    "needs ten patients with one of its findings, and ten without, in the group and in the others"
)
NOT_KNOWN = "it is not known which group these images belong to"
NO_GAP = "no gap is so large that a group of this size would have shown it"


@dataclass(frozen=True)
class _Score:
    """A score of groups: its keys in the metrics, and the patients that each finding needs.

    Attributes:
        least: how many patients must have the finding, and how many must lack it.
        too_small, no_others: the reason if the score, or its gap, does not exist.
    """

    macro: str
    gap: str
    smallest: str
    least: tuple[int, int]
    too_small: str
    no_others: str


SCORES = {
    "AUROC": _Score(
        "auroc_macro",
        *GAPS["AUROC"],
        (SEVERAL_PATIENTS, SEVERAL_PATIENTS),
        *(TOO_SMALL, NO_OTHERS),
    ),
    "sensitivity": _Score(
        "sensitivity_macro",
        *GAPS["sensitivity"],
        (ENOUGH_PATIENTS, 0),
        "needs a finding that at least ten of its patients have",
        "no finding has ten patients with it in this group and ten in the others",
    ),
    "specificity": _Score(
        "specificity_macro",
        *GAPS["specificity"],
        (0, ENOUGH_PATIENTS),
        "needs a finding that at least ten of its patients lack",
        "no finding has ten patients without it in this group and ten in the others",
    ),
}


@dataclass(frozen=True)
class _Group:
    """One group of images.

    Attributes:
        row: its attribute, name, images and patients.
        figures: its scores and gaps.
        undefined: by figure, the reason if it is None.
        gaps: those that get a simultaneous interval, by the names of `SCORES`.
    """

    row: dict[str, Any]
    figures: dict[str, Any]
    undefined: dict[str, str | None]
    gaps: dict[str, Gap]

    def described(self, joint: Mapping[str, JointInterval | None], few: str) -> dict[str, Any]:
        """The group's entry in `subgroups` of the metrics.

        Args:
            joint: the simultaneous intervals of its gaps.
            few: the reason if one of `gaps` has no interval.
        """
        figures, undefined = dict(self.figures), dict(self.undefined)
        for name, score in SCORES.items():
            found = joint.get(name)
            key = f"{score.gap}_ci95_simultaneous"
            figures[key] = None if found is None else list(found.ci95)
            figures[score.smallest] = None if found is None else found.smallest
            why = few if name in self.gaps else undefined[score.smallest]
            undefined |= {key: why, score.smallest: NO_GAP if found else why}
        flagged = [name for name, found in joint.items() if found and found.excludes_zero]
        return {
            **self.row,
            **figures,
            "flagged": bool(flagged),
            "flagged_by": flagged,
            "undefined_reason": {k: undefined[k] for k, value in figures.items() if value is None},
        }


@dataclass(frozen=True)
class Subgroups:
    """The scores of every group of a table as a function of how often each patient counts.

    Attributes:
        attributes: what images are grouped by; then the view, if it is known and not among them,
            for `auroc_within_view` alone.
        shown: how many of the attributes form subgroups.
        called: whether each finding is called present in each image, shape (N, findings).
    """

    images: ScoredImages
    attributes: tuple[Attribute, ...]
    shown: int
    called: Bools
    rankings: tuple[tuple[GroupRanking, ...], ...]  # by attribute and finding
    rates: GroupRates

    @classmethod
    def of(
        cls, images: ScoredImages, *, called: Bools, names: Sequence[str] = SUBGROUPS
    ) -> "Subgroups":
        """Prepare the groups that the table's columns define.

        Raises:
            UserError: a name that is no column of the table; see `attributes_of`.
        """
        attributes = attributes_of(images.table, names)
        shown = len(attributes)
        if "view" not in names and "view" in images.table:
            attributes += attributes_of(images.table, ["view"])
        columns = list(zip(images.scores.T, images.labels.T, strict=True))
        rankings = tuple(
            tuple(GroupRanking.of(*column, attribute=attribute) for column in columns)
            for attribute in attributes
        )
        rates = GroupRates.of(images, attributes[:shown], called)
        return cls(images, tuple(attributes), shown, called, rankings, rates)

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """Scores of findings in each group and its rest; AUROC over image pairs of the same view.

        Returns:
            By attribute, as `group/sex`, AUROC, sensitivity and specificity, shape
            (3, findings, G, 2); `auroc_within_view`, shape (findings,).
        """
        weights = drawn[self.images.patients]
        found = {"auroc_within_view": np.full(len(self.images.findings), np.nan)}
        rates = self.rates(drawn)
        for place, attribute in enumerate(self.attributes):
            wins = np.array([ranking.wins(weights) for ranking in self.rankings[place]])
            if attribute.by == "view":
                found["auroc_within_view"] = auroc_within_groups(wins)
            if place < self.shown:
                found[f"group/{attribute.by}"] = np.stack([aurocs_of_groups(wins), *next(rates)])
        return found

    def rows(self, plain: Draws, resampled: Draws) -> list[dict[str, Any]]:
        """The `subgroups` of the metrics: per attribute the groups with images, then the unknown.

        Macro AUROC is over the findings that at least two patients of the group have and two lack;
        macro sensitivity over those that ten have, macro specificity over those that ten lack. A
        gap is the group's macro score minus that of all other images of known group, over the
        findings with enough patients on both sides. `flagged` is true if the simultaneous interval
        of any gap excludes zero.

        Args:
            plain: what `self` gives where every patient counts once.
            resampled: what it gave of each draw, with a first axis of the draws, of any length.
        """
        groups = [
            group
            for attribute in self.attributes[: self.shown]
            for group in self._groups(
                attribute, plain[f"group/{attribute.by}"], resampled[f"group/{attribute.by}"]
            )
        ]
        gaps = [gap for group in groups for gap in group.gaps.values()]
        few = FEW_RESAMPLES if gaps and len(gaps[0].drawn) < LEAST_RESAMPLES else NO_SPREAD
        joint = iter(joint_intervals(gaps))
        return [
            group.described({name: next(joint) for name in group.gaps}, few) for group in groups
        ]

    def _groups(self, attribute: Attribute, plain: Floats, resampled: Floats) -> Iterator[_Group]:
        """Each group of an attribute; `plain` is of shape (3, findings, G, 2)."""
        known = attribute.codes >= 0
        for code, group in enumerate(attribute.groups):
            inside = attribute.codes == code
            if inside.any():
                yield self._group(
                    self._named(attribute.by, group, inside),
                    (inside, known & ~inside),
                    plain[:, :, code],
                    resampled[:, :, :, code],
                )
        if not known.all():
            yield _unknown(self._named(attribute.by, UNKNOWN, ~known))

    def _group(
        self, row: dict[str, Any], sides: tuple[Bools, Bools], plain: Floats, resampled: Floats
    ) -> _Group:
        """A group's macro scores and gaps, from scores in it and in its rest, (3, findings, 2)."""
        counts = np.array([self._patients_by_finding(side) for side in sides])
        few = FEW if min(map(self._patients, sides)) < ENOUGH_PATIENTS else None
        figures: dict[str, Any] = {}
        undefined: dict[str, str | None] = {}
        gaps: dict[str, Gap] = {}
        for place, (name, score) in enumerate(SCORES.items()):
            enough = np.all(counts >= np.array(score.least)[:, None], axis=1)  # (2, findings)
            usable, both = enough[0], np.all(enough, axis=0)
            least = counts.min(axis=0)[np.array(score.least) > 0].min(axis=0)  # (findings,)
            value, drawn = plain[place], resampled[:, place]
            macro = Estimate.of(
                _mean(value[usable, 0]),
                mean_of_defined(drawn[:, usable, 0]),
                undefined=score.too_small,
            )
            apart = mean_of_defined(drawn[:, both, 0] - drawn[:, both, 1])
            gap = Estimate.of(
                _mean(value[both, 0] - value[both, 1]), apart, undefined=score.no_others, few=few
            )
            if name == "AUROC":
                figures["findings"] = int(usable.sum())
            own = macro.figures(score.macro) | gap.figures(score.gap)
            undefined |= undefined_reasons(own, {score.macro: macro, score.gap: gap})
            figures |= own
            if gap.value is None or gap.ci95 is None:
                undefined[score.smallest] = undefined[f"{score.gap}_ci95"]
            elif least[both].sum() < ENOUGH_PATIENTS:
                undefined[score.smallest] = FEW_TOGETHER
            else:
                parts = self._parts(name, sides, np.flatnonzero(both))
                gaps[name] = Gap.of(gap.value, apart, parts)
        return _Group(row, figures, undefined, gaps)

    def _parts(
        self, name: str, sides: tuple[Bools, Bools], findings: Integers
    ) -> list[tuple[Part, Part]]:
        """Per finding, the influence of each patient on a score, in a group and in its rest."""
        images, found = self.images, []
        for place in findings:
            labels, called = images.labels[:, place], self.called[:, place]
            parts = []
            for side in sides:
                if name == "AUROC":
                    ranks = self._ranks[:, place][side]
                    part = auroc_part(ranks, labels[side], images.patients[side], images.count)
                else:
                    kept = side & (labels if name == "sensitivity" else ~labels)
                    right = called[kept] == labels[kept]
                    part = share_part(right, images.patients[kept], images.count)
                parts.append(part)
            found.append((parts[0], parts[1]))
        return found

    @cached_property
    def _ranks(self) -> Integers:
        """Ranks of each finding's scores from 0, equal scores sharing one, shape (N, findings)."""
        columns = [np.unique(scores, return_inverse=True)[1] for scores in self.images.scores.T]
        return np.stack(columns, axis=1).astype(np.int64)

    def _named(self, by: str, group: str, inside: Bools) -> dict[str, Any]:
        images, patients = int(inside.sum()), self._patients(inside)
        return {"by": by, "group": group, "images": images, "patients": patients}

    def _patients(self, inside: Bools) -> int:
        return len(np.unique(self.images.patients[inside]))

    def _patients_by_finding(self, inside: Bools) -> Integers:
        """How many patients have each finding in these images, and how many lack it, (2, F)."""
        patients, labels = self.images.patients[inside], self.images.labels[inside]
        counts = [
            [np.count_nonzero(np.bincount(patients[column])) for column in flags.T]
            for flags in (labels, ~labels)
        ]
        return np.array(counts, dtype=np.int64)


def _unknown(row: dict[str, Any]) -> _Group:
    """The images whose group is not known."""
    keys = [
        key
        for score in SCORES.values()
        for key in (score.macro, f"{score.macro}_ci95", score.gap, f"{score.gap}_ci95")
    ]
    why = dict.fromkeys([*keys, *(score.smallest for score in SCORES.values())], NOT_KNOWN)
    return _Group(row, {"findings": 0, **dict.fromkeys(keys)}, {**why}, {})


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else NAN
