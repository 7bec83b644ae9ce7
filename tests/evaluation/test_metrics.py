"""Metrics: equal to scikit-learn, with intervals by patient."""

import numpy as np
import pandas as pd
import pytest
from predicted import arrays, calibration, of_model, points, redrawn, table
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
)

from xray_lightning.evaluation.metrics import BINS, Evaluator, reliability
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.findings import FINDINGS

QUICK = Evaluator(resamples=50)


def test_the_report_equals_scikit_learn() -> None:
    predictions = table()
    result = QUICK(predictions)
    scores, labels = arrays(predictions)
    assert result["images"] == 300
    assert result["patients"] == 80
    assert result["auroc_macro_findings"] == 14
    expected = {
        "auroc_macro": roc_auc_score(labels, scores, average="macro"),
        "auroc_micro": roc_auc_score(labels, scores, average="micro"),
        "average_precision_macro": average_precision_score(labels, scores, average="macro"),
        "average_precision_micro": average_precision_score(labels, scores, average="micro"),
        "brier_macro": brier_score_loss(labels.ravel(), scores.ravel()),
        "label_accuracy": ((scores >= 0.5) == labels).mean(),
        "always_negative_accuracy": 1 - labels.mean(),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    for i, finding in enumerate(FINDINGS):
        row = result["per_finding"][finding]
        assert row["auroc"] == pytest.approx(roc_auc_score(labels[:, i], scores[:, i]), abs=1e-9)
        assert row["average_precision"] == pytest.approx(
            average_precision_score(labels[:, i], scores[:, i]), abs=1e-9
        )
        assert row["brier"] == pytest.approx(brier_score_loss(labels[:, i], scores[:, i]))
        assert row["positives"] == labels[:, i].sum()
        assert row["prevalence"] == pytest.approx(labels[:, i].mean())
        assert of_model(row["undefined_reason"]) == {}
    assert result["undefined"] == {}


def test_each_interval_lies_around_its_score() -> None:
    result = Evaluator(resamples=200)(table(), calibration=calibration())
    blocks = [result, result["calibrated"], *result["per_finding"].values()]
    found = [
        (name.removesuffix("_ci95"), block)
        for block in blocks
        for name in of_model(block)
        if name.endswith("_ci95")
    ]
    assert len(found) == 5 + 1 + 4 * 14
    for name, block in found:
        low, high = block[f"{name}_ci95"]
        assert low < block[name] < high, name


def test_macro_and_micro_intervals_are_of_the_scores_of_resampled_rows() -> None:
    predictions = table(patients=40)
    result = Evaluator(resamples=100, seed=5)(predictions)
    drawn = [arrays(rows) for rows in redrawn(predictions, resamples=100, seed=5)]
    for name, score in {
        "auroc_macro": lambda p, y: roc_auc_score(y, p, average="macro"),
        "average_precision_macro": lambda p, y: average_precision_score(y, p, average="macro"),
        "auroc_micro": lambda p, y: roc_auc_score(y, p, average="micro"),
        "label_accuracy": lambda p, y: ((p >= 0.5) == y).mean(),
    }.items():
        expected = np.quantile([score(*one) for one in drawn], [0.025, 0.975])
        assert result[f"{name}_ci95"] == pytest.approx(expected, abs=1e-9), name


def test_the_confusion_stands_at_each_findings_operating_point() -> None:
    predictions = table()
    result = QUICK(predictions, operating_points=points(Mass=0.7, Hernia=0.31))
    assert result["operating_point"] == {
        "rule": "youden",
        "target": None,
        "images": 200,
        "undefined": {},
    }
    for finding, cut in {"Mass": 0.7, "Hernia": 0.31, "Edema": 0.5}.items():
        row = result["per_finding"][finding]
        present = predictions[f"label_{finding}"] == 1
        called = predictions[f"prob_{finding}"] >= cut
        passed, alarms, missed, hits = confusion_matrix(present, called).ravel()
        assert row["threshold"] == cut
        names = ("true_negatives", "false_positives", "false_negatives", "true_positives")
        assert [row[name] for name in names] == [passed, alarms, missed, hits]
        assert row["sensitivity"] == pytest.approx(hits / (hits + missed))
        assert row["specificity"] == pytest.approx(passed / (passed + alarms))


def test_operating_points_do_not_change_label_accuracy() -> None:
    predictions = table()
    moved = QUICK(predictions, operating_points=points(Mass=0.9))
    plain = QUICK(predictions)
    assert plain["operating_point"] is None
    assert moved["label_accuracy"] == plain["label_accuracy"]
    assert moved["per_finding"]["Mass"]["sensitivity"] < plain["per_finding"]["Mass"]["sensitivity"]


def test_why_a_finding_has_no_operating_point_of_its_own_is_kept() -> None:
    left = {"Hernia": "no validation image has the finding"}
    unfitted = OperatingPoints("f1", None, 9, dict.fromkeys(FINDINGS, 0.5), left)
    assert QUICK(table(), operating_points=unfitted)["operating_point"]["undefined"] == left


def test_calibration_is_told_beside_and_changes_nothing_else() -> None:
    predictions = table()
    raw, result = QUICK(predictions), QUICK(predictions, calibration=calibration())
    block = result["calibrated"]
    for row in (*raw["per_finding"].values(), *result["per_finding"].values()):
        del row["decision_curve"]  # it is of the probabilities that one would act on
    assert raw == result | {"calibrated": None}
    assert (block["method"], block["images"]) == ("platt", 300)
    scores, labels = arrays(predictions)
    applied = calibration().apply(scores)
    assert block["brier_macro"] == pytest.approx(((applied - labels) ** 2).mean(), abs=1e-9)
    assert block["brier_macro"] < result["brier_macro"]
    low, high = block["brier_macro_ci95"]
    assert low < block["brier_macro"] < high
    for i, finding in enumerate(FINDINGS):
        expected = brier_score_loss(labels[:, i], applied[:, i])
        assert block["per_finding"][finding]["brier"] == pytest.approx(expected, abs=1e-9)


def test_one_score_for_all_images_ranks_none_above_another() -> None:
    predictions = table()
    predictions[[f"prob_{finding}" for finding in FINDINGS]] = 0.25
    result = QUICK(predictions)
    assert result["auroc_macro"] == result["auroc_micro"] == 0.5
    assert result["auroc_macro_ci95"] is None  # no width: it would claim certainty
    _, labels = arrays(predictions)
    assert result["average_precision_macro"] == pytest.approx(labels.mean(axis=0).mean())


def test_the_seed_decides_the_interval() -> None:
    first, again = (Evaluator(resamples=40, seed=3)(table()) for _ in range(2))
    assert first == again
    assert Evaluator(resamples=40, seed=4)(table()) != first


def test_images_of_one_patient_widen_the_interval() -> None:
    once = table(images=200, patients=200)
    copies = pd.concat([once] * 5, ignore_index=True)
    copies["image"] = [f"{row}.png" for row in range(len(copies))]
    strangers = copies.assign(patient_id=range(len(copies)))
    expected = QUICK(once)["auroc_macro_ci95"]
    assert QUICK(copies)["auroc_macro_ci95"] == pytest.approx(expected)
    low, high = QUICK(strangers)["auroc_macro_ci95"]
    assert high - low < 0.7 * (expected[1] - expected[0])


# -- reliability ---------------------------------------------------------------------------------


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
