"""Operating points: the best of all cuts, fitted on validation alone, and stable under rounding."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import column, validation
from sklearn.metrics import precision_recall_curve, roc_curve

from xray_lightning.errors import UserError
from xray_lightning.evaluation.operating_points import (
    COST_OF_ALL,
    F1_OF_ALL,
    NO_CUT_TELLS,
    RULES,
    TOO_MANY_ALERTS,
    OperatingPoints,
    OperatingRule,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import SAME_SCORE

ALL_RULES = [
    *[("youden", None), ("f1", None), ("sensitivity", 0.9), ("specificity", 0.9)],
    *[("cost", 3), ("cost", 0.4), ("alerts", 150), ("alerts", 400)],
]


def drawn(*, images: int = 200, decimals: int = 16, seed: int = 0) -> pd.DataFrame:
    """Scores that rise with the labels, rare findings among them, tied at few decimals."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((images, 14)) < np.linspace(0.03, 0.6, 14)).astype(int)
    labels[:3], labels[3:6] = 1, 0
    logits = draw.normal(size=(images, 14)) + labels - 2
    return validation((1 / (1 + np.exp(-logits))).round(decimals), labels)


def one(scores: Any, labels: Any) -> pd.DataFrame:
    """A table whose first finding has these scores and labels (N,)."""
    return column(drawn(images=len(scores)), FINDINGS[0], scores, labels)


def judged(rule: str, target: float | None, scores: Any, labels: Any) -> Any:
    """What the best of all thresholds calls present, by scikit-learn's counts alone."""
    false, true, cuts = roc_curve(labels, scores, drop_intermediate=False)
    if rule == "f1":
        precision, recall, cuts = precision_recall_curve(labels, scores)
        value = (2 * precision * recall / (precision + recall).clip(min=1e-300))[:-1]
    elif rule == "youden":
        value = true - false
    elif rule == "cost":
        positives = labels.sum()
        value = -(target * positives * (1 - true) + (len(labels) - positives) * false)
        value = value.round(9)
        if value.max() == max(value[0], value[-1]):  # as good as calling none, or all
            return np.full(len(scores), value[0] < value[-1])
    elif rule == "alerts":
        called = np.array([(scores >= cut).mean() for cut in cuts])
        return scores >= cuts[1000 * called <= target + 1e-9].min()
    elif rule == "sensitivity":
        cuts = cuts[true >= target]
        return scores >= cuts.max()
    else:
        cuts = cuts[1 - false >= target - 1e-12]
        return scores >= cuts.min()
    return scores >= cuts[value >= value.max() - 1e-12].min()


@pytest.mark.parametrize("rule, target", ALL_RULES)
@pytest.mark.parametrize("decimals", [1, 2, 16])
def test_the_cuts_are_the_best_of_all_thresholds(
    rule: str, target: float | None, decimals: int
) -> None:
    compared = 0
    for seed in range(4):
        table = drawn(decimals=decimals, seed=seed)
        points = OperatingRule(rule, target).fit(table)
        for finding in FINDINGS:
            scores = table[f"prob_{finding}"].to_numpy()
            best = judged(rule, target, scores, table[f"label_{finding}"].to_numpy())
            if best.all() or not best.any():
                assert finding in points.undefined
                continue
            assert finding not in points.undefined
            assert ((scores >= points.cuts[finding]) == best).all(), (seed, finding)
            compared += 1
    assert compared >= 40


def test_of_equally_good_cuts_the_lowest_is_taken() -> None:
    scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 1])
    for rule, expected in (("youden", 0.15), ("f1", 0.15)):
        points = OperatingRule(rule).fit(one(scores.repeat(5), labels.repeat(5)))
        assert points.cuts[FINDINGS[0]] == pytest.approx(expected), rule


def test_a_cut_lies_midway_between_the_scores_beside_it() -> None:
    scores = np.array([0.01, 0.02, 0.3, 0.4]).repeat(5)
    points = OperatingRule().fit(one(scores, scores > 0.1))
    assert points.cuts[FINDINGS[0]] == pytest.approx(0.16)


@pytest.mark.parametrize("rule, target", ALL_RULES)
@pytest.mark.parametrize("saved_as", ["%.7g", "%.9g"])
def test_saving_the_predictions_as_text_flips_no_call(
    rule: str, target: float | None, saved_as: str
) -> None:
    draw = np.random.default_rng(1)
    # So close together that most neighbours are told apart by their last digits or not at all.
    labels = draw.random((4000, 14)) < 0.2
    ranks = draw.normal(size=(4000, 14)) + labels
    table = validation((np.float32(0.3) + 1e-4 * ranks).astype(np.float32), labels.astype(int))
    text = table.to_csv(index=False, float_format=saved_as)
    again = pd.read_csv(io.StringIO(text))
    columns = [f"prob_{finding}" for finding in FINDINGS]
    assert len(np.unique(again[columns])) < len(np.unique(table[columns])) or saved_as == "%.9g"
    points = OperatingRule(rule, target).fit(table)
    assert points.undefined == {}
    for finding, cut in points.cuts.items():
        before = table[f"prob_{finding}"].to_numpy(dtype=np.float64) >= cut
        assert (again[f"prob_{finding}"].to_numpy() >= cut).tolist() == before.tolist()
        assert 0 < before.sum() < len(before)


