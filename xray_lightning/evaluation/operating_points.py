"""Operating points: from which probability on each finding is called present.

They are fitted on the validation images alone and stored in the checkpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, one_line
from xray_lightning.evaluation.fitted_value_checks import LARGEST, FittedValues
from xray_lightning.evaluation.resampled_scores import THRESHOLD
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import SAME_SCORE, Bools, Floats, one_class, validation_arrays

RATES = ("sensitivity", "specificity")  # the rules whose target is a rate to reach
# The rules that need a target, each with its exclusive upper limit; the lower limit is 0.
AIMED = {**dict.fromkeys(RATES, 1.0), "cost": math.inf, "alerts": 1000.0}
RULES = ("youden", "f1", *AIMED)
_TARGETS = {
    **dict.fromkeys(RATES, "rule={rule} chooses the cut that reaches it"),
    "cost": "it is how many false alarms one missed finding weighs",
    "alerts": "it is how many of 1,000 images may be called positive",
}

# Scores with a smaller relative difference count as equal: a table of predictions may keep only
# seven significant digits, a relative error of up to 5e-7. A cut midway between two scores that
# differ by more separates the same images before and after such rounding.
CLOSEST = 2e-6

NO_CUT_TELLS = "no cut tells validation images with it from those without it"
F1_OF_ALL = "on validation, F1 is best where every image is called positive"
COST_OF_ALL = "on validation, no cut costs less than calling every image {}"
TOO_MANY_ALERTS = "on validation, every cut raises more than {:g} alerts per 1,000 images"


@dataclass(frozen=True)
class OperatingPoints:
    """The cut of each finding: an image is called present where its probability >= the cut.

    Attributes:
        rule: one of `RULES`, by which the cuts were chosen.
        target: what the rule aims at; None for those that have none.
        images: validation images that they were fitted on.
        cuts: the cut of each finding, in 0..1.
        undefined: why a finding has none of its own, and 0.5 in `cuts`.
    """

    rule: str
    target: float | None
    images: int
    cuts: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Dicts, text and numbers alone, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object, *, findings: Sequence[str] = FINDINGS) -> "OperatingPoints":
        """Restore what `to_plain` returned, checked against these findings.

        Raises:
            UserError: one line, if `plain` is anything else.
        """
        where = "the checkpoint's operating_points"
        fitted = FittedValues(plain, findings, where)
        rule, target = fitted.value("rule"), fitted.value("target")
        try:
            OperatingRule(rule=rule, target=target)
        except UserError as error:
            raise UserError(f"{where} are of no known rule ({one_line(error)})") from error
        return cls(
            rule=rule,
            target=None if target is None else float(target),
            images=fitted.count("images"),
            cuts=fitted.by_finding("cuts", low=0.0, high=1.0),
            undefined=fitted.undefined(),
        )


@dataclass(frozen=True)
class OperatingRule:
    """How each finding's cut is chosen on validation.

    Every cut that separates the scores differently is tried, so that the choice is exact. Cuts lie
    midway between two neighbouring scores. With a cut on a score, rounding could change the call of
    that image; and that score is the lowest seen on its side, where the next patient's may well be
    lower. Cuts that call all images positive, or all negative, are excluded: if such a cut would be
    best, the finding keeps 0.5, and `undefined` holds the reason.

    Args:
        rule: `youden`, the largest sensitivity + specificity - 1 (Youden, Cancer 1950); `f1`, the
            largest F1; `sensitivity`, the highest cut whose sensitivity reaches the target;
            `specificity`, the lowest whose specificity does; `cost`, the least target x missed
            findings + false alarms; `alerts`, the lowest cut that calls at most the target of
            1,000 images positive. Of cuts that are equally good by `youden`, `f1` or `cost` the
            lowest is taken: it misses fewer findings.
        target: strictly between 0 and 1 for `sensitivity` and `specificity`; above 0 for `cost`,
            how many false alarms one missed finding weighs; between 0 and 1,000 for `alerts`;
            None for the others.

    Raises:
        UserError: an unknown rule, or a target that is missing, of no use, or out of range.
    """

    rule: str = "youden"
    target: float | None = None

    def __post_init__(self) -> None:
        key = "evaluation.operating_point"
        if self.rule not in RULES:
            shown = str(self.rule)[:60]  # a damaged checkpoint may hold anything
            raise UserError(f"{key}.rule={shown} must be one of {', '.join(RULES)}")
        if self.rule not in AIMED:
            if self.target is not None:
                raise UserError(
                    f"{key}.target={self.target} has no use with rule={self.rule}; it belongs to "
                    f"rule={', '.join(AIMED)}"
                )
            return
        most = AIMED[self.rule]
        number = isinstance(self.target, int | float) and not isinstance(self.target, bool)
        if not number or not 0 < self.target < min(most, LARGEST):  # type: ignore[operator]
            bounds = f"more than 0 and less than {most:g}" if most < math.inf else "more than 0"
            raise UserError(
                f"{key}.target={str(self.target)[:60]} must be {bounds}: "
                f"{_TARGETS[self.rule].format(rule=self.rule)}"
            )

    def fit(self, predictions: pd.DataFrame) -> OperatingPoints:
        """Choose the cuts on a table of validation predictions; see `validation_arrays`."""
        findings, scores, labels = validation_arrays(predictions, purpose="operating points")
        found = dict(zip(findings, map(self._cut, scores.T, labels.T), strict=True))
        undefined = {finding: cut for finding, cut in found.items() if isinstance(cut, str)}
        return OperatingPoints(
            rule=self.rule,
            target=None if self.target is None else float(self.target),
            images=len(labels),
            cuts={f: THRESHOLD if isinstance(cut, str) else cut for f, cut in found.items()},
            undefined=undefined,
        )

    def _cut(self, scores: Floats, labels: Bools) -> float | str:
        """The cut for scores and labels (N,), or why there is none."""
        reason = one_class(labels, "validation image")
        if reason is not None:
            return reason
        order = np.argsort(scores)
        rising, present = scores[order], labels[order]
        gaps = np.flatnonzero(np.diff(rising) > CLOSEST * rising[1:])
        if not len(gaps):
            return SAME_SCORE
        cuts = (rising[gaps] + rising[gaps + 1]) / 2  # (C,), each with images on both sides
        positives = int(labels.sum())
        negatives = len(labels) - positives
        hits = (positives - np.cumsum(present)[gaps]).astype(np.float64)
        alarms = len(labels) - (gaps + 1) - hits
        if self.rule == "alerts":
            return self._fewest_alerts(cuts, hits + alarms, images=len(labels))
        if self.rule in RATES:
            sensitive = self.rule == "sensitivity"
            rates = hits / positives if sensitive else (negatives - alarms) / negatives
            reached = np.flatnonzero(rates >= (self.target or 0.0))
            if len(reached):
                return float(cuts[reached[-1 if sensitive else 0]])  # the best for the other rate
            way = "positive" if sensitive else "negative"
            return (
                f"validation {self.rule} {self.target:g} is reached only by calling every image "
                f"{way}"
            )
        if self.rule == "youden":
            # J times positives times negatives: whole numbers, so that ties are exact.
            values, least, reason = hits * negatives - alarms * positives, 0.0, NO_CUT_TELLS
        elif self.rule == "cost":
            weight = self.target or 0.0
            values = -(weight * (positives - hits) + alarms)
            least = -min(weight * positives, negatives)
            way = "negative" if weight * positives < negatives else "positive"
            reason = COST_OF_ALL.format(way)
        else:
            values = 2 * hits / (hits + alarms + positives)
            least, reason = 2 * positives / (2 * positives + negatives), F1_OF_ALL
        chosen = int(np.argmax(values))  # the first of equals, which is the lowest
        return float(cuts[chosen]) if values[chosen] > least else reason

    def _fewest_alerts(self, cuts: Floats, called: Floats, *, images: int) -> float | str:
        """The lowest of the rising cuts (C,) that calls few enough, or why there is none."""
        most = self.target or 0.0
        few = np.flatnonzero(1000 * called <= most * images)
        return float(cuts[few[0]]) if len(few) else TOO_MANY_ALERTS.format(most)
