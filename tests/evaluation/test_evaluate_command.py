"""`xray evaluate` and `xray compare` on two real runs of one recipe that differ in their seed."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import REPOSITORY, SMALL, Once, Xray, environment
from predicted import of_model

from xray_lightning.evaluation.compare import summarise_seeds
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import csv_of, read_predictions
from xray_lightning.runs.run_folder import read_run


@pytest.fixture(scope="session")
def pair(phantoms: Path, once: Once) -> Path:
    """A folder with the runs of seeds 0 and 1 under runs/."""

    def fill(folder: Path) -> None:
        shutil.copytree(phantoms, folder / "phantoms")
        command = [sys.executable, str(REPOSITORY / "train.py"), "-m", *SMALL, "seed=0,1"]
        command += ["data.root=phantoms", "data.phantom=null", "data.cache_dir=cache"]
        command += ["data.val_fraction=0.4"]  # enough to fit operating points to
        command += ["hydra.sweep.dir=runs", "hydra.sweep.subdir=${hydra.job.num}"]
        subprocess.run(
            command, cwd=folder, env=environment(), check=True, capture_output=True, timeout=240
        )

    return once("pair", fill)


@pytest.fixture
def here(xray: Xray, pair: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs were started, since their data's paths are relative; `xray` runs there."""
    monkeypatch.chdir(pair)
    monkeypatch.setenv("COLUMNS", "80")
    return pair


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, f"{path}[{place}]")
    else:
        yield path, value


def assert_same(found: Any, expected: Any) -> None:
    """Every number of both, to 1e-9, and everything else exactly."""
    one, other = dict(leaves(found)), dict(leaves(expected))
    assert len(one) > 200
    assert one == pytest.approx(other, abs=1e-9)


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "results.json").read_text())["metrics"]["test"]
    return metrics


