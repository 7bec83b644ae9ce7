"""What a model scores that looks at no image: the paper's best accuracy."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import REAL, real_data
from predicted import arrays, frame, table
from sklearn.metrics import brier_score_loss

from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS

AI4M = REAL / "ai4m"
# Positives of the 420 test and of the 1,000 training images of the AI-for-Medicine release.
AI4M_TEST = (60, 50, 53, 59, 60, 54, 50, 55, 53, 50, 56, 61, 58, 50)
AI4M_TRAIN = (106, 20, 128, 175, 45, 54, 10, 38, 33, 16, 13, 14, 21, 2)
QUICK = Evaluator(resamples=50)


def labels_with(positives: tuple[int, ...], images: int) -> Any:
    """Labels (images, 14) with so many positives of each finding."""
    return (np.arange(images)[:, None] < np.array(positives)).astype(int)


def shares(positives: tuple[int, ...], images: int) -> dict[str, float]:
    return {finding: n / images for finding, n in zip(FINDINGS, positives, strict=True)}


def test_always_saying_no_scores_the_papers_best_accuracy() -> None:
    labels = labels_with(AI4M_TEST, 420)
    assert (labels.sum(), labels.size) == (769, 5880)
    never = frame(np.zeros(labels.shape), labels, np.arange(420) % 389)
    result = QUICK(never, prevalences=shares(AI4M_TRAIN, 1000))
    assert round(100 * result["label_accuracy"], 2) == 86.92
    assert result["always_negative_accuracy"] == result["label_accuracy"]
    assert result["prevalence_accuracy"] == result["label_accuracy"]
    assert result["auroc_macro"] == 0.5
    assert result["auroc_macro_ci95"] is None  # no width: it would claim certainty
    assert {row["sensitivity"] for row in result["per_finding"].values()} == {0.0}


@real_data
def test_always_saying_no_scores_it_on_the_real_labels_too() -> None:
    test, train = pd.read_csv(AI4M / "test.csv"), pd.read_csv(AI4M / "train-small.csv")
    labels = test[list(FINDINGS)].to_numpy()
    assert tuple(labels.sum(axis=0)) == AI4M_TEST
    assert tuple(train[list(FINDINGS)].sum()) == AI4M_TRAIN
    never = frame(np.zeros(labels.shape), labels, test["PatientId"])
    result = QUICK(never, prevalences=train[list(FINDINGS)].mean().to_dict())
    assert (result["images"], result["patients"]) == (420, 389)
    assert round(100 * result["label_accuracy"], 2) == 86.92
    assert result["label_accuracy"] == result["prevalence_accuracy"]
    assert result["auroc_macro"] == 0.5


def test_prevalences_are_the_baseline_of_a_model_that_looks_at_no_image() -> None:
    predictions = table()
    _, labels = arrays(predictions)
    shares = np.linspace(0.05, 0.9, 14)
    result = QUICK(predictions, prevalences=dict(zip(FINDINGS, shares, strict=True)))
    constant = np.broadcast_to(shares, labels.shape)
    assert result["prevalence_accuracy"] == pytest.approx(((constant >= 0.5) == labels).mean())
    assert result["prevalence_brier_macro"] == pytest.approx(
        np.mean([brier_score_loss(labels[:, i], constant[:, i]) for i in range(14)])
    )
