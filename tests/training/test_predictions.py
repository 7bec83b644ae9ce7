import io

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS
from xray_lightning.models.gathered_outputs import Outputs
from xray_lightning.runs.predictions import prediction_table
from xray_lightning.runs.summary import metrics_table

ROWS = 40


@pytest.fixture
def table() -> pd.DataFrame:
    labels = np.random.default_rng(0).integers(0, 2, (ROWS, len(FINDINGS)), dtype=np.uint8)
    labels[:, -1] = 0  # Hernia is never there
    frame = pd.DataFrame(labels, columns=list(FINDINGS))
    frame["image"] = [f"{row:03d}.png" for row in range(ROWS)]
    frame["patient_id"] = [str(row // 2) for row in range(ROWS)]
    return frame.assign(age=40.0, sex="F", view="PA", follow_up=[row % 2 for row in range(ROWS)])


@pytest.fixture
def outputs(table: pd.DataFrame) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    targets = torch.from_numpy(table[list(FINDINGS)].to_numpy(copy=True)).float()
    probabilities = torch.rand(ROWS, len(FINDINGS), generator=generator)
    return Outputs(torch.arange(ROWS), probabilities, targets, torch.zeros(ROWS))


def test_predictions_hold_image_patient_side_probabilities_and_labels(
    table: pd.DataFrame, outputs: Outputs
) -> None:
    predictions = prediction_table(table, outputs, side="test")
    assert list(predictions.columns) == [
        *("image", "patient_id", "split"),
        *(f"prob_{name}" for name in FINDINGS),
        *(f"label_{name}" for name in FINDINGS),
        *("age", "sex", "view", "follow_up"),
    ]
    further = prediction_table(table.assign(site="a"), outputs, side="test", further=["site"])
    assert list(further.columns) == [*predictions.columns, "site"]
    assert (predictions["split"] == "test").all()
    assert predictions["prob_Mass"].to_numpy() == pytest.approx(
        outputs.probabilities[:, FINDINGS.index("Mass")].numpy()
    )
    assert (predictions["label_Edema"].to_numpy() == table["Edema"].to_numpy()).all()


def test_predictions_that_are_not_one_an_image_are_refused(
    table: pd.DataFrame, outputs: Outputs
) -> None:
    with pytest.raises(RuntimeError, match="not one an image"):
        prediction_table(table.iloc[:-1], outputs, side="test")
    with pytest.raises(RuntimeError, match="not one an image"):
        prediction_table(table, None, side="test")


def test_the_last_table_shows_the_baseline_and_over_how_many_findings_the_macro_is(
    table: pd.DataFrame, outputs: Outputs
) -> None:
    metrics = Evaluator(resamples=20)(prediction_table(table, outputs, side="test"))
    console = Console(file=io.StringIO(), width=100)
    console.print(metrics_table(metrics))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "macro over 13" in text
    assert "for always answering no finding" in text
    assert f"{metrics['auroc_macro']:.3f}" in text
    hernia = next(line for line in text.splitlines() if "Hernia" in line)
    assert "-" in hernia  # undefined, not 0
    assert "0.000" not in hernia