def evaluation(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content


def best(number: int) -> Path:
    return Path("runs") / str(number) / "checkpoints" / "best.ckpt"


TEST = "runs/0/predictions_test.csv"


# -- one checkpoint ------------------------------------------------------------------------------


def test_a_checkpoint_scores_what_its_run_has_recorded(here: Path, xray: Xray) -> None:
    code, out, err = xray("evaluate", best(0))
    assert (code, err) == (0, "")
    content = evaluation(here / "runs/0/evaluation")
    assert_same(content["metrics"], metrics_of(here / "runs/0"))
    assert content["metrics"]["operating_point"]["rule"] == "youden"
    assert content["fitted"]["operating_points"] == "stored in the checkpoint"
    assert content["ensemble"] is None
    assert content["note"] is None
    (described,) = content["checkpoints"]
    assert described["sha256"] == hashlib.sha256(best(0).read_bytes()).hexdigest()
    results = json.loads((here / "runs/0/results.json").read_text())
    assert content["data"]["split_sha256"] == results["data"]["split_sha256"]
    assert content["bootstrap"] == {"resamples": 20, "seed": 0}
    assert content["command"] == f"xray evaluate {best(0)}"
    assert "Operating points: stored in the checkpoint" in out
    assert "calibrated by platt" in out
    assert f"{content['metrics']['auroc_macro']:.3f}" in out
    # The predictions are the run's to the last bit.
    found = read_predictions(here / "runs/0/evaluation/predictions_test.csv")
    pd.testing.assert_frame_equal(found, read_predictions(here / TEST), check_exact=True)


@pytest.mark.parametrize(
    ("side", "said"),
    [
        ("train", "Note: these are the images that it was trained on"),
        ("val", "fitted to the validation images"),
    ],
)
def test_images_that_the_model_has_seen_are_scored_with_a_warning(
    side: str, said: str, here: Path, xray: Xray
) -> None:
    code, out, _ = xray("evaluate", best(0), "--side", side, "--out", "seen")
    assert code == 0
    assert said in " ".join(out.split())
    # Nothing of an earlier evaluation stays.
    names = sorted(path.name for path in (here / "seen").iterdir())
    assert names == ["evaluation.json", f"predictions_{side}.csv"]
    found = read_predictions(here / "seen" / names[1])
    if side == "train":
        assert found["image"].is_monotonic_increasing  # the table's order, not the epoch's
    assert len(found) == evaluation(here / "seen")["metrics"]["images"]


def test_another_split_says_how_many_patients_were_trained_on(here: Path, xray: Xray) -> None:
    code, out, _ = xray("evaluate", best(0), "--split", "patient_random", "--out", "random")
    assert code == 0
    xray("evaluate", best(0), "--side", "train", "--out", "of_train")
    trained = set(read_predictions(here / "of_train/predictions_train.csv")["patient_id"])
    scored = set(read_predictions(here / "random/predictions_test.csv")["patient_id"])
    both = len(trained & scored)
    assert both > 0
    assert f"{both} of the {len(scored)} patients scored were trained on" in out
    assert "split patient_random" in out
    assert evaluation(here / "random")["note"] in out


def test_a_subgroup_column_that_other_data_lack_is_named(
    here: Path, xray: Xray, tmp_path: Path
) -> None:
    earlier = shutil.ignore_patterns("evaluation")  # of another test
    run = shutil.copytree(here / "runs/0", tmp_path / "run", ignore=earlier)
    record = json.loads((run / "results.json").read_text())
    record["config"]["evaluation"]["subgroups"] = ["sex", "scanner"]
    (run / "results.json").write_text(json.dumps(record))
    checkpoint, options = run / "checkpoints/best.ckpt", ("--resamples", "0")
    code, _, err = xray("evaluate", checkpoint, "--data", "phantoms", *options)
    assert (code, err) == (0, "")
    found = evaluation(run / "evaluation")
    assert found["note"].endswith("no subgroups by scanner, which other data need not have")
    assert {row["by"] for row in found["metrics"]["subgroups"]} == {"sex"}


def test_an_ensemble_of_others_is_not_written_over(here: Path, xray: Xray, tmp_path: Path) -> None:
    for number in ("0", "1"):
        (tmp_path / number).symlink_to(here / "runs" / number)
    held = tmp_path / "ensemble" / "evaluation.json"
    held.parent.mkdir()
    text = json.dumps({"checkpoints": [{"path": "other.ckpt"}]})
    held.write_text(text)
    code, out, err = xray(
        "evaluate", *(tmp_path / best(number).relative_to("runs") for number in (0, 1))
    )
    assert (code, out) == (2, "")
    assert "is of other checkpoints" in err
    assert held.read_text() == text


def test_a_checkpoint_that_left_its_run_needs_data(here: Path, xray: Xray, tmp_path: Path) -> None:
    alone = tmp_path / "away" / "alone.ckpt"
    alone.parent.mkdir()
    shutil.copy(best(0), alone)
    code, out, err = xray("evaluate", alone)
    assert (code, out) == (2, "")
    assert "give --data DIR" in err
    options = ("--data", "phantoms", "--cache-dir", "cache", "--batch-size", "16")
    code, out, err = xray("evaluate", alone, *options, "--resamples", "20")
    assert (code, err) == (0, "")
    found, expected = evaluation(alone.parent / "evaluation"), metrics_of(here / "runs/0")
    rows, before = found["metrics"]["per_finding"], expected["per_finding"]
    for finding, row in rows.items():  # the same test images; metadata are fitted to other ones
        assert of_model(row) == of_model(before[finding])
    assert "whether it was trained on some of these patients cannot be told" in out


def test_a_checkpoint_without_operating_points_gets_them_from_validation(
    here: Path, xray: Xray
) -> None:
    code, out, _ = xray("evaluate", "runs/0/checkpoints/last.ckpt", "--out", "last")
    assert code == 0
    content = evaluation(here / "last")
    assert content["fitted"]["operating_points"].startswith("fitted on validation predictions")
    assert content["metrics"]["operating_point"]["images"] == len(
        read_predictions(here / "last/predictions_val.csv")
    )
    code, out, _ = xray(
        "evaluate", "runs/0/checkpoints/last.ckpt", "--out", "last_val", "--side", "val"
    )
    assert "none: 0.5 everywhere" in out  # never fitted to what is scored


# -- an ensemble ---------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_its_members_and_tells_what_it_gains(
    here: Path, xray: Xray
) -> None:
    code, out, err = xray("evaluate", best(0), best(1))
    assert (code, err) == (0, "")
    folder = here / "runs/ensemble"
    content, found = evaluation(folder), read_predictions(folder / "predictions_test.csv")
    members = [read_predictions(here / f"runs/{number}/predictions_test.csv") for number in (0, 1)]
    for finding in FINDINGS:
        column = f"prob_{finding}"
        mean = (members[0][column].astype(float) + members[1][column].astype(float)) / 2
        assert found[column].to_numpy() == pytest.approx(mean.to_numpy(), abs=1e-7)
    scores = [metrics_of(here / f"runs/{number}")["auroc_macro"] for number in (0, 1)]
    whole = content["metrics"]["auroc_macro"]
    gains = content["ensemble"]
    assert [member["auroc_macro"] for member in gains["members"]] == pytest.approx(scores)
    assert gains["gain_over_mean"]["value"] == pytest.approx(whole - sum(scores) / 2)
    for member, score in zip(gains["members"], scores, strict=True):
        assert member["gain"]["auroc_macro"]["value"] == pytest.approx(whole - score)
        low, high = member["gain"]["auroc_macro"]["ci95"]
        assert low <= high
    assert "their mean" in out
    assert ("excludes zero" in out) or ("includes zero" in out)


