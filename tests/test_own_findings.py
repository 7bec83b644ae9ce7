"""A table of one's own from train.py to the report, with findings that NIH does not have."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, SMALL, Train, Xray
from jsonschema import Draft202012Validator
from PIL import Image

from xray_lightning.errors import EXIT_USER_ERROR
from xray_lightning.models.checkpoint import read_checkpoint

FINDINGS = ["Effusion", "Rib Fracture", "Nodule/Mass"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety small images of thirty patients in subfolders, and their table."""
    root = tmp_path_factory.mktemp("own") / "films"
    draw = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(90):
        image = f"p{number // 3:02d}/{number % 3}.png"
        labels = draw.integers(0, 2, 3).tolist()
        pixels = draw.integers(0, 60, (32, 32)).astype(np.uint8)
        for label, corner in zip(labels, np.s_[:16, 16:24, 24:], strict=True):
            pixels[corner] += np.uint8(90 * label)
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / image)
        person = {"Case": number // 3, "Sex": "FM"[number // 3 % 2], "Age": 20 + number}
        rows.append({"File": image, **person, **dict(zip(FINDINGS, labels, strict=True))})
    pd.DataFrame(rows).to_csv(root / "films.csv", index=False)
    return root


def options(films: Path, *further: str) -> list[str]:
    return [
        *SMALL,
        "data=csv",
        f"data.root={films}",
        "data.columns.patient=Case",
        f"data.findings=[{','.join(FINDINGS)}]",
        *further,
    ]


def test_a_table_of_ones_own_goes_all_the_way(
    films: Path, train: Train, xray: Xray, tmp_path: Path
) -> None:
    ended = train(*options(films, "report=true", "loss=weighted_bce"), defaults=False)
    assert ended.exit_code == 0, ended.stderr
    run, results = ended.runs[0], ended.results[0]
    schema = REPOSITORY / "docs" / "results_schema.json"
    assert list(Draft202012Validator(json.loads(schema.read_text())).iter_errors(results)) == []
    recorded(results, run, pd.read_csv(films / "films.csv"))
    reported((run / "report.html").read_text(encoding="utf-8"))
    described = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert described["xray"]["findings"] == list(described["xray"]["thresholds"]) == FINDINGS
    assert [len(described["state_dict"][f"backbone.fc.{part}"]) for part in ("weight", "bias")] == [
        3,
        3,
    ]
    assert described["state_dict"]["loss.pos_weight"].shape == (3,)
    evaluated(xray, run, results["metrics"]["test"])
    elsewhere(xray, run, films, tmp_path)
    permuted(xray, run)


def recorded(results: dict[str, Any], run: Path, table: pd.DataFrame) -> None:
    """The record and the predictions are of the three findings, counted as the table has them."""
    test, positives = results["metrics"]["test"], results["data"]["positives"]
    assert list(test["per_finding"]) == FINDINGS
    for finding in FINDINGS:
        assert sum(side[finding] for side in positives.values()) == table[finding].sum()
    assert sum(results["data"]["images"].values()) == 90
    assert sum(results["data"]["patients"].values()) == 30
    predictions = pd.read_csv(run / "predictions_test.csv")
    columns = [f"{kind}_{finding}" for kind in ("prob", "label") for finding in FINDINGS]
    assert list(predictions)[3:9] == columns
    truth = table.set_index("File").loc[predictions["image"], FINDINGS].to_numpy()
    assert (predictions[columns[3:]].to_numpy() == truth).all()
    negative = 1 - truth.mean()
    assert test["always_negative_accuracy"] == pytest.approx(negative, abs=1e-12)


def reported(page: str) -> None:
    for finding in FINDINGS:
        assert finding in page
    assert "of 3 findings" in page
    assert "Hernia" not in page
    assert "No published figure is shown" in page


def evaluated(xray: Xray, run: Path, expected: dict[str, Any]) -> None:
    """Its checkpoint and its predictions score the same again."""
    code, _, err = xray("evaluate", run / "checkpoints" / "best.ckpt")
    assert code == 0, err
    again = json.loads((run / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert again["auroc_macro"] == pytest.approx(expected["auroc_macro"], abs=1e-6)
    assert list(again["per_finding"]) == FINDINGS
    file = run / "again.json"
    code, _, err = xray("evaluate", "--predictions", run / "predictions_test.csv", "--json", file)
    assert code == 0, err
    scored = json.loads(file.read_text())["metrics"]["per_finding"]
    for finding, scores in expected["per_finding"].items():
        assert scored[finding]["auroc"] == pytest.approx(scores["auroc"], abs=1e-9)


def elsewhere(xray: Xray, run: Path, films: Path, tmp_path: Path) -> None:
    """Another hospital's folder, whose table lacks a finding, is told so; a whole one is scored."""
    other = tmp_path / "other"
    shutil.copytree(films, other)
    checkpoint, to = run / "checkpoints" / "best.ckpt", ("--out", tmp_path / "out")
    code, out, err = xray("evaluate", checkpoint, "--data", other, *to)
    assert code == 0, err
    table = pd.read_csv(other / "films.csv").drop(columns="Nodule/Mass")
    table.to_csv(other / "films.csv", index=False)
    code, out, err = xray("evaluate", checkpoint, "--data", other, *to)
    assert (code, out) == (EXIT_USER_ERROR, "")
    assert "no column of data.findings Nodule/Mass" in err


def permuted(xray: Xray, run: Path) -> None:
    """Fault 18: outputs named in another order than the run's are refused, showing both."""
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    content["xray"]["findings"] = FINDINGS[::-1]
    torch.save(content, path)
    code, out, err = xray("evaluate", path, "--out", run / "permuted")
    assert (code, out) == (EXIT_USER_ERROR, "")
    assert f"{', '.join(FINDINGS[::-1])}, are not {', '.join(FINDINGS)}, in this order" in err
