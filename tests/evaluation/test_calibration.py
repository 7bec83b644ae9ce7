"""Calibration: it undoes a known distortion, keeps every rank, and refuses what it cannot fit."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import column, validation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from xray_lightning.errors import UserError
from xray_lightning.evaluation.calibration import (
    FALLING,
    METHODS,
    SEPARATED,
    Calibration,
    Calibrator,
    logit,
    platt,
    sigmoid,
    temperature,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import SAME_SCORE

SLOPES = np.linspace(0.4, 2.5, 14)
INTERCEPTS = np.linspace(-2.0, 2.0, 14)


def drawn(*, slope: Any, intercept: Any, images: int, seed: int) -> tuple[Any, Any]:
    """Probabilities (N, 14) that sigmoid(slope * logit + intercept) would make true, and labels."""
    draw = np.random.default_rng(seed)
    true = draw.normal(-1.5, 1.5, size=(images, 14))
    labels = draw.random((images, 14)) < sigmoid(true)
    return sigmoid((true - intercept) / slope), labels


def small(images: int = 300) -> pd.DataFrame:
    return validation(*drawn(slope=SLOPES, intercept=INTERCEPTS, images=images, seed=5))


def test_platt_undoes_a_known_distortion_of_each_finding() -> None:
    fitted = Calibrator("platt").fit(
        validation(*drawn(slope=SLOPES, intercept=INTERCEPTS, images=20_000, seed=0))
    )
    assert fitted.undefined == {}
    # The standard errors are up to 0.02 of the slope, and 0.05 of the intercept.
    assert list(fitted.slope.values()) == pytest.approx(SLOPES, rel=0.06)
    assert list(fitted.intercept.values()) == pytest.approx(INTERCEPTS, abs=0.15)


def test_temperature_finds_the_known_one() -> None:
    fitted = Calibrator("temperature").fit(
        validation(*drawn(slope=1 / 2.5, intercept=0.0, images=5000, seed=0))
    )
    assert set(fitted.slope) == set(FINDINGS)
    assert set(fitted.intercept.values()) == {0.0}
    (slope,) = set(fitted.slope.values())
    assert 1 / slope == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize(
    "method, slope, intercept", [("platt", SLOPES, 1.0), ("temperature", 0.4, 0.0)]
)
def test_calibrated_probabilities_have_a_lower_log_loss_on_other_images(
    method: str, slope: Any, intercept: Any
) -> None:
    fitted = Calibrator(method).fit(
        validation(*drawn(slope=slope, intercept=intercept, images=2000, seed=1))
    )
    raw, labels = drawn(slope=slope, intercept=intercept, images=2000, seed=2)
    calibrated = fitted.apply(raw)
    before, after, ideal = (
        log_loss(labels.ravel(), values.ravel())
        for values in (raw, calibrated, sigmoid(slope * logit(raw) + intercept))
    )
    assert after < before - 0.02
    assert after == pytest.approx(ideal, abs=0.005)


@pytest.mark.parametrize("method", METHODS)
def test_no_auroc_changes(method: str) -> None:
    table = small()
    raw = table[[f"prob_{finding}" for finding in FINDINGS]].to_numpy()
    calibrated = Calibrator(method).fit(table).apply(raw)
    assert np.abs(calibrated - raw).max() > 0.05
    for i, finding in enumerate(FINDINGS):
        labels = table[f"label_{finding}"]
        assert roc_auc_score(labels, calibrated[:, i]) == roc_auc_score(labels, raw[:, i])
        assert (np.argsort(calibrated[:, i]) == np.argsort(raw[:, i])).all()


@pytest.mark.parametrize("positives", [1, 2, 20, 250])
def test_platt_equals_scikit_learns_logistic_regression_on_smoothed_targets(
    positives: int,
) -> None:
    draw = np.random.default_rng(positives)
    labels = np.arange(300) < positives
    logits = draw.normal(-2, 2, size=300) + 2 * labels
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (300 - positives + 2))
    # A target between 0 and 1 is both labels, each weighing its share.
    judge = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(logits, 2)[:, None],
        np.repeat([1, 0], 300),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    line = platt(logits, labels)
    assert line == pytest.approx((judge.coef_[0, 0], judge.intercept_[0]), rel=1e-4, abs=1e-4)


def test_temperature_equals_scikit_learns_logistic_regression_without_intercept() -> None:
    raw, labels = drawn(slope=0.5, intercept=1.0, images=200, seed=3)
    judge = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        logit(raw).reshape(-1, 1), labels.ravel()
    )
    assert temperature(logit(raw), labels) == pytest.approx(judge.coef_[0, 0], rel=1e-5)


def gradient(logits: Any, labels: Any, line: tuple[float, float]) -> Any:
    """Mean slope of the log loss to Platt's targets, of the standardised logits and 1: (2,)."""
    positives, negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    rest = sigmoid(line[0] * logits + line[1]) - targets
    return np.mean(rest * (logits - logits.mean()) / logits.std()), np.mean(rest)


