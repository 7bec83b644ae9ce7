"""`xray info` and the model card: they say what a checkpoint and its own run say, and no more."""

import ast
import json
import logging
import os
import pickle
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import BEST, CUTS, Hostile, checkpoint, results, run_of, write
from conftest import REPOSITORY, Xray

from xray_lightning.deploy.model_card.card import FILE_NAME, card, write_card, write_pages
from xray_lightning.deploy.model_card.info import (
    as_json,
    model_info,
    parameters_in,
    without_folders,
)
from xray_lightning.errors import printable
from xray_lightning.findings import FINDINGS
from xray_lightning.html.markdown import escaped
from xray_lightning.models.backbones import build_backbone


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("made") / "best.ckpt", small=True)


@pytest.fixture
def run(tmp_path: Path, best: Path) -> Path:
    return run_of(tmp_path / "run", best)


def changed(path: Path, to: Path, **further: Any) -> Path:
    """A copy of a checkpoint with other entries, those of `xray` under `described`."""
    content = torch.load(path, weights_only=True)
    content["xray"] |= further.pop("described", {})
    torch.save(content | further, to)
    return to


def test_the_json_is_the_figures_of_results_json_and_what_the_checkpoint_holds(
    run: Path, xray: Xray
) -> None:
    code, out, err = xray("info", run, "--json")
    assert (code, err) == (0, "")
    told, kept = json.loads(out), results()
    assert told["metrics"] == kept["metrics"]["test"]
    assert told["metrics_unknown"] is None
    assert told["model"]["findings"] == list(FINDINGS)
    assert told["model"]["image_size"] == 32
    assert told["checkpoint"] == {
        "path": str(run / "checkpoints" / "best.ckpt"),
        "schema_version": 1,
        "epoch": BEST,
        "steps": 92,
    }
    training = told["training"]
    for key in ("images", "patients", "positives", "split", "split_sha256", "dropped"):
        assert training[key] == kept["data"][key], key
    assert (training["seed"], training["epochs"], training["best_epoch"]) == (0, 4, BEST)
    assert told["operating_points"]["cuts"]["Hernia"] == 0.3 + 0.03 * 13
    assert told["calibration"]["method"] == "platt"
    assert (told["versions"]["torch"], told["versions"]["lightning"]) == ("2.15", "2.6")
    assert "not a medical device" in told["notice"]
    assert told["intended_use"]
    assert told["out_of_scope"]
    assert told["limits"]


def test_the_same_json_of_a_checkpoint_of_a_run_and_in_a_file(
    run: Path, tmp_path: Path, xray: Xray
) -> None:
    _, of_run, _ = xray("info", run, "--json")
    _, of_checkpoint, _ = xray("info", run / "checkpoints" / "best.ckpt", "--json")
    assert of_run == of_checkpoint
    code, out, _ = xray("info", run, "--json", tmp_path / "info.json")
    assert (code, "Written" in out) == (0, True)
    assert json.loads((tmp_path / "info.json").read_text()) == json.loads(of_run)


