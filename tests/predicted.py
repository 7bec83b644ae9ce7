"""Tables of predictions that tests of the metrics draw, and what was fitted to others."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.findings import FINDINGS


def table(
    *, images: int = 300, patients: int = 80, signal: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Predictions whose probabilities rise with the labels by `signal`, with tied scores."""
    draw = np.random.default_rng(seed)
    labels = (draw.random((images, 14)) < np.linspace(0.05, 0.5, 14)).astype(int)
    logits = draw.normal(size=(images, 14)) + signal * labels
    return frame((1 / (1 + np.exp(-logits))).round(2), labels, np.arange(images) % patients)


def grouped(*, images: int = 600, patients: int = 200) -> pd.DataFrame:
    """Predictions with age, sex, view and follow-up, drawn apart from all else."""
    draw = np.random.default_rng([0, 1])
    of = np.arange(images) % patients
    return table(images=images, patients=patients).assign(
        age=draw.integers(1, 95, patients).astype(float)[of],
        sex=draw.choice(["M", "F"], patients)[of],
        view=draw.choice(["PA", "AP"], images),
        follow_up=np.arange(images) // patients,
    )


def frame(scores: Any, labels: Any, patients: Any, **further: Any) -> pd.DataFrame:
    """Scores and labels (N, 14) as a table, with further columns such as `age`."""
    columns: dict[str, Any] = {
        "image": [f"{row:08d}_000.png" for row in range(len(scores))],
        "patient_id": patients,
        "split": "test",
    }
    columns |= {f"prob_{finding}": scores[:, i] for i, finding in enumerate(FINDINGS)}
    columns |= {f"label_{finding}": labels[:, i] for i, finding in enumerate(FINDINGS)}
    return pd.DataFrame(columns | further)


def validation(scores: Any, labels: Any) -> pd.DataFrame:
    """Scores and labels (N, 14) as predictions of the validation images, each of its patient."""
    return frame(scores, labels, range(len(scores)), split="val")


def column(table: pd.DataFrame, finding: str, scores: Any, labels: Any) -> pd.DataFrame:
    """The table with other scores and labels (N,) of a finding."""
    return table.assign(**{f"prob_{finding}": scores, f"label_{finding}": labels})


def arrays(predictions: pd.DataFrame) -> tuple[Any, Any]:
    """Its scores and labels, shape (N, 14)."""
    scores = predictions[[f"prob_{finding}" for finding in FINDINGS]].to_numpy()
    return scores, predictions[[f"label_{finding}" for finding in FINDINGS]].to_numpy()


def redrawn(predictions: pd.DataFrame, *, resamples: int, seed: int) -> Iterator[pd.DataFrame]:
    """The rows of the drawn patients, each copied as often as it was drawn, of every resample."""
    ids = predictions["patient_id"].astype(str)
    names = sorted(set(ids))
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)))
        times = ids.map(dict(zip(names, drawn, strict=True)))
        rows = predictions.loc[predictions.index.repeat(times)]
        yield rows.assign(image=[f"{row}.png" for row in range(len(rows))])


def of_model(row: Mapping[str, Any]) -> dict[str, Any]:
    """A block of metrics without metadata, pairs of one view, and what a call is worth."""
    beside = ("metadata_", "combined_", "gain_", "auroc_within_view")
    beside += ("ppv", "npv", "decision_curve", "abstention")
    kept = {name: value for name, value in row.items() if not name.startswith(beside)}
    if "undefined_reason" in kept:
        kept["undefined_reason"] = of_model(kept["undefined_reason"])
    return kept


def points(**cuts: float) -> OperatingPoints:
    """Operating points of 0.5 but where told otherwise."""
    return OperatingPoints("youden", None, 200, dict.fromkeys(FINDINGS, 0.5) | cuts, {})


def calibration() -> Calibration:
    """Fitted to the like of `table`."""
    return Calibrator().fit(table(seed=1).assign(split="val"))


def all_or_a_tenth(sets: int, *, low: float, high: float) -> pytest.MarkDecorator:
    """Simulate so many data sets (slow), or a tenth of them, of whose share more may be missed.

    Args:
        sets: how many there are in all.
        low, high: bounds of the share of intervals that hold the truth, in all of them.
    """
    more = 4 * (0.05 * 0.95 / sets) ** 0.5 * (10**0.5 - 1)  # four deviations of a tenth, and of all
    return pytest.mark.parametrize(
        ("sets", "low", "high"),
        [
            pytest.param(sets, low, high, marks=pytest.mark.slow, id="all"),
            pytest.param(sets // 10, low - more, high + more, id="a tenth"),
        ],
    )
