"""The metadata baseline: equal to scikit-learn, and what the images add to it or do not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Once, Train
from predicted import arrays, frame, redrawn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.evaluation.calibration import logit
from xray_lightning.evaluation.metadata_baseline import (
    FEW_VALIDATION,
    NO_METADATA,
    NO_TRAINING,
    NO_VALIDATION,
    CombinedModel,
    MetadataModel,
    features_of,
)
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS

QUICK = Evaluator(resamples=100)
NAMES = ("metadata_auroc", "gain_over_metadata", "auroc_within_view")


def drawn(images: int = 600, *, seed: int = 0, signal: float = 0.0, by_view: float = 2.0) -> Any:
    """Predictions of images whose findings go with their view, and training rows of the like.

    Args:
        signal: by how much a finding raises the model's logit.
        by_view: by how much AP raises it, and the log odds of each finding.
    """
    draw = np.random.default_rng([seed, 5])
    view = draw.choice(["PA", "AP", ""], images, p=[0.5, 0.45, 0.05])
    known = {
        "age": np.where(draw.random(images) < 0.1, np.nan, draw.integers(1, 95, images)),
        "sex": draw.choice(["M", "F", ""], images, p=[0.5, 0.45, 0.05]),
        "view": view,
        "follow_up": pd.array(draw.integers(0, 9, images), dtype="Int64"),
    }
    odds = by_view * ((view == "AP") - 0.5)[:, None] - 0.5
    labels = (draw.random((images, 14)) < 1 / (1 + np.exp(-odds))).astype(int)
    logits = odds + signal * labels + draw.normal(size=labels.shape) / 4
    predictions = frame(1 / (1 + np.exp(-logits)), labels, np.arange(images) // 2, **known)
    train = pd.DataFrame(dict(zip(FINDINGS, labels.T, strict=True)) | known)
    return predictions, train


def fitted(train: pd.DataFrame) -> MetadataModel:
    return MetadataModel.fit(train, FINDINGS)


def test_the_baseline_equals_scikit_learns_logistic_regression() -> None:
    _, train = drawn()
    model, features = fitted(train), features_of(train)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0).clip(1e-9)
    for finding in FINDINGS[::4]:
        judge = LogisticRegression(tol=1e-9, max_iter=1000).fit(scaled, train[finding])
        np.testing.assert_allclose(
            model.log_odds(train)[finding], judge.decision_function(scaled), atol=1e-4
        )


def test_a_finding_that_images_do_not_show_is_caught_although_the_view_gives_it_away() -> None:
    predictions, _ = drawn()
    result = QUICK(predictions, metadata=fitted(drawn(seed=1)[1]))
    assert result["auroc_macro"] > 0.6
    low, high = result["gain_over_metadata_macro_ci95"]
    assert low < 0 < high
    low, high = result["auroc_within_view_macro_ci95"]
    assert low < 0.5 < high


def test_what_the_images_show_is_a_gain_also_within_a_view() -> None:
    predictions, _ = drawn(signal=0.5)
    result = QUICK(predictions, metadata=fitted(drawn(seed=1)[1]))
    assert result["gain_over_metadata_macro_ci95"][0] > 0
    assert result["auroc_within_view_macro_ci95"][0] > 0.5


def within_view(scores: Any, labels: Any, view: Any) -> float:
    """By counting pairs."""
    wins = pairs = 0.0
    for one in ("PA", "AP"):
        inside = view == one
        positive, negative = scores[inside & (labels == 1)], scores[inside & (labels == 0)]
        above = positive[:, None] > negative
        wins += above.sum() + (positive[:, None] == negative).sum() / 2
        pairs += above.size
    return wins / pairs


def test_figures_and_intervals_are_those_of_the_resampled_rows() -> None:
    predictions, _ = drawn(120, signal=0.3)
    model = fitted(drawn(seed=1)[1])
    result = Evaluator(resamples=30, seed=3)(predictions, metadata=model)

    def scored(rows: pd.DataFrame) -> Any:
        scores, labels = arrays(rows)
        odds = np.column_stack([*model.log_odds(rows).values()])
        of_metadata = roc_auc_score(labels, odds, average=None)
        view = rows["view"].to_numpy()
        pairs = [within_view(*columns, view) for columns in zip(scores.T, labels.T, strict=True)]
        return of_metadata, roc_auc_score(labels, scores, average=None) - of_metadata, pairs

    once = np.array(scored(predictions))  # (3, findings)
    many = np.array([scored(rows) for rows in redrawn(predictions, resamples=30, seed=3)])
    for place, name in enumerate(NAMES):
        assert result[f"{name}_macro"] == pytest.approx(once[place].mean(), abs=1e-9)
        ends = np.quantile(many[:, place].mean(axis=1), [0.025, 0.975])
        assert result[f"{name}_macro_ci95"] == pytest.approx(ends, abs=1e-9)
        for column, finding in enumerate(FINDINGS):
            row = result["per_finding"][finding]
            assert row[name] == pytest.approx(once[place, column], abs=1e-9)
            ends = np.quantile(many[:, place, column], [0.025, 0.975])
            assert row[f"{name}_ci95"] == pytest.approx(ends, abs=1e-9)


def test_a_baseline_read_back_from_json_gives_the_same_figures() -> None:
    predictions, train = drawn(200)
    model = fitted(train)
    again = MetadataModel.from_plain(json.loads(json.dumps(model.to_plain())))
    assert again == model
    assert MetadataModel.from_plain({"images": 3}) is None
    assert QUICK(predictions, metadata=again) == QUICK(predictions, metadata=model)


def test_without_metadata_or_training_images_the_figures_are_null_with_the_reason() -> None:
    predictions, train = drawn(200)
    nothing = predictions.assign(view="", sex="", age=np.nan, follow_up=pd.NA)
    unknown = fitted(train.assign(view="", sex="", age=np.nan, follow_up=pd.NA))
    for table, model, reason in (
        (predictions, None, NO_TRAINING),
        (nothing, unknown, NO_METADATA),
    ):
        result = QUICK(table, metadata=model)
        for block in (result, result["per_finding"]["Mass"]):
            beside = ("metadata_auroc", "gain_", "combined_auroc")
            names = [name for name in block if name.startswith(beside)]
            assert len(names) == 8
            for name in names:
                assert block[name] is None
                assert block["undefined_reason"][name] == reason
    assert result["auroc_within_view_macro"] is None
    assert "of the same known view" in result["undefined_reason"]["auroc_within_view_macro"]


def test_a_finding_of_one_class_in_training_has_no_baseline_and_is_left_out() -> None:
    predictions, train = drawn(200)
    result = QUICK(predictions, metadata=fitted(train.assign(Hernia=0)))
    hernia = result["per_finding"]["Hernia"]
    assert hernia["metadata_auroc"] is None
    assert hernia["undefined_reason"]["metadata_auroc"] == "no training image has the finding"
    rest = [
        row["metadata_auroc"] for name, row in result["per_finding"].items() if name != "Hernia"
    ]
    assert result["metadata_auroc_macro"] == pytest.approx(np.mean(rest))


def together(signal: float, *, seed: int = 2, images: int = 600) -> tuple[Any, Any, Any]:
    """Validation predictions, metadata fitted on other images, and both combined."""
    val, _ = drawn(images, seed=seed, signal=signal)
    metadata = fitted(drawn(seed=1)[1])
    return val, metadata, CombinedModel.fit(val, metadata)


def logits_and_odds(predictions: pd.DataFrame, metadata: MetadataModel, finding: str) -> Any:
    scores = predictions[f"prob_{finding}"].to_numpy()
    return np.column_stack([metadata.log_odds(predictions)[finding], logit(scores)])


def test_metadata_and_the_model_together_equal_scikit_learn_and_pair_with_metadata() -> None:
    val, metadata, combined = together(0.3)
    predictions, _ = drawn(signal=0.3)
    result = Evaluator(resamples=20, seed=3)(predictions, metadata=metadata, combined=combined)
    for finding in FINDINGS[::4]:
        inputs = logits_and_odds(val, metadata, finding)
        mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
        judge = LogisticRegression(tol=1e-9).fit((inputs - mean) / spread, val[f"label_{finding}"])
        expected = judge.coef_[0] / spread
        assert combined.weights[finding][1:] == pytest.approx(expected, rel=1e-3, abs=1e-4)

        def gain(rows: pd.DataFrame, finding: str = finding, weights: Any = expected) -> float:
            inputs = logits_and_odds(rows, metadata, finding)
            labels = rows[f"label_{finding}"]
            return roc_auc_score(labels, inputs @ weights) - roc_auc_score(labels, inputs[:, 0])

        row = result["per_finding"][finding]
        both = roc_auc_score(
            predictions[f"label_{finding}"],
            logits_and_odds(predictions, metadata, finding) @ expected,
        )
        assert row["combined_auroc"] == pytest.approx(both, abs=2e-4)
        assert row["gain_of_combined"] == pytest.approx(gain(predictions), abs=2e-4)
        draws = [gain(rows) for rows in redrawn(predictions, resamples=20, seed=3)]
        ends = np.quantile(draws, [0.025, 0.975])
        assert row["gain_of_combined_ci95"] == pytest.approx(ends, abs=4e-4)


def test_a_model_that_knows_but_the_view_adds_nothing_to_metadata_and_one_that_sees_does() -> None:
    for signal in (0.0, 0.5):
        _, metadata, combined = together(signal)
        predictions, _ = drawn(signal=signal)
        result = QUICK(predictions, metadata=metadata, combined=combined)
        low, high = result["gain_of_combined_macro_ci95"]
        assert (low > 0.01) if signal else (low < 0.01 < 0.05 > high)


def test_both_read_back_from_json_give_the_same_figures_in_whatever_order_of_rows() -> None:
    val, metadata, combined = together(0.3, images=200)
    again = CombinedModel.from_plain(json.loads(json.dumps(combined.to_plain())))
    assert again == combined == CombinedModel.fit(val.iloc[::-1], metadata)
    assert CombinedModel.from_plain({"images": 3}) is None


def test_too_few_validation_patients_or_none_leave_the_combination_null_with_the_reason() -> None:
    val, metadata, _ = together(0.3, images=200)
    few = val.assign(label_Hernia=(np.arange(200) < 18).astype(int))  # of nine patients
    combined = CombinedModel.fit(few, metadata)
    assert combined.undefined == {"Hernia": FEW_VALIDATION}
    assert not CombinedModel.fit(
        val.assign(label_Hernia=(np.arange(200) < 19).astype(int)), metadata
    ).undefined
    predictions, _ = drawn(200)
    for given, reason in ((combined, FEW_VALIDATION), (None, NO_VALIDATION)):
        result = QUICK(predictions, metadata=metadata, combined=given)
        hernia = result["per_finding"]["Hernia"]
        for name in ("combined_auroc", "gain_of_combined"):
            assert hernia[name] is None
            assert hernia["undefined_reason"][name] == reason
    assert result["gain_of_combined_macro"] is None
    assert result["undefined_reason"]["gain_of_combined_macro"] == NO_VALIDATION


def given_away_by_the_view(folder: Path) -> None:
    """Phantoms whose Hernia is a matter of the view alone: in 75 % of AP, in 15 % of PA."""
    ensure_phantoms(folder, PhantomSpec(images=600, size=64, seed=5), workers=1)
    path = folder / "Data_Entry_2017_v2020.csv"
    table = pd.read_csv(path, dtype=str)
    ap = table["View Position"] == "AP"
    given = np.random.default_rng(0).random(len(table)) < np.where(ap, 0.75, 0.15)
    table["Finding Labels"] = np.where(given, "Hernia", "No Finding")
    table.to_csv(path, index=False)


@pytest.mark.slow
def test_a_training_on_phantoms_whose_view_gives_a_finding_away_is_caught(
    call: Train, once: Once
) -> None:
    root = once("given_away", given_away_by_the_view)
    ended = call(
        *(f"data.root={root}", "data.findings=[Hernia]", "data.normalize=imagenet"),
        *("optimizer.lr=0.0003", "trainer.max_epochs=2", "evaluation.resamples=200"),
    )
    assert ended.exit_code == 0, ended.stderr
    hernia = ended.results[0]["metrics"]["test"]["per_finding"]["Hernia"]
    assert hernia["auroc"] > 0.6
    low, high = hernia["auroc_within_view_ci95"]
    assert low < 0.5 < high
    assert hernia["gain_over_metadata_ci95"][0] < 0
    assert hernia["gain_of_combined_ci95"][0] < 0
    assert "cannot be shown" in " ".join(ended.stdout.split())