@pytest.mark.parametrize("case", ["separated", "narrow", "wide", "one outlier", "far", "two"])
def test_hard_data_are_fitted_to_the_least_log_loss(case: str) -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(1000) < 30
    logits = draw.normal(size=1000) + labels
    if case == "separated":
        logits = np.where(labels, 5.0, -5.0) + draw.random(1000)
    elif case == "narrow":
        logits = 3 + 1e-4 * logits
    elif case == "wide":
        logits *= 17
    elif case == "one outlier":
        # Newton's whole steps would leave for infinity.
        logits = 0.001 * draw.normal(size=1000) + 0.1 * labels
        logits[0] = 17.0
    elif case == "far":
        logits -= 16
    else:
        logits, labels = np.array([-1.0, 2.0]), np.array([False, True])
    line = platt(logits, labels)
    assert isinstance(line, tuple)
    assert np.isfinite(line).all()
    assert line[0] > 0
    assert gradient(logits, labels, line) == pytest.approx((0, 0), abs=1e-6)


def test_hernia_with_few_positives_is_fitted_with_care_or_left_alone() -> None:
    scores = sigmoid(np.random.default_rng(0).normal(-3, 1, size=300))
    scores[:3] = 0.9, 0.95, 0.3
    for positives, undefined in (
        (0, {"Hernia": "no validation image has the finding"}),
        (1, {}),
        (2, {}),
        (3, {}),
    ):
        labels = np.arange(300) < positives
        fitted = Calibrator().fit(column(small(), "Hernia", scores, labels))
        assert fitted.undefined == undefined
        raw = np.tile(scores[:, None], 14)
        calibrated = fitted.apply(raw)[:, FINDINGS.index("Hernia")]
        if positives:
            # Platt's targets: the only ones seen do not become a certainty.
            assert calibrated.max() <= (positives + 1) / (positives + 2) + 0.1
            assert calibrated[positives:].mean() < 0.03
        else:
            assert (calibrated == scores).all()
    everyone = Calibrator().fit(column(small(), "Hernia", scores, np.ones(300, dtype=int)))
    assert everyone.undefined == {"Hernia": "every validation image has the finding"}


def test_scores_that_fall_with_the_finding_are_not_turned_round() -> None:
    table = small()
    table["prob_Mass"] = 1 - table["prob_Mass"]
    fitted = Calibrator().fit(table)
    assert fitted.undefined == {"Mass": FALLING}
    assert (fitted.slope["Mass"], fitted.intercept["Mass"]) == (1.0, 0.0)


@pytest.mark.parametrize("spread", [0.0, 1e-7])
def test_constant_scores_are_left_alone(spread: float) -> None:
    scores = 0.3 + spread * np.arange(300) / 300
    fitted = Calibrator().fit(column(small(), "Mass", scores, np.arange(300) > 200))
    assert fitted.undefined == {"Mass": SAME_SCORE}


def test_no_temperature_is_invented_where_none_is_best() -> None:
    labels = np.random.default_rng(0).random((50, 14)) < 0.3
    for scores, reason in (
        (np.where(labels, 0.9, 0.1), SEPARATED),
        (np.where(labels, 0.1, 0.9), FALLING),
        (np.full((50, 14), 0.5), FALLING),
    ):
        fitted = Calibrator("temperature").fit(validation(scores, labels))
        assert fitted.undefined == dict.fromkeys(FINDINGS, reason)
        assert (fitted.apply(scores) == scores).all()


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_exactly_0_and_1_stay_first_and_last(method: str) -> None:
    raw, labels = drawn(slope=SLOPES, intercept=INTERCEPTS, images=300, seed=0)
    raw[0], raw[1], labels[0], labels[1] = 0.0, 1.0, True, False  # and wrong at that
    fitted = Calibrator(method).fit(validation(raw, labels))
    assert fitted.undefined == {}
    ends = np.array([0.0, 1e-45, 1e-38, 1e-8, 0.5, 1 - 2.0**-24, 1.0])
    calibrated = fitted.apply(np.tile(ends[:, None], 14))
    assert np.isfinite(calibrated).all()
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    assert (np.diff(calibrated, axis=0) > 0).all()
    # A certainty that is wrong counts, but does not undo what the other labels say.
    assert min(fitted.slope.values()) > 0.1


def test_an_unknown_method_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"calibration\.method=isotonic must be one of platt"):
        Calibrator("isotonic")


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_survives_as_plain_values(method: str) -> None:
    table = small().assign(label_Hernia=0)
    fitted = Calibrator(method).fit(table)
    assert fitted.images == 300
    assert Calibration.from_plain(json.loads(json.dumps(fitted.to_plain()))) == fitted
    numbers = [*fitted.slope.values(), *fitted.intercept.values()]
    assert {type(number) for number in numbers} == {float}
