"""Selection of the best of several models: how much of its score the choice has made."""

import numpy as np
import pandas as pd
import pytest

from xray_lightning.evaluation.selection_optimism import (
    ONE_MODEL,
    OTHER_IMAGES,
    TOO_FEW,
    optimism_of,
)

FINDINGS = ("Effusion", "Mass")
PATIENTS = 300


def models(count: int, *, skills: list[float], seed: int) -> list[pd.DataFrame]:
    """Validation predictions of models of some skill, on the same 300 patients."""
    rng = np.random.default_rng(seed)
    labels = rng.random((PATIENTS, len(FINDINGS))) < 0.3
    tables = []
    for skill in (skills * count)[:count]:
        logits = skill * labels + rng.normal(0, 1, labels.shape)
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        names = [f"{number:08d}" for number in range(PATIENTS)]
        columns = {"image": [f"{name}_000.png" for name in names], "patient_id": names}
        columns |= {f"prob_{name}": scores[:, place] for place, name in enumerate(FINDINGS)}
        columns |= {f"label_{name}": labels[:, place] for place, name in enumerate(FINDINGS)}
        tables.append(pd.DataFrame(columns))
    return tables


def best_of(tables: list[pd.DataFrame]) -> int:
    return max(range(len(tables)), key=lambda place: auroc(tables[place]))


def auroc(table: pd.DataFrame) -> float:
    from sklearn.metrics import roc_auc_score

    labels, scores = (table.filter(like=kind).to_numpy() for kind in ("label_", "prob_"))
    return float(roc_auc_score(labels, scores, average="macro"))


def test_the_best_of_models_that_know_nothing_is_corrected_to_one_half() -> None:
    best, corrected = [], []
    for seed in range(8):
        tables = models(12, skills=[0.0], seed=seed)
        found = optimism_of(tables, best=best_of(tables), resamples=25, seed=seed)
        assert found.auroc_macro == pytest.approx(auroc(tables[best_of(tables)]))
        best.append(found.auroc_macro)
        corrected.append(found.corrected)
    assert np.mean(best) > 0.53  # what a user would believe
    assert np.mean(corrected) == pytest.approx(0.5, abs=0.02)


def test_where_one_model_is_clearly_best_nothing_is_taken_off() -> None:
    tables = models(5, skills=[0.2, 0.2, 3.0, 0.2, 0.2], seed=1)
    found = optimism_of(tables, best=2, resamples=40)
    assert found.chosen == 1.0
    assert found.optimism == pytest.approx(0.0, abs=0.01)


def test_the_order_of_the_images_does_not_matter() -> None:
    tables = models(4, skills=[0.5], seed=2)
    shuffled = [table.sample(frac=1, random_state=place) for place, table in enumerate(tables)]
    assert optimism_of(shuffled, best=0, resamples=20) == optimism_of(tables, best=0, resamples=20)


def test_what_cannot_be_estimated_says_why() -> None:
    one, other = models(2, skills=[1.0], seed=3)
    assert optimism_of([one], best=0).reason == ONE_MODEL
    assert optimism_of([one, other.iloc[1:]], best=0).reason == OTHER_IMAGES
    few = [table.iloc[:2] for table in (one, other)]
    found = optimism_of(few, best=0, resamples=20)
    assert (found.optimism, found.corrected, found.reason) == (None, None, TOO_FEW)
