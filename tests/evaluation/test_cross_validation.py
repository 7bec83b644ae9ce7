"""Cross-validation: folds of a sweep, scored as one table of out-of-fold predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Train, Xray
from predicted import grouped
from sklearn.metrics import roc_auc_score

from xray_lightning.errors import UserError
from xray_lightning.evaluation.cross_validation import OutOfFold, OutOfFoldMetadata
from xray_lightning.evaluation.evaluate_predictions import recompute
from xray_lightning.evaluation.metadata_baseline import MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import csv_of, read_predictions

FOLDS = 3


@pytest.fixture
def whole() -> pd.DataFrame:
    """Predictions of 600 images, whose patients' numbers tell their fold."""
    return grouped().astype({"follow_up": "Int64", "patient_id": str})


@pytest.fixture
def files(whole: pd.DataFrame, tmp_path: Path) -> list[Path]:
    """A file of predictions for each of three folds."""
    paths = []
    for fold, rows in whole.groupby(whole["patient_id"].astype(int) % FOLDS):
        paths.append(tmp_path / str(fold) / "predictions_val.csv")
        paths[-1].parent.mkdir()
        paths[-1].write_text(csv_of(rows))
    return paths


def test_the_folds_score_as_one_table_of_the_same_rows(
    whole: pd.DataFrame, files: list[Path], tmp_path: Path
) -> None:
    together = tmp_path / "together.csv"
    together.write_text(csv_of(whole))
    found = recompute(files, resamples=50).metrics
    expected = Evaluator(resamples=50)(
        read_predictions(together), metadata=OutOfFoldMetadata.of(OutOfFold.read(files))
    )
    assert found["auroc_macro"] == expected["auroc_macro"]
    assert found["auroc_macro_ci95"] == expected["auroc_macro_ci95"]
    assert found["gain_over_metadata_macro"] is not None
    assert json.dumps(found) == json.dumps(recompute(files[::-1], resamples=50).metrics)


def test_the_metadata_baseline_of_an_image_has_not_seen_its_fold(
    whole: pd.DataFrame, files: list[Path]
) -> None:
    read = OutOfFold.read(files)
    odds = OutOfFoldMetadata.of(read).log_odds(whole)
    fold = whole["patient_id"].astype(int) % FOLDS
    named = whole.rename(columns={f"label_{name}": name for name in FINDINGS})
    for number in range(FOLDS):
        others = MetadataModel.fit(named[fold != number], FINDINGS)
        expected = others.log_odds(whole[fold == number])
        for name, values in expected.items():
            np.testing.assert_allclose(odds[name][fold == number], values, rtol=1e-6)


def test_the_note_tells_what_each_fold_reaches_alone(
    whole: pd.DataFrame, files: list[Path]
) -> None:
    notes = " ".join(recompute(files, resamples=10).notes)
    for _, rows in whole.groupby(whole["patient_id"].astype(int) % FOLDS):
        aurocs = [roc_auc_score(rows[f"label_{f}"], rows[f"prob_{f}"]) for f in FINDINGS]
        assert f"{np.mean(aurocs):.3f}" in notes
    assert "out-of-fold predictions of 3 models" in notes


def test_a_fold_given_twice_is_refused_and_so_are_other_findings(
    whole: pd.DataFrame, files: list[Path]
) -> None:
    with pytest.raises(UserError, match="share 67 patients"):
        OutOfFold.read([*files, files[0]])
    files[2].write_text(csv_of(whole.drop(columns=["prob_Mass", "label_Mass"])))
    with pytest.raises(UserError, match="its findings, Atelectasis"):
        OutOfFold.read(files)
    with pytest.raises(UserError, match="is the file that is scored"):
        recompute(files[:2], val=files[1])


@pytest.mark.slow  # 30 s
def test_a_sweep_over_folds_is_scored_on_every_image_of_train_and_val(
    train: Train, xray: Xray, tmp_path: Path
) -> None:
    ended = train("-m", "data.fold=0,1", "data.folds=2", "name=folds")
    assert ended.exit_code == 0, ended.stderr
    tables = [pd.read_csv(run / "predictions_val.csv") for run in ended.runs]
    split = ended.results[0]["data"]["split"]
    assert {result["data"]["split"] for result in ended.results} == {split}
    assert len({result["data"]["split_sha256"] for result in ended.results}) == 2
    images = [name for table in tables for name in table["image"]]
    assert (
        len(set(images))
        == len(images)
        == sum(ended.results[0]["data"]["images"][side] for side in ("train", "val"))
    )
    options = [f"--predictions={run / 'predictions_val.csv'}" for run in ended.runs]
    code, out, err = xray("evaluate", *options, f"--json={tmp_path / 'oof.json'}")
    assert code == 0, err
    assert "out-of-fold predictions of 2 models" in " ".join(out.split())
    written = json.loads((tmp_path / "oof.json").read_text())
    assert written["metrics"]["images"] == len(images)
    assert len(written["predictions"]) == 2