def test_the_terminal_shows_each_figure_with_its_interval_and_baseline(
    run: Path, xray: Xray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = xray("info", run)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "AUROC, macro 0.831 0.812-0.850 0.500, chance" in lines
    assert "Label accuracy at 0.5 87.12 % 86.27-88.05 % 86.54 %, always negative" in lines
    for finding, row in results()["metrics"]["test"]["per_finding"].items():
        shown = next(line for line in lines if line.startswith(f"{finding} ".replace("_", " ")))
        assert f" {row['positives']} " in shown
        if row["auroc"] is not None:
            assert f" {row['auroc']:.3f}" in shown
    assert "ab" * 32 in out
    assert "train 1,400 of 700 patients" in " ".join(out.replace("Images, ", "").split())
    assert "not a medical device" in out


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "densenet121"])
def test_the_parameters_are_those_that_training_sets(arch: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(arch=arch, hidden=[16], dropout=0.1)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {"loss.pos_weight": torch.ones(14), "normalize.mean": torch.ones(1)}
    own = sum(one.numel() for one in backbone.parameters())
    assert parameters_in(state, source=Path("x")) == own


def test_a_checkpoint_that_left_its_run_says_that_its_metrics_are_not_known(
    run: Path, tmp_path: Path, xray: Xray
) -> None:
    moved = Path(shutil.move(run / "checkpoints" / "best.ckpt", tmp_path / "moved.ckpt"))
    code, out, _ = xray("info", moved, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["metrics"] is None
    assert "not known" in told["metrics_unknown"]
    assert told["training"] == dict.fromkeys(told["training"]) | {"split_sha256": "ab" * 32}
    assert told["operating_points"] is not None
    code, out, _ = xray("info", moved)
    assert "0.831" not in out
    assert "Metrics are not known" in out


FEWER = {  # than the checkpoint tells of
    name: row
    for name, row in results()["metrics"]["test"]["per_finding"].items()
    if name != "Hernia"
}
PER_FINDING = ("metrics", "test", "per_finding")


@pytest.mark.parametrize(
    "keys, value, told",
    [
        ((*PER_FINDING, "Mass", "threshold"), CUTS["Mass"] + 1e-15, "other operating points"),
        (("data", "split_sha256"), "cd" * 32, "another split"),
        (("config", "model", "arch"), "resnet50", "another model"),
        (PER_FINDING, FEWER, "other findings"),
        (("config", "data", "image_size"), 64, "another image size"),
    ],
)
def test_another_runs_checkpoint_gets_none_of_the_runs_metrics(
    keys: tuple[str, ...], value: Any, told: str, run: Path
) -> None:
    content = results()
    *outer, last = keys
    reduce(getitem, outer, content)[last] = value
    write(run, content)
    known = model_info(run / "checkpoints" / "best.ckpt")
    assert (known.run, known.test) == (None, None)
    assert told in (known.untested or "")
    of_run = model_info(run)  # which is the run's own, without this checkpoint
    assert of_run.checkpoint is None
    assert of_run.test is not None
    assert told in of_run.link


def test_another_epochs_checkpoint_has_the_runs_training_but_not_its_metrics(
    run: Path, best: Path
) -> None:
    last = changed(best, run / "checkpoints" / "last.ckpt", epoch=3)
    known = model_info(last)
    assert known.run is not None
    assert known.test is None
    assert known.untested == "The run tested the checkpoint of epoch 3; this one is of 4."


def test_a_checkpoint_before_its_fit_has_not_the_metrics_of_the_tested_one(
    run: Path, best: Path
) -> None:
    bare = {"operating_points": None, "calibration": None}
    known = model_info(changed(best, run / "checkpoints" / "last.ckpt", described=bare))
    assert known.test is None
    assert "has none" in (known.untested or "")


def test_a_checkpoint_and_run_without_operating_points_are_read(
    run: Path, best: Path, xray: Xray
) -> None:
    content = torch.load(best, weights_only=True)
    for key in ("operating_points", "calibration"):
        del content["xray"][key]
    torch.save(content, run / "checkpoints" / "best.ckpt")
    kept = results()
    test = kept["metrics"]["test"]
    test |= {"operating_point": None, "calibrated": None, "subgroups": [], "brier_macro": None}
    write(run, kept)
    known = model_info(run)
    assert known.metrics == test
    assert "its epoch is the run's best" in known.link
    code, out, _ = xray("info", run)
    assert code == 0
    assert "no operating points, no calibration" in out
    assert "by sex, age, view or visit was not asked for, or is not known" in " ".join(out.split())


@pytest.mark.parametrize(
    "version, told", [(0, "schema_version 0"), (None, "None"), (2, "a newer xray-lightning")]
)
def test_another_schema_of_a_checkpoint_is_refused_by_name(
    version: Any, told: str, best: Path, tmp_path: Path, xray: Xray
) -> None:
    other = changed(best, tmp_path / "other.ckpt", described={"schema_version": version})
    code, out, err = xray("info", other)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert "this version reads 1" in err


def test_what_cannot_be_read_is_one_line_and_nothing_in_it_runs(run: Path, xray: Xray) -> None:
    Path("hostile.ckpt").write_bytes(pickle.dumps({"xray": Hostile()}))
    torch.save({"xray": Hostile()}, "zipped.ckpt")
    Path("cut.ckpt").write_bytes((run / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    Path("hollow").mkdir()
    write(Path("damaged"), {"schema_version": 9})
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("hostile.ckpt",), "is not loaded"),
        (("zipped.ckpt",), "is not loaded"),
        (("cut.ckpt",), "is not loaded"),
        (("absent.ckpt",), "does not exist"),
        (("hollow",), "is no run folder"),
        (("damaged",), "schema_version 9"),
        ((run, "--json", "--card"), "give one of them"),
        ((run, "--json", "no/x.json"), "there is no folder"),
        ((run, "--card", "hollow"), "--card hollow is a folder"),
    ]
    before = sorted(os.listdir())
    for arguments, message in cases:
        code, out, err = xray("info", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert message in err
    assert sorted(os.listdir()) == before


def test_a_run_without_a_checkpoint_or_a_test_says_what_there_is(
    best: Path, tmp_path: Path, xray: Xray
) -> None:
    kept = results(status="running", history=[])
    kept["metrics"] = {"test": None}
    folder = write(tmp_path / "running", kept)
    code, out, err = xray("info", folder)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "running" in text
    assert "This run has not come to its test yet." in text
    assert "No checkpoint: checkpoints/best.ckpt is not there." in text
    (folder / "checkpoints").mkdir()
    shutil.copy(best, folder / "checkpoints" / "last.ckpt")
    assert "last.ckpt: epoch 3" in xray("info", folder)[1]
    shutil.rmtree(folder / "checkpoints")
    kept |= {"status": "failed", "reason": "the disk is full", "data": None}
    write(folder, kept)
    assert "failed before its test: the disk is full" in " ".join(xray("info", folder)[1].split())


def test_a_run_that_tested_another_ones_checkpoint_says_so(run: Path, tmp_path: Path) -> None:
    best = run / "checkpoints" / "best.ckpt"
    kept = results(history=[])
    kept["config"]["ckpt_path"] = str(best)
    known = model_info(write(tmp_path / "test_only", kept))
    assert known.checkpoint is not None
    assert known.test is not None
    assert known.best_epoch is None
    best.unlink()
    assert model_info(tmp_path / "test_only").link == "No checkpoint: .../best.ckpt is not there."


def test_reading_a_model_imports_neither_lightning_nor_plots() -> None:
    package = REPOSITORY / "xray_lightning"
    heads = [*(package / "deploy" / "model_card").glob("*.py")]
    seen, outside = set(heads), set()
    while heads:
        for node in ast.parse(heads.pop().read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                own = REPOSITORY / f"{name.replace('.', '/')}.py"
                if own.is_file() and own not in seen:
                    seen.add(own)
                    heads.append(own)
                outside.add(name.split(".")[0])
    assert len(seen) > 20
    assert "torch" in outside
    assert not outside & {"lightning", "torchvision", "torchmetrics", "matplotlib", "sklearn"}


# -- the card --------------------------------------------------------------------------------------

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
        *("Operating points and calibration", "Limits and biases", "Checklist"),
        *("How to use", "Reproduce"),
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


def private() -> dict[str, Any]:
    kept = results(
        command="python '/home/jane doe/train.py' data.root=/home/jane/nih 'a=[~jane/x]'"
    )
    kept["data"] |= {"root": "/home/jane/nih", "split": "/home/jane/split.csv"}
    kept["environment"]["hosts"] = ["janes-laptop"]
    kept["training"] = {"warnings": ["jane_005.png is damaged"], "skipped_steps": 0}
    return kept


def test_fault_60_neither_card_nor_json_names_folders_hosts_or_files_of_patients(run: Path) -> None:
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
    caplog.set_level(logging.INFO)
    write_pages(run, report=False)
    assert (run / FILE_NAME).is_file()
    (run / FILE_NAME).unlink()
    (run / FILE_NAME).mkdir()  # where the card would be
    write_pages(run, report=False)
    failed = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(failed) == 1
    assert all("model_card.md could not be written" in one.getMessage() for one in failed)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", FILE_NAME, "results.json"]


def test_a_run_that_was_killed_after_its_end_gets_the_pages_that_it_lacks(run: Path) -> None:
    left = [f".{FILE_NAME}.t61ji9r5", ".report.html.abcdefgh"]
    for name in left:
        (run / name).touch()
    (run / "report.html").write_text("old")
    write_pages(run, report=True, missing=True)
    assert (run / FILE_NAME).is_file()
    assert (run / "report.html").read_text() == "old"
    assert not any((run / name).exists() for name in left)
    (run / "report.html").unlink()
    (run / FILE_NAME).write_text("old")
    write_pages(run, report=True, missing=True)
    assert (run / FILE_NAME).read_text() == "old"
    assert (run / "report.html").is_file()
