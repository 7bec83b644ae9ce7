"""Brier score, calibration error and reliability curve against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from xray_lightning.evaluation.metrics import BINS, reliability


@pytest.mark.parametrize("decimals", [1, 2, 16])
def test_the_curve_equals_scikit_learn(decimals: int) -> None:
    draw = np.random.default_rng(decimals)
    probabilities = draw.beta(0.5, 2, 700).round(decimals)
    labels = draw.random(700) < probabilities**1.5
    found = reliability(probabilities, labels)
    share, mean = calibration_curve(labels, probabilities, n_bins=BINS)
    assert [row["share_positive"] for row in found["reliability"]] == pytest.approx(share)
    assert [row["mean_probability"] for row in found["reliability"]] == pytest.approx(mean)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-9)


def test_the_error_is_the_mean_distance_of_share_and_probability() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.random(500)
    labels = draw.random(500) < 0.3
    found = reliability(probabilities, labels)
    expected, images = 0.0, 0
    for row in found["reliability"]:
        inside = (probabilities > row["low"]) & (probabilities <= row["high"])
        expected += abs(probabilities[inside].sum() - labels[inside].sum()) / 500
        images += row["images"]
        assert row["images"] == inside.sum()
    assert found["expected_calibration_error"] == pytest.approx(expected, abs=1e-9)
    assert images == 500


def test_a_probability_on_an_edge_lies_in_the_lower_bin_and_zero_in_the_first() -> None:
    probabilities = np.array([0.0, 1 / 3, 1.0])
    rows = reliability(probabilities, np.array([False, False, True]))["reliability"]
    assert [(round(row["low"] * 15), round(row["high"] * 15)) for row in rows] == [
        (0, 1),
        (4, 5),
        (14, 15),
    ]


def test_right_and_certain_probabilities_have_no_error() -> None:
    labels = np.array([True, False, False])
    found = reliability(labels.astype(float), labels)
    assert found["brier"] == found["expected_calibration_error"] == 0
    wrong = reliability(1.0 - labels, labels)
    assert wrong["brier"] == wrong["expected_calibration_error"] == 1