def test_scores_that_only_rounding_tells_apart_are_not_cut_between() -> None:
    scores = np.array([0.3, 0.3000001, 0.4]).repeat(10)
    points = OperatingRule().fit(one(scores, scores > 0.3))
    assert points.cuts[FINDINGS[0]] == pytest.approx(0.35, abs=1e-6)
    constant = np.array([0.3, 0.3000001]).repeat(10)
    points = OperatingRule().fit(one(constant, constant > 0.3))
    assert points.undefined == {FINDINGS[0]: SAME_SCORE}


ALL_CALLED = "validation RULE is reached only by calling every image {}"


@pytest.mark.parametrize(
    "rule, target, scores, labels, reason",
    [
        ("youden", None, [0.1, 0.2, 0.3], [0, 0, 0], "no validation image has the finding"),
        ("youden", None, [0.1, 0.2, 0.3], [1, 1, 1], "every validation image has the finding"),
        ("f1", None, [0.3, 0.3, 0.3], [0, 1, 1], SAME_SCORE),
        ("youden", None, [0.1, 0.2, 0.3], [1, 0, 0], NO_CUT_TELLS),
        ("youden", None, [0.1, 0.2, 0.1, 0.2], [1, 0, 0, 1], NO_CUT_TELLS),
        ("f1", None, [0.1, 0.2, 0.3], [1, 0, 1], F1_OF_ALL),
        ("sensitivity", 0.9, [0.1, 0.2, 0.3], [1, 0, 1], ALL_CALLED.format("positive")),
        ("specificity", 0.9, [0.1, 0.2, 0.3], [0, 1, 0], ALL_CALLED.format("negative")),
        ("cost", 0.1, [0.1, 0.2, 0.3], [1, 0, 0], COST_OF_ALL.format("negative")),
        ("cost", 9.0, [0.1, 0.2, 0.3], [1, 0, 1], COST_OF_ALL.format("positive")),
        ("alerts", 300.0, [0.1, 0.2, 0.3], [0, 1, 1], TOO_MANY_ALERTS.format(300)),
    ],
)
def test_a_finding_without_a_cut_of_its_own_keeps_a_half_and_says_why(
    rule: str, target: float | None, scores: list[float], labels: list[int], reason: str
) -> None:
    table = one(np.array(scores).repeat(10), np.array(labels).repeat(10))
    points = OperatingRule(rule, target).fit(table)
    assert points.undefined[FINDINGS[0]] == reason.replace("RULE", f"{rule} {target}")
    assert points.cuts[FINDINGS[0]] == 0.5
    assert FINDINGS[9] not in points.undefined
    assert points.cuts[FINDINGS[9]] != 0.5


def test_one_positive_is_enough_for_a_cut() -> None:
    labels = np.arange(50) == 40
    scores = np.linspace(0.01, 0.5, 50)
    for rule, target in ALL_RULES[:3]:
        points = OperatingRule(rule, target).fit(one(scores, labels))
        assert ((scores >= points.cuts[FINDINGS[0]]) == (np.arange(50) >= 40)).all(), rule


@pytest.mark.parametrize("scores", [[0.0, 1.0], [0.0, 1e-45], [1 - 1e-5, 1.0]])
def test_saturated_scores_are_told_apart(scores: list[float]) -> None:
    column = np.array(scores).repeat(10)
    points = OperatingRule().fit(one(column, column == scores[1]))
    assert ((column >= points.cuts[FINDINGS[0]]) == (column == scores[1])).all()


@pytest.mark.parametrize(
    "rule, target, told",
    [
        *(
            (rule, target, r"target=.* more than 0 and less than 1")
            for rule in ("sensitivity", "specificity")
            for target in (None, 0, 1, True, -0.5, 90, float("nan"), "0.9")
        ),
        *(
            ("cost", target, r"target=.* must be more than 0: it is how many false alarms")
            for target in (None, 0, True, -1, float("nan"), float("inf"), "10")
        ),
        *(
            ("alerts", target, r"target=.* more than 0 and less than 1000: it is how many of")
            for target in (None, 0, True, 1000, float("nan"), "50")
        ),
        ("youden", 0.9, "target=0.9 has no use"),
        ("f1", 0.9, "target=0.9 has no use"),
        ("best", None, "rule=best must be one of youden, f1"),
    ],
)
def test_a_rule_or_target_out_of_range_is_refused_by_its_key(
    rule: str, target: Any, told: str
) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.operating_point\.{told}"):
        OperatingRule(rule, target)


@pytest.mark.parametrize("rule, target", ALL_RULES)
def test_operating_points_survive_as_plain_values(rule: str, target: float | None) -> None:
    assert rule in RULES
    table = drawn()
    table["label_Hernia"] = 0
    points = OperatingRule(rule, target).fit(table)
    assert points.images == 200
    assert OperatingPoints.from_plain(json.loads(json.dumps(points.to_plain()))) == points
    assert {type(cut) for cut in points.to_plain()["cuts"].values()} == {float}