def test_an_ensembles_operating_points_are_fitted_to_its_own_validation(
    here: Path, xray: Xray
) -> None:
    xray("evaluate", best(1), best(0), "--average", "logits", "--out", "logits")
    content = evaluation(here / "logits")
    assert content["average"] == "logits"
    assert content["fitted"]["operating_points"].startswith("fitted on validation predictions")
    val = read_predictions(here / "logits/predictions_val.csv")
    assert content["metrics"]["operating_point"]["images"] == len(val)
    code, _, _ = xray(
        "evaluate", "--predictions", "logits/predictions_test.csv", "--json", "l.json"
    )
    assert code == 0
    again = json.loads((here / "l.json").read_text())["metrics"]
    member = metrics_of(here / "runs/1")["per_finding"]
    cuts = {name: row["threshold"] for name, row in content["metrics"]["per_finding"].items()}
    assert {name: row["threshold"] for name, row in again["per_finding"].items()} == cuts
    assert sum(cuts[name] not in (0.5, member[name]["threshold"]) for name in FINDINGS) >= 3


# -- predictions ---------------------------------------------------------------------------------


def test_every_metric_of_a_run_follows_from_its_predictions(here: Path, xray: Xray) -> None:
    code, out, err = xray("evaluate", "--predictions", "runs/0/predictions_test.csv", "--json", "m")
    assert (code, err) == (0, "")
    content = json.loads((here / "m").read_text())
    assert_same(content["metrics"], metrics_of(here / "runs/0"))
    assert content["notes"] == []
    assert "fitted to runs/0/predictions_val.csv" in out


def test_validation_predictions_are_found_beside_a_name_with_test_in_another_word(
    here: Path, xray: Xray
) -> None:
    (here / "named").mkdir()
    for side in ("test", "val"):
        copied = here / f"named/latest_predictions_{side}.csv"
        shutil.copy(here / f"runs/0/predictions_{side}.csv", copied)
    code, out, _ = xray(
        "evaluate", "--predictions", "named/latest_predictions_test.csv", "--json", "named/m"
    )
    assert code == 0
    assert "fitted to named/latest_predictions_val.csv" in out


def test_an_evaluation_removes_the_other_sides_of_an_earlier_one_alone(
    here: Path, xray: Xray
) -> None:
    other = here / "mine" / "predictions_val.csv"
    other.parent.mkdir()
    other.write_text("mine")
    for kept in (True, False):
        code, _, _ = xray(
            "evaluate", "runs/0/checkpoints/best.ckpt", "--out", "mine", "--resamples", "0"
        )
        assert (code, other.exists()) == (0, kept)


