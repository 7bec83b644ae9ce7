"""model_card.md: what model hubs read at its head, and what it keeps to itself."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from tested_run import Results, results, run_of, saved, write

from xray_lightning.deploy.model_card.card import FILE_NAME, card, write_card
from xray_lightning.deploy.model_card.info import as_json, model_info, without_folders
from xray_lightning.errors import printable
from xray_lightning.html.markdown import escaped

NAMES = [
    "plain",
    "yes",
    "a: b",
    "'\"`",
    "---",
    "x\n---\nlicense: mit",
    "{{a}} #b",
    "<b>[x](y)|`",
    "胸部 \u2028\x00",
]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("made") / "best.ckpt")


@pytest.fixture
def run(tmp_path: Path, best: Path) -> Path:
    return run_of(tmp_path / "run", best)


def head_and_body(text: str) -> tuple[dict[str, Any], str]:
    empty, head, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), body


def written(folder: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    write(folder, results(**changes))
    return head_and_body(write_card(folder).read_text(encoding="utf-8"))


def test_the_head_has_what_hubs_read_with_each_figure_to_its_last_digit(run: Path) -> None:
    head, _ = written(run)
    assert head["pipeline_tag"] == "image-classification"
    assert "license" not in head
    assert {metric.lower() for metric in head["metrics"]} == set(head["metrics"])
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert result["task"]["type"] == "image-classification"
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("phantom", "test")
    figures = {metric["name"].split(" (")[0]: metric["value"] for metric in result["metrics"]}
    test = results()["metrics"]["test"]
    assert figures["AUROC, macro"] == test["auroc_macro"]
    assert figures["Average precision, macro"] == test["average_precision_macro"]
    assert figures["Brier score, macro"] == test["brier_macro"]
    assert figures["Label accuracy at 0.5; always negative 0.865"] == test["label_accuracy"]
    for finding, row in test["per_finding"].items():
        assert figures.get(f"AUROC, {finding.replace('_', ' ')}") == row["auroc"], finding
    (macro,) = [m for m in result["metrics"] if m["value"] == test["auroc_macro"]]
    assert macro["name"] == "AUROC, macro (95 % interval 0.812-0.850)"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_the_head_is_whole_yaml_whatever_the_run_is_called(name: str, run: Path) -> None:
    head, body = written(run, name=name)
    assert head["model-index"][0]["name"] == printable(name)
    assert "license" not in head
    assert body.startswith(f"\n# {escaped(name)}\n\n**")
    assert not any(mark in body.splitlines()[1] for mark in ("<b>", "[x]("))


def test_the_body_has_every_section_and_the_figures_of_results_json(run: Path) -> None:
    _, body = written(run)
    headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        *("Model details", "Intended use", "Out of scope", "Training data", "Evaluation"),
        *("Operating points and calibration", "Limits and biases", "How to use", "Reproduce"),
    ]
    assert body.count("not a medical device") == 1
    assert "| AUROC, macro | 0.831 | 0.812-0.850 | 0.500, chance |" in body
    assert "| 87.12 % | 86.27-88.05 % | 86.54 %, always negative |" in body
    rows = {line.split(" | ")[0]: line for line in body.splitlines() if line.count(" | ") == 6}
    for finding, row in results()["metrics"]["test"]["per_finding"].items():
        shown = rows[f"| {finding.replace('_', ' ')}"]
        for key in ("auroc", "average_precision", "sensitivity", "specificity"):
            if row[key] is not None:
                low, high = row[f"{key}_ci95"] or (None, None)
                ends = "" if low is None else f" ({low:.3f}-{high:.3f})"
                assert f"| {row[key]:.3f}{ends} |" in shown, (finding, key)
    assert 'load_model("checkpoints/best.ckpt")' in body
    assert "    python train.py" in body


def test_the_labels_noise_is_told_of_nih_and_of_nothing_else(run: Path) -> None:
    said = {}
    for name in ("nih", "phantom", "csv"):
        _, said[name] = written(run, data=results()["data"] | {"name": name})
    assert "read out of radiology reports by a program" in said["nih"]
    assert "ChestX-ray8: Hospital-scale" in said["nih"]
    assert "nothing about medicine" in said["phantom"]
    assert "is not recorded" in said["csv"]
    for name in ("phantom", "csv"):
        assert "reports" not in said[name]


def private() -> Results:
    kept = results(
        command="python '/home/jane doe/train.py' data.root=/home/jane/nih 'a=[~jane/x]'"
    )
    kept["data"] |= {"root": "/home/jane/nih", "split": "/home/jane/split.csv"}
    kept["environment"]["hosts"] = ["janes-laptop"]
    kept["training"] = {"warnings": ["jane_005.png is damaged"], "skipped_steps": 0}
    return kept


def test_neither_card_nor_json_names_folders_hosts_or_files_of_patients(run: Path) -> None:
    write(run, private())
    known = model_info(run)
    for text in (card(known), json.dumps(as_json(known))):
        assert "jane" not in text
        assert ".../split.csv" in text
        assert "data.root=.../nih" in text


@pytest.mark.parametrize(
    "command, kept",
    [
        ("python train.py data=nih", "python train.py data=nih"),
        ("python train.py data.root=data/nih", "python train.py data.root=data/nih"),
        ("a.py '/x y/z' b=/q/", "a.py .../z b=.../q"),
        ("a.py 'b=[/x/y,/z/w]' 'c={in:/e/f}'", "a.py 'b=[.../y,.../w]' 'c={in:.../f}'"),
        ("a.py 'b=C:\\x\\y'", "a.py b=.../y"),
        ("a.py 'open", "not shown: it cannot be split"),
    ],
)
def test_absolute_paths_keep_their_last_part(command: str, kept: str) -> None:
    assert without_folders(command) == kept


def test_a_card_without_figures_says_why_and_has_no_results_at_its_head(
    run: Path, best: Path
) -> None:
    head, body = head_and_body(card(model_info(best)))
    assert "model-index" not in head
    assert "Metrics are not known" in body
    untested = results(status="interrupted", reason="Ctrl-C")
    untested["metrics"] = {"test": None}
    head, body = head_and_body(card(model_info(write(run, untested))))
    assert "model-index" not in head
    assert "was interrupted before its test: Ctrl-C" in body


def test_a_card_that_cannot_be_written_does_not_fail_a_run_that_is_done(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = importlib.util.spec_from_file_location("train_script", REPOSITORY / "train.py")
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    caplog.set_level(logging.INFO)
    train.describe(run)
    assert (run / FILE_NAME).is_file()
    (run / FILE_NAME).unlink()
    (run / FILE_NAME).mkdir()  # where the card would be
    train.describe(run)
    train.describe(tmp_path / "absent")
    failed = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(failed) == 2
    assert all("model_card.md could not be written" in one.getMessage() for one in failed)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", FILE_NAME, "results.json"]
