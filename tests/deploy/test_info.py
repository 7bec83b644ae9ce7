"""`xray info`: what it says of a model is what its checkpoint and its own run say."""

import ast
import json
import os
import pickle
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Xray
from tested_run import BEST, CUTS, results, run_of, saved, write

from xray_lightning.deploy.model_card.info import model_info, parameters_in
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("made") / "best.ckpt")


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
    assert "by sex, age, view and visit is not known" in " ".join(out.split())


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


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hostile",))


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
