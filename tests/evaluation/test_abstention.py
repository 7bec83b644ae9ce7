"""Abstention: misses among its "no" stay under alpha, over patients, as surely as asked for."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from predicted import frame, table
from scipy.stats import binom

from xray_lightning.errors import UserError
from xray_lightning.evaluation.abstention import (
    FEW_NO,
    NEVER_NO,
    Abstention,
    AbstentionRule,
    misses_allowed,
)
from xray_lightning.evaluation.fitted_in_checkpoint import abstention_of
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingRule
from xray_lightning.findings import FINDINGS

RULE = AbstentionRule(alpha=0.1, confidence=0.9)


def drawn(random: np.random.Generator, patients: int) -> tuple[Any, Any, Any]:
    """Scores, labels and patients of images: those of one patient are alike, and ill together."""
    images = random.integers(1, 5, patients)
    of = np.repeat(np.arange(patients), images)
    severity = random.normal(size=patients)
    logits = severity[of] + 0.5 * random.normal(size=len(of))
    chance = 1 / (1 + np.exp(-(1.1 * severity[of] - 2.0 + 0.5 * random.normal(size=len(of)))))
    scores = 1 / (1 + np.exp(-logits))
    return scores, random.random(len(of)) < chance, of


def misses(scores: Any, labels: Any, of: Any, low: float) -> float:
    """The share of patients who are missed among those with an image below `low`."""
    below = scores < low
    return len(np.unique(of[below & labels])) / len(np.unique(of[below]))


def test_in_1000_draws_the_true_share_of_misses_exceeds_alpha_as_seldom_as_is_promised() -> None:
    sets, random = 1000, np.random.default_rng(0)
    truth = drawn(random, 40_000)
    grid = np.quantile(truth[0], np.linspace(0.01, 1, 60))
    true_share = np.array([misses(*truth, low) for low in grid])
    assert (np.diff(true_share) > -4e-3).all()  # it rises, from under alpha to over it
    assert true_share[0] < RULE.alpha < true_share[-1]
    exceeded = found = 0
    for _ in range(sets):
        low = RULE.threshold(*drawn(random, 400), high=0.99)
        if not isinstance(low, str):
            found += 1
            exceeded += np.interp(low, grid, true_share) > RULE.alpha
    assert found > 0.3 * sets  # else there is nothing that could exceed
    assert exceeded <= (1 - RULE.confidence) * sets
    assert exceeded > 0  # the promise is not kept by answering nothing


@pytest.mark.parametrize("alpha, risk", [(0.05, 0.1), (0.2, 0.05), (0.01, 0.3)])
def test_as_many_misses_are_allowed_as_scipys_binomial_tail_allows(
    alpha: float, risk: float
) -> None:
    allowed = misses_allowed(alpha, risk, 800)
    sizes = np.arange(801)
    some = allowed >= 0
    assert (binom.cdf(allowed[some], sizes[some], alpha) <= risk + 1e-12).all()
    assert (binom.cdf(allowed + 1, sizes, alpha) > risk - 1e-12).all()
    assert np.flatnonzero(some)[0] == math.ceil(math.log(risk) / math.log(1 - alpha))


def test_of_one_image_a_patient_the_threshold_is_the_last_that_mapies_p_values_pass() -> None:
    random = np.random.default_rng(3)
    scores = np.sort(random.random(600))
    labels = random.random(600) < 0.4 * scores**2
    low = RULE.threshold(scores, labels, np.arange(600), high=0.99)
    assert isinstance(low, float)
    last = int((scores < low).sum())
    assert 120 < last < 600
    sizes = np.arange(120, last + 2)
    shares = (np.cumsum(labels)[sizes - 1] - 1e-9).clip(
        0
    ) / sizes  # it rounds up what rounding adds
    values = compute_hoeffding_bentkus_p_value(shares, sizes, RULE.alpha, binary=True).ravel()
    first = 0 if values[0] <= 0.1 else int(np.argmax(values <= 0.1))
    assert first < 20  # the tests start where one more miss becomes possible
    assert (values[first:-1] <= 0.1).all()
    assert values[-1] > 0.1


def test_the_threshold_lies_below_the_first_patients_that_fail() -> None:
    scores = np.arange(1, 201) / 201
    labels = np.zeros(200, dtype=bool)
    labels[120:] = True
    low = RULE.threshold(scores, labels, np.arange(200), high=0.99)
    allowed = misses_allowed(0.1, 1 - 0.9, 200)
    k = next(k for k in range(121, 200) if k - 120 > allowed[k])
    assert low == pytest.approx((scores[k - 2] + scores[k - 1]) / 2)
    assert RULE.threshold(scores, labels, np.arange(200), high=0.3) == 0.3
    assert RULE.threshold(scores, ~labels, np.arange(200), high=0.3) == (
        "of the 52 validation patients with the lowest scores 52 are missed, and at most 2 may be"
    )
    assert RULE.threshold(scores, labels & False, np.arange(200), high=0.9) == 0.9
    few = RULE.threshold(scores[:21], labels[:21], np.arange(21), high=0.9)
    assert few == "needs more validation patients than 21 to say no of any"
    # Allowed from the sixth patient on, and no second miss among all 33.
    unsure = AbstentionRule(alpha=0.01, confidence=0.05)
    assert misses_allowed(0.01, 0.95, 33).tolist()[-27:] == [0] * 27
    sure = np.arange(33) >= 20
    low = unsure.threshold(scores[:33], sure, np.arange(33), high=0.9)
    assert low == pytest.approx((scores[19] + scores[20]) / 2)


def test_no_threshold_lies_below_the_smallest_set_that_is_tested() -> None:
    scores = np.arange(1, 201) / 201
    ill = np.zeros(200, dtype=bool)
    ill[:10] = True  # among the lowest scores, and nowhere else
    low = RULE.threshold(scores, ill, np.arange(200), high=scores[20])
    assert low == "its operating point is below every threshold that is tested"
    assert RULE.threshold(scores, ~ill, np.arange(200), high=scores[20]) == low


def test_several_images_of_a_patient_count_once() -> None:
    scores = np.arange(1, 201) / 201
    labels = np.zeros(200, dtype=bool)
    assert RULE.threshold(scores, labels, np.arange(200) % 21, high=0.9) == (
        "needs more validation patients than 21 to say no of any"
    )


def test_what_the_thresholds_do_on_the_test_images_is_counted_by_patient() -> None:
    predictions = table(patients=60)
    low = dict.fromkeys(FINDINGS, 0.3)
    low["Hernia"], low["Edema"] = 0.0, 0.005
    fitted = Abstention(0.05, 0.9, 321, low, {"Hernia": "too few"})
    result = Evaluator(resamples=60)(predictions, abstention=fitted)
    assert result["abstention"] == {"alpha": 0.05, "confidence": 0.9, "patients": 321}
    row = result["per_finding"]["Fibrosis"]["abstention"]
    scores, labels = predictions["prob_Fibrosis"], predictions["label_Fibrosis"] == 1
    no = scores < 0.3
    assert (row["low"], row["high"]) == (0.3, 0.5)
    assert row["answered"] == pytest.approx((no | (scores >= 0.5)).mean())
    said, missed = (set(predictions["patient_id"][kept]) for kept in (no, no & labels))
    assert (row["patients"], row["undefined_reason"]) == (len(said), {})
    assert row["misses_among_no"] == pytest.approx(len(missed) / len(said))
    for name in ("answered", "misses_among_no"):
        assert row[f"{name}_ci95"][0] < row[name] < row[f"{name}_ci95"][1]
    hernia = result["per_finding"]["Hernia"]["abstention"]
    assert {hernia[name] for name in ("low", "answered", "misses_among_no")} == {None}
    assert set(hernia["undefined_reason"].values()) == {"too few"}
    edema = result["per_finding"]["Edema"]["abstention"]
    assert edema["undefined_reason"]["misses_among_no"] in (NEVER_NO, FEW_NO)


def test_fitted_thresholds_survive_as_plain_values_and_lie_below_the_operating_points() -> None:
    validation = table(images=900, patients=400, signal=2.5).assign(split="val")
    validation["label_Hernia"] = 0
    points = OperatingRule().fit(validation)
    fitted = AbstentionRule(alpha=0.2).fit(validation, points)
    assert fitted.patients == 400
    assert fitted.undefined["Hernia"] == "no validation image has the finding"
    assert all(fitted.low[finding] <= cut for finding, cut in points.cuts.items())
    assert len(fitted.undefined) < 10
    plain = json.loads(json.dumps(fitted.to_plain()))
    entry = {
        "findings": list(FINDINGS),
        "operating_points": points.to_plain(),
        "thresholds": points.cuts,
        "abstention": plain,
    }
    assert abstention_of(entry) == fitted
    assert abstention_of(entry | {"abstention": None}) is None
    low = {**plain["low"], "Mass": points.cuts["Mass"] + 0.001}
    for change, said in (
        ({"alpha": 0}, "alpha is 0"),
        ({"confidence": "high"}, "confidence is 'high'"),
        ({"patients": -1}, "patients is -1"),
        ({"low": {"Mass": 0.1}}, "low has not the 14 findings"),
        ({"low": {**plain["low"], "Mass": math.nan}}, "low of Mass is nan"),
        ({"undefined": {"Mass": 3}}, "undefined is"),
        ({"low": low}, "do not lie below its operating points"),
    ):
        with pytest.raises(UserError, match=said):
            abstention_of(entry | {"abstention": plain | change})


@pytest.mark.parametrize("key", ["alpha", "confidence"])
@pytest.mark.parametrize("value", [0, 1, True, "0.1", float("nan")])
def test_a_rule_out_of_range_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.abstention\.{key}=.* between 0 and 1"):
        AbstentionRule(**{key: value})


def test_patients_are_told_apart_by_their_names() -> None:
    scores, labels = np.full((90, 14), 0.1), np.zeros((90, 14), dtype=int)
    scores[:40] = 0.4
    labels[:20] = 1
    rows: pd.DataFrame = frame(scores, labels, [f"p{row // 2}" for row in range(90)], split="val")
    assert AbstentionRule().fit(rows, OperatingRule().fit(rows)).patients == 45