def test_predictions_alone_are_scored_as_far_as_they_go(
    here: Path, xray: Xray, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.csv"
    older = read_predictions(here / "runs/0/predictions_test.csv")
    alone.write_text(csv_of(older.drop(columns=["age", "sex", "view", "follow_up"])))
    code, out, err = xray("evaluate", "--predictions", alone, "--json", tmp_path / "m.json")
    assert (code, err) == (0, "")
    assert "Test: " in out
    content = json.loads((tmp_path / "m.json").read_text())
    expected = metrics_of(here / "runs/0")
    assert content["metrics"]["auroc_macro"] == expected["auroc_macro"]
    assert content["metrics"]["operating_point"] is None
    assert content["metrics"]["calibrated"] is None
    assert "no validation predictions" in out
    assert "without training prevalences" in out
    given = here / "runs/0/predictions_val.csv"
    xray("evaluate", "--predictions", alone, "--val", given, "--json", tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["metrics"]["operating_point"] == expected["operating_point"]


def test_what_was_fitted_to_validation_images_is_not_scored_on_them(here: Path, xray: Xray) -> None:
    given = ("runs/0/checkpoints/best.ckpt", "--side", "val", "--out", "fitted_on")
    for command in (given, ("--predictions", "runs/0/predictions_val.csv", "--json", "own.json")):
        code, out, _ = xray("evaluate", *command)
        assert code == 0
        assert "Validation: " in out
        assert "Test: " not in out
    assert evaluation(here / "fitted_on")["metrics"]["combined_auroc_macro"] is None
    assert json.loads((here / "own.json").read_text())["metrics"]["combined_auroc_macro"] is None


@pytest.fixture
def table(here: Path) -> pd.DataFrame:
    """A run's predictions as text, to be spoiled."""
    return pd.read_csv(here / "runs/0/predictions_test.csv", dtype=str, keep_default_na=False)


Spoil = Callable[[pd.DataFrame], pd.DataFrame | bytes | None]


def cell(row: int, column: str, value: str) -> Spoil:
    """Another text in one cell."""

    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return spoil


SPOILED: list[tuple[Spoil, str]] = [
    (cell(0, "prob_Mass", "much"), "line 2: prob_Mass 'much' is not a probability from 0 to 1"),
    (cell(3, "prob_Edema", "nan"), "line 5: prob_Edema 'nan' is not"),
    (cell(3, "prob_Edema", ""), "line 5: prob_Edema '' is not"),
    (cell(1, "prob_Hernia", "1.0001"), "line 3: prob_Hernia '1.0001' is not"),
    (cell(1, "prob_Hernia", "-1e-9"), "line 3: prob_Hernia '-1e-9' is not"),
    (cell(1, "prob_Hernia", "inf"), "line 3: prob_Hernia 'inf' is not"),
    (cell(2, "label_Nodule", "2"), "line 4: label_Nodule '2' is neither 0 nor 1"),
    (cell(2, "label_Nodule", ""), "line 4: label_Nodule '' is neither"),
    (cell(2, "patient_id", ""), "line 4: patient_id '' is empty"),
    (cell(2, "image", " "), "line 4: image '' is empty"),
    (cell(2, "sex", "X"), "line 4: sex 'X' is none of M, F"),
    (cell(2, "view", "LL"), "line 4: view 'LL' is none of PA, AP"),
    (cell(2, "age", "old"), "line 4: age 'old' is no age in years"),
    (cell(2, "age", "inf"), "line 4: age 'inf' is no age in years"),
    (cell(2, "follow_up", "0.5"), "line 4: follow_up '0.5' is no whole number from 0"),
    (lambda t: pd.concat([t[:3], t[1:2]]), "line 5: image '.*png' is in line 3 already"),
    (lambda t: t.drop(columns="label_Edema"), "line 1: no column 'label_Edema'"),
    (lambda t: t.iloc[:0], " has a header but no rows"),
    (lambda t: b"", "is empty"),
    (lambda t: b"\x89PNG\r\n\x1a\n\0\0", "NUL byte"),
    (lambda t: b"\xff\xfe\xfd,\n", "not UTF-8"),
    (lambda t: b"<html></html>\n", "no column 'image'"),
    (lambda t: None, "is no file"),
]


@pytest.mark.parametrize(("spoil", "fault"), SPOILED, ids=[fault for _, fault in SPOILED])
def test_a_fault_in_predictions_is_named_by_file_line_and_column(
    spoil: Spoil, fault: str, table: pd.DataFrame, xray: Xray, tmp_path: Path
) -> None:
    path = tmp_path / "spoiled.csv"
    spoiled = spoil(table)
    if isinstance(spoiled, pd.DataFrame):
        spoiled.to_csv(path, index=False)
    elif spoiled is not None:
        path.write_bytes(spoiled)
    code, out, err = xray("evaluate", "--predictions", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"xray: error: {path}")
    assert re.search(fault, err)
    assert err.count("\n") == 1


def test_identities_stay_text_and_numbers_keep_every_bit(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    ids = ["007", "7", "9" * 40, "1e3", "NA", "0x10", "null"]
    table.loc[: len(ids) - 1, "patient_id"] = ids
    table.loc[0, "prob_Mass"] = "0.1"
    path = tmp_path / "ids.csv"
    table.to_csv(path, index=False)
    found = read_predictions(path)
    assert found["patient_id"].tolist()[: len(ids)] == ids
    (tmp_path / "again.csv").write_text(csv_of(found))
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "again.csv"), found, check_exact=True)
    assert found["prob_Mass"].dtype == "float32"


# -- comparing -----------------------------------------------------------------------------------


def test_two_seeds_are_compared_on_their_test_images(here: Path, xray: Xray) -> None:
    code, out, err = xray("compare", "runs/0", "runs/1", "--json", "c.json", "--resamples", "50")
    assert (code, err) == (0, "")
    content = json.loads((here / "c.json").read_text())
    scores = [metrics_of(here / f"runs/{number}") for number in (0, 1)]
    found = content["second_minus_first"]
    for name in ("auroc_macro", "average_precision_macro", "label_accuracy", "brier_macro"):
        difference = scores[1][name] - scores[0][name]
        assert found[name]["value"] == pytest.approx(difference, abs=1e-6)
        low, high = found[name]["ci95"]
        assert low <= high
        assert found[name]["excludes_zero"] == (low > 0 or high < 0)
    assert content["bootstrap"] == {"resamples": 50, "seed": 0}
    results = json.loads((here / "runs/0/results.json").read_text())
    assert content["split_sha256"] == results["data"]["split_sha256"]
    words = "excludes zero" if found["auroc_macro"]["excludes_zero"] else "includes zero"
    assert words in next(line for line in out.splitlines() if line.startswith("AUROC, macro"))
    assert f"It {words}" in out
    assert "Label accuracy of always answering no finding" in out
    assert "\u2026" not in out  # nothing is cut off at 80 columns


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"status": "running"}, ["other is running"]),
        ({"data": {"split_sha256": "cd" * 32}}, ["different splits", "cdcdcdc"]),
    ],
    ids=str,
)
def test_a_run_that_is_not_comparable_is_refused(
    change: dict[str, Any], faults: list[str], here: Path, xray: Xray, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    results = json.loads((here / "runs/1/results.json").read_text())
    change = {key: results[key] | new if key == "data" else new for key, new in change.items()}
    (other / "results.json").write_text(json.dumps(results | change))
    code, out, err = xray("compare", "runs/0", other)
    assert (code, out) == (2, "")
    assert all(fault in err for fault in faults)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("compare", "runs/0", "absent"), "no such run: absent"),
        (("compare", "runs/0", "runs/0/."), "are the same run"),
        (("compare", "runs/0", "phantoms"), "no results.json in phantoms"),
        (("compare", "runs/0", "runs/1", "--json", "a/b"), "there is no folder a"),
        (("compare", "runs/0", "runs/1", "--json", "runs"), "--json runs is a folder"),
        (("compare", "runs/0", "runs/1", "--resamples", "-1"), "--resamples=-1 must be"),
        (("evaluate",), "needs checkpoints, or --predictions FILE"),
        (("evaluate", "a.ckpt", "--predictions", "b.csv"), "and not both"),
        (("evaluate", "a.ckpt"), "checkpoint a.ckpt does not exist"),
        (("evaluate", "runs/0"), "checkpoint runs/0 is a folder"),
        (("evaluate", best(0), "--average", "logits"), "--average is of several checkpoints"),
        (("evaluate", best(0), "--json", "x"), "--val and --json belong to --predictions"),
        (("evaluate", best(0), "--side", "all"), "--side all is unknown"),
        (("evaluate", best(0), best(1), "--average", "votes"), "--average votes is unknown"),
        (("evaluate", best(0), best(0)), "are the same checkpoint"),
        (("evaluate", best(0), "--data", "absent"), "data.root=absent does not exist"),
        (("evaluate", best(0), "--batch-size", "0"), "data.batch_size=0 must be"),
        (("evaluate", best(0), "--precision", "8-bit"), "precision=8-bit is unknown"),
        (("evaluate", best(0), "--accelerator", "tpu"), "accelerator=tpu is unknown"),
        (("evaluate", best(0), "--resamples", "-5"), "--resamples=-5 must be"),
        (("evaluate", best(0), "--seed", "-5"), "--seed=-5 must be"),
        (("evaluate", best(0), "--out", "phantoms/phantom.json"), "is a file"),
        (("evaluate", best(0), "--out", "runs/0"), "is a run folder"),
        (("evaluate", "--predictions", TEST, "--json", "a/b"), "there is no folder a"),
        (("evaluate", "--predictions", TEST, "--val", TEST), "is the file that is scored"),
        (
            ("evaluate", "--predictions", TEST, "--side", "val", "--out", "x"),
            "--out, --side: of ch",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_callers_mistake_is_one_line(
    arguments: tuple[str | Path, ...], fault: str, here: Path, xray: Xray
) -> None:
    before = (here / TEST).read_bytes()
    code, _, err = xray(*arguments)
    assert code == 2
    assert (here / TEST).read_bytes() == before
    assert fault in err
    assert err.startswith("xray: error: ")
    assert err.count("\n") == 1


def test_the_two_runs_are_seeds_of_one_recipe(here: Path) -> None:
    (summary,) = summarise_seeds([read_run(here / "runs/0"), read_run(here / "runs/1")])
    assert summary.seeds == (0, 1)
    scores = [metrics_of(here / f"runs/{number}")["auroc_macro"] for number in (0, 1)]
    assert summary.auroc_macro is not None
    assert summary.auroc_macro.mean == pytest.approx(sum(scores) / 2)
    assert summary.auroc_macro.spread == pytest.approx(abs(scores[0] - scores[1]) / math.sqrt(2))
