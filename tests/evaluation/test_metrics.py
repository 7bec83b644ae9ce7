"""Metrics: equal to scikit-learn, honest about what does not exist, intervals by patient."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.bootstrap import Ranking, bootstrap_auroc
from xray_lightning.evaluation.metrics import Evaluator, auroc, average_precision
from xray_lightning.findings import FINDINGS

AI4M = Path(__file__).parents[2] / "../shared/data/ai4m/test.csv"
QUICK = Evaluator(resamples=50)


def table(
    *, images: int = 300, patients: int = 80, signal: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Predictions whose probabilities rise with the labels by `signal`, with tied scores."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((images, 14)) < np.linspace(0.05, 0.5, 14)).astype(int)
    logits = draw.normal(size=(images, 14)) + signal * labels
    return frame((1 / (1 + np.exp(-logits))).round(2), labels, np.arange(images) % patients)


def frame(scores: Any, labels: Any, patients: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "image": [f"{row:08d}_000.png" for row in range(len(scores))],
        "patient_id": patients,
        "split": "test",
    }
    for i, finding in enumerate(FINDINGS):
        columns[f"prob_{finding}"] = scores[:, i]
    for i, finding in enumerate(FINDINGS):
        columns[f"label_{finding}"] = labels[:, i]
    return pd.DataFrame(columns)


@pytest.mark.parametrize("decimals", [0, 1, 2, 16])
def test_auroc_and_average_precision_equal_scikit_learn_with_ties(decimals: int) -> None:
    draw = np.random.default_rng(decimals)
    for share in (0.01, 0.3, 0.99):
        scores = draw.random(500).round(decimals)
        labels = draw.random(500) < share
        labels[:2] = [False, True]
        weights = draw.integers(0, 4, 500).astype(float)
        weights[:2] = 1
        assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
        assert auroc(scores, labels, weights) == pytest.approx(
            roc_auc_score(labels, scores, sample_weight=weights), abs=1e-9
        )
        assert average_precision(scores, labels) == pytest.approx(
            average_precision_score(labels, scores), abs=1e-9
        )


def test_the_report_equals_scikit_learn() -> None:
    predictions = table()
    result = QUICK(predictions)
    labels = predictions[[f"label_{f}" for f in FINDINGS]].to_numpy()
    scores = predictions[[f"prob_{f}" for f in FINDINGS]].to_numpy()
    assert result["images"] == 300
    assert result["patients"] == 80
    assert result["auroc_macro_findings"] == 14
    expected = {
        "auroc_macro": roc_auc_score(labels, scores, average="macro"),
        "auroc_micro": roc_auc_score(labels, scores, average="micro"),
        "average_precision_macro": average_precision_score(labels, scores, average="macro"),
        "label_accuracy": ((scores >= 0.5) == labels).mean(),
        "always_negative_accuracy": 1 - labels.mean(),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    for i, finding in enumerate(FINDINGS):
        row = result["per_finding"][finding]
        assert row["auroc"] == pytest.approx(roc_auc_score(labels[:, i], scores[:, i]), abs=1e-9)
        assert row["positives"] == labels[:, i].sum()
        low, high = row["auroc_ci95"]
        assert low < row["auroc"] < high
    low, high = result["auroc_macro_ci95"]
    assert low < result["auroc_macro"] < high
    assert result["undefined"] == result["undefined_reason"] == {}


def test_sensitivity_and_specificity_stand_at_each_findings_threshold() -> None:
    predictions = table()
    result = QUICK(predictions, thresholds={"Mass": 0.7, "Hernia": 0.31})["per_finding"]
    for finding, cut in {"Mass": 0.7, "Hernia": 0.31, "Edema": 0.5}.items():
        called = predictions[f"prob_{finding}"] >= cut
        present = predictions[f"label_{finding}"] == 1
        assert result[finding]["threshold"] == cut
        assert result[finding]["sensitivity"] == pytest.approx(called[present].mean())
        assert result[finding]["specificity"] == pytest.approx((~called[~present]).mean())


def test_fault_56_a_finding_of_one_class_is_null_with_its_reason_and_not_in_the_macro() -> None:
    predictions = table()
    predictions["label_Hernia"] = 0
    predictions["label_Mass"] = 1
    result = QUICK(predictions)
    assert result["undefined"] == {
        "Hernia": "no image has the finding",
        "Mass": "every image has the finding",
    }
    assert result["auroc_macro_findings"] == 12
    rest = [f for f in FINDINGS if f not in ("Hernia", "Mass")]
    values = [result["per_finding"][f]["auroc"] for f in rest]
    assert result["auroc_macro"] == pytest.approx(np.mean(values))
    hernia = result["per_finding"]["Hernia"]
    empty = {"auroc", "auroc_ci95", "average_precision", "sensitivity"}
    assert {name for name, value in hernia.items() if value is None} == empty
    assert hernia["undefined_reason"] == dict.fromkeys(
        ["auroc", "auroc_ci95", "average_precision", "sensitivity"], "no image has the finding"
    )
    assert result["per_finding"]["Mass"]["specificity"] is None


def test_without_any_positive_every_score_is_null_with_a_reason() -> None:
    predictions = table()
    predictions[[f"label_{f}" for f in FINDINGS]] = 0
    result = QUICK(predictions)
    assert result["always_negative_accuracy"] == 1
    assert result["auroc_macro_findings"] == 0
    scores = {"auroc_macro", "auroc_macro_ci95", "auroc_micro", "average_precision_macro"}
    assert {name for name, value in result.items() if value is None} == scores
    assert result["undefined_reason"].keys() == scores


def test_a_finding_of_one_patient_has_no_interval() -> None:
    predictions = table()
    predictions["label_Hernia"] = (predictions["patient_id"] == 5).astype(int)
    row = QUICK(predictions)["per_finding"]["Hernia"]
    assert row["auroc"] is not None
    assert row["auroc_ci95"] is None
    assert "two patients" in row["undefined_reason"]["auroc_ci95"]


def test_one_patient_alone_has_scores_but_no_interval() -> None:
    result = QUICK(table(patients=1))
    assert result["auroc_macro"] is not None
    assert result["auroc_macro_ci95"] is None
    assert "two patients" in result["undefined_reason"]["auroc_macro_ci95"]


def test_no_resamples_means_no_interval_and_says_so() -> None:
    result = Evaluator(resamples=0)(table())
    assert result["auroc_macro_ci95"] is None
    assert "resamples" in result["undefined_reason"]["auroc_macro_ci95"]
    assert "resamples" in result["per_finding"]["Mass"]["undefined_reason"]["auroc_ci95"]


def test_the_result_is_plain_json_without_nan() -> None:
    predictions = table()
    predictions["label_Hernia"] = 0
    result = QUICK(predictions, thresholds={"Mass": np.float32(0.25)})  # type: ignore[dict-item]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_interval_names_its_confidence_and_widens_with_it() -> None:
    narrow = Evaluator(resamples=200, confidence=0.5)(table())["auroc_macro_ci50"]
    wide = Evaluator(resamples=200, confidence=0.99)(table())["auroc_macro_ci99"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_seed_decides_the_interval() -> None:
    first, again = (Evaluator(resamples=40, seed=3)(table()) for _ in range(2))
    assert first == again
    assert Evaluator(resamples=40, seed=4)(table()) != first


def test_the_chunk_size_does_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rankings = [Ranking.of(draw.random(60), draw.random(60) < 0.3) for _ in range(3)]
    patients = np.arange(60) % 20
    whole = bootstrap_auroc(rankings, patients=patients, resamples=30, seed=0)
    monkeypatch.setattr("xray_lightning.evaluation.bootstrap.CHUNK", 7)
    chunked = bootstrap_auroc(rankings, patients=patients, resamples=30, seed=0)
    np.testing.assert_array_equal(whole, chunked)


def test_resamples_draw_whole_patients() -> None:
    draw = np.random.default_rng(1)
    scores, labels = draw.random(40).round(1), draw.random(40) < 0.4
    patients = draw.integers(0, 8, 40)
    ours = bootstrap_auroc([Ranking.of(scores, labels)], patients=patients, resamples=5, seed=7)[
        :, 0
    ]
    counts = np.random.default_rng(7).multinomial(8, np.full(8, 1 / 8), size=5)
    for value, drawn in zip(ours, counts, strict=True):
        rows = np.repeat(np.arange(40), drawn[patients])
        assert value == pytest.approx(roc_auc_score(labels[rows], scores[rows]))


def test_images_of_one_patient_widen_the_interval() -> None:
    once = table(images=200, patients=200)
    copies = pd.concat([once] * 5, ignore_index=True)
    copies["image"] = [f"{row}.png" for row in range(len(copies))]
    strangers = copies.assign(patient_id=range(len(copies)))
    expected = QUICK(once)["auroc_macro_ci95"]
    assert QUICK(copies)["auroc_macro_ci95"] == pytest.approx(expected)
    low, high = QUICK(strangers)["auroc_macro_ci95"]
    assert high - low < 0.7 * (expected[1] - expected[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5])
def test_fault_55_probabilities_that_are_no_numbers_end_the_run(value: float) -> None:
    predictions = table()
    predictions.loc[[3, 7], "prob_Mass"] = value
    with pytest.raises(RunFailedError, match=r"2 of 4200 probabilities.* 2 of 300 images"):
        QUICK(predictions)


def test_fault_57_an_image_counted_twice_ends_the_run() -> None:
    predictions = pd.concat([table(), table().iloc[:1]], ignore_index=True)
    with pytest.raises(RunFailedError, match="1 images are there twice, such as 00000000_000"):
        QUICK(predictions)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda t: t.drop(columns="prob_Hernia"), "no column prob_Hernia"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(label_Mass=2), "label_Mass"),
        (lambda t: t.assign(label_Mass=np.nan), "label_Mass"),
        (lambda t: t.assign(prob_Mass="high"), "prob_ column holds text"),
        (lambda t: t.assign(patient_id=None), "300 rows without patient_id"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(spoil: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        QUICK(spoil(table()))


@pytest.mark.parametrize(
    "options, thresholds, says",
    [
        ({"resamples": -1}, {}, "resamples=-1"),
        ({"confidence": 1}, {}, "confidence=1"),
        ({}, {"Masss": 0.5}, "Masss"),
        ({}, {"Mass": np.inf}, "Mass has inf"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    options: dict[str, Any], thresholds: dict[str, float], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        Evaluator(**options)(table(), thresholds=thresholds)


@pytest.mark.skipif(not AI4M.is_file(), reason="the AI-for-Medicine CSVs are not there")
def test_always_saying_no_scores_the_papers_best_accuracy() -> None:
    test = pd.read_csv(AI4M)
    labels = test[list(FINDINGS)].to_numpy()
    result = QUICK(frame(np.zeros(labels.shape), labels, test["PatientId"]))
    assert result["images"] == 420
    assert round(100 * result["label_accuracy"], 2) == 86.92
    assert result["label_accuracy"] == result["always_negative_accuracy"]
    assert result["auroc_macro"] == 0.5
