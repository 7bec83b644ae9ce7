"""External validation and recalibration: a checkpoint on another site's images and labels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Ended, Once, Xray
from predicted import frame, redrawn, table
from sklearn.metrics import brier_score_loss, precision_score, recall_score, roc_auc_score

from xray_lightning import load_model
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.evaluation.calibration import Calibrator, logit, sigmoid
from xray_lightning.evaluation.cross_fitting import FOLDS, CrossFitted
from xray_lightning.evaluation.external_validation import Judged
from xray_lightning.evaluation.mapped_findings import CallScores
from xray_lightning.evaluation.operating_points import OperatingRule
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.runs.predictions import ScoredImages, read_predictions

NAMES = {"Fluid": ["Effusion"], "Lump": ["Nodule", "Mass"], "Air": ["Pneumothorax"]}
MAP = "columns: {image: film, patient: person}\nfindings: " + json.dumps(NAMES)


def best(first: Ended) -> Path:
    return first.runs[0] / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def site(first: Ended, once: Once) -> Path:
    """Another site's 90 phantoms, its findings with other names, and one that no model knows.

    The labels are drawn by what the run's model, which has learned nothing, says of the images, so
    that it ranks them well.
    """

    def fill(folder: Path) -> None:
        ensure_phantoms(folder / "drawn", PhantomSpec(images=90, size=64, seed=5))
        rows = pd.read_csv(folder / "drawn" / "Data_Entry_2017_v2020.csv")
        theirs = {"film": rows["Image Index"], "person": rows["Patient ID"]}
        files = [str(folder / "drawn" / "images" / name) for name in rows["Image Index"]]
        said = load_model(best(first)).predict(files)
        draw = np.random.default_rng(0)
        for name, ours in NAMES.items():
            odds = logit(said.probabilities[:, said.findings.index(ours[0])].astype(float))
            rank = (odds - odds.mean()) / odds.std()
            theirs[name] = (draw.random(len(rows)) < sigmoid(3 * rank)).astype(int)
        theirs["Fracture"] = np.arange(len(rows)) % 2
        (folder / "site").mkdir()
        pd.DataFrame(theirs).to_csv(folder / "site" / "films.csv", index=False)
        shutil.copytree(folder / "drawn" / "images", folder / "site" / "images")
        (folder / "map.yaml").write_text(MAP, encoding="utf-8")

    return once("site", fill)


def external(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content


@pytest.fixture(scope="session")
def shifted() -> pd.DataFrame:
    """Predictions whose ranks hold, and whose logits are all 2 too high and half as steep."""
    draw = np.random.default_rng(0)
    truth = draw.normal(-1.5, 2, size=(1500, 14))
    labels = (draw.random((1500, 14)) < sigmoid(truth)).astype(int)
    labels[:, FINDINGS.index("Hernia")] = 0
    return frame(sigmoid(truth / 2 + 2).astype(np.float32), labels, np.arange(1500) % 400)


def test_cross_fitting_mends_calibration_and_sees_no_patient_twice(shifted: pd.DataFrame) -> None:
    images = ScoredImages.of(shifted)
    found = CrossFitted.of(images, OperatingRule(), Calibrator(), seed=0)
    assert set(found.undefined) == {"Hernia"}
    mass = FINDINGS.index("Mass")
    labels = images.labels[:, mass]
    before = brier_score_loss(labels, images.scores[:, mass])
    after = brier_score_loss(labels, found.probabilities[:, mass])
    assert after < before - 0.05
    line = np.polyfit(logit(images.scores[:, mass]), logit(found.probabilities[:, mass]), 1)
    assert line == pytest.approx([2, -4], abs=0.4)  # truth = 2 * logit - 4
    # The labels of a patient change nothing of what is said of that patient.
    others = images.labels.copy()
    of_one = images.patients == 7
    others[of_one] ^= True
    changed = CrossFitted.of(
        ScoredImages(images.table, images.findings, images.scores, others, images.patients),
        OperatingRule(),
        Calibrator(),
        seed=0,
    )
    assert (changed.probabilities[of_one] == found.probabilities[of_one]).all()
    assert (changed.called[of_one] == found.called[of_one]).all()
    assert (changed.probabilities[:, mass] != found.probabilities[:, mass]).any()


def test_calls_have_the_ppv_of_scikit_learn_and_its_interval() -> None:
    predictions = table(images=300, patients=120)
    images = ScoredImages.of(predictions)
    calls = CallScores.of(images, images.scores >= 0.6)
    plain = calls(np.ones(images.count, dtype=np.int64))
    for place in range(len(FINDINGS)):
        truth, called = images.labels[:, place], calls.called[:, place]
        assert plain["ppv"][place] == pytest.approx(precision_score(truth, called))
        assert plain["specificity"][place] == pytest.approx(recall_score(~truth, ~called))
    random = np.random.default_rng(1)
    equal = np.full(images.count, 1 / images.count)
    for copy in redrawn(predictions, resamples=3, seed=1):
        drawn = calls(random.multinomial(images.count, equal))
        scores, labels = copy[f"prob_{FINDINGS[-1]}"], copy[f"label_{FINDINGS[-1]}"]
        assert drawn["ppv"][-1] == pytest.approx(precision_score(labels, scores >= 0.6))
        assert drawn["auroc"][-1] == pytest.approx(roc_auc_score(labels, scores))


def test_the_gaps_interval_is_that_of_two_sets_of_patients_drawn_apart() -> None:
    here, own = (
        ScoredImages.of(table(images=500, patients=200, signal=signal, seed=seed))
        for signal, seed in ((1.0, 1), (2.0, 2))
    )
    calls = CallScores.of(here, here.scores >= 0.5)
    judged = Judged(calls, calls, (here.scores, here.scores), {}, None, None)
    names = {name: (name,) for name in FINDINGS}
    before = CallScores.of(own, own.scores >= 0.5)
    found = judged.figures(names, before, resamples=200, seed=0)
    widths = {
        key: found[f"{key}auroc_macro_ci95"][1] - found[f"{key}auroc_macro_ci95"][0]
        for key in ("", "own_test_", "gap_")
    }
    assert widths["gap_"] == pytest.approx(np.hypot(widths[""], widths["own_test_"]), rel=0.2)
    assert found["gap_auroc_macro"] == pytest.approx(
        found["auroc_macro"] - found["own_test_auroc_macro"]
    )
    assert found["gap_auroc_macro_ci95"][1] < 0
    row = found["per_finding"]["Mass"]
    for key in ("auroc", "sensitivity"):
        here_, own_, gap_ = (
            np.ptp(block[f"{key}_ci95"])
            for block in ({**row["kept"], **row}, row["own_test"], row["gap"])
        )
        assert gap_ == pytest.approx(np.hypot(here_, own_), rel=0.2), key
    assert row["kept"]["brier"] == row["recalibrated"]["brier"]


@pytest.fixture(scope="module")
def validated(first: Ended, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `xray evaluate --data --map` writes and prints, run once."""

    def run(xray: Xray) -> tuple[Path, str]:
        if "out" not in kept:
            folder = tmp_path_factory.mktemp("external")
            given = ("--data", site / "site", "--map", site / "map.yaml", "--out", folder)
            code, out, err = xray("evaluate", best(first), *given, "--cache-dir", folder / "cache")
            assert (code, err) == (0, "")
            kept["out"] = folder, out
        return kept["out"]

    kept: dict[str, tuple[Path, str]] = {}
    return run


def test_another_site_is_scored_at_the_checkpoints_own_points_and_calibration(
    validated: Callable[[Xray], tuple[Path, str]], first: Ended, site: Path, xray: Xray
) -> None:
    folder, out = validated(xray)
    content = external(folder)
    found = content["external"]
    assert (found["images"], content["data"]["split"]) == (90, "whole")
    assert found["not_scored"]["data_set"] == ["Fracture"]
    assert found["not_scored"]["model"] == [
        name for name in FINDINGS if name not in ("Effusion", "Nodule", "Mass", "Pneumothorax")
    ]
    entry = read_checkpoint(best(first))["xray"]
    predictions = read_predictions(folder / "predictions_test.csv")
    labels = pd.read_csv(site / "site" / "films.csv").set_index("film")
    for name in ("Fluid", "Air"):
        (ours,) = NAMES[name]
        row, truth = found["per_finding"][name], labels.loc[predictions["image"], name]
        score = predictions[f"prob_{name}"].astype(float)
        assert row["positives"] == truth.sum()
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, score))
        called = score >= entry["thresholds"][ours]
        assert row["kept"]["sensitivity"] == pytest.approx(recall_score(truth, called))
        line = (entry["calibration"][key][ours] for key in ("slope", "intercept"))
        slope, intercept = line
        calibrated = sigmoid(slope * logit(score.to_numpy()) + intercept)
        assert row["kept"]["brier"] == pytest.approx(brier_score_loss(truth, calibrated))
        own = pd.read_csv(first.runs[0] / "predictions_test.csv")
        before = roc_auc_score(own[f"label_{ours}"], own[f"prob_{ours}"])
        assert row["own_test"]["auroc"] == pytest.approx(before, abs=1e-6)
        assert row["gap"]["auroc"] == pytest.approx(row["auroc"] - before, abs=1e-6)
    gaps = [row["gap"]["auroc"] for row in found["per_finding"].values()]
    assert found["gap_auroc_macro"] == pytest.approx(np.mean(gaps))
    assert (found["gap_auroc_macro_ci95"] is None) == bool(found["undefined_reason"])
    assert found["folds"] == FOLDS
    for words in ("site, all images: 90 images", "Own test", "At the operating points"):
        assert words in out
    assert "Not scored, of the data set: Fracture" in out
    assert "images scored are named as images of" in " ".join(out.split())  # copies


def test_a_checkpoint_without_its_run_has_no_gap_and_says_why(
    first: Ended, site: Path, xray: Xray, tmp_path: Path
) -> None:
    (tmp_path / "away").mkdir()
    alone = shutil.copy(best(first), tmp_path / "away" / "alone.ckpt")
    given = ("--data", site / "site", "--map", site / "map.yaml", "--resamples", "20")
    code, out, err = xray("evaluate", alone, *given)
    assert (code, err) == (0, "")
    row = external(tmp_path / "away" / "external_site")["external"]["per_finding"]["Air"]
    assert row["gap"] is row["own_test"] is None
    assert "lies in no run folder" in row["undefined_reason"]["gap"]
    assert "lies in no run folder" in out


MISTAKES: list[tuple[str, tuple[str, ...], str]] = [
    (MAP.replace("Fluid", "Water"), (), "no column of the map's findings Water"),
    ("findings: {Fluid: Effusions}", (), "'Effusions' is no finding of the model"),
    ("columns: {image: films}\nfindings: {Fluid: Effusion}", (), "columns.image: TITLE in the map"),
    ("columns: {image: film, patient: who}\nfindings: {Air: Mass}", (), "no column 'who'"),
    (MAP, ("--data", "absent"), "--data=absent does not exist"),
    (MAP, ("--split", "official"), "data.split=official needs"),
    (MAP.replace("Fluid", "person"), (), "person"),
]


@pytest.mark.parametrize(
    ("text", "further", "fault"), MISTAKES, ids=[fault for *_, fault in MISTAKES]
)
def test_a_mistake_about_the_other_site_is_one_line(
    text: str,
    further: tuple[str, ...],
    fault: str,
    first: Ended,
    site: Path,
    xray: Xray,
    tmp_path: Path,
) -> None:
    (tmp_path / "map.yaml").write_text(text)
    given = ("--data", site / "site", "--map", "map.yaml", *further)
    code, out, err = xray("evaluate", best(first), *given, "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fault in err


def test_without_a_map_the_error_names_it(first: Ended, site: Path, xray: Xray) -> None:
    columns = pd.read_csv(site / "site" / "films.csv")
    Path("mine").mkdir()
    columns.rename(columns={"film": "image", "person": "patient"}).to_csv("mine/a.csv", index=False)
    code, out, err = xray("evaluate", best(first), "--data", "mine", "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--map MAP" in err
    code, out, err = xray("evaluate", best(first), best(first), "--data", "mine", "--map", "m")
    assert (code, out, err.count("\n")) == (2, "", 1)


# -- recalibrating -------------------------------------------------------------------------------


@pytest.fixture
def recalibrated(first: Ended, site: Path, xray: Xray, tmp_path: Path) -> Path:
    """A checkpoint that answers 2 too high everywhere, recalibrated on the site."""
    content = torch.load(best(first), weights_only=True)
    (bias,) = [key for key in content["state_dict"] if key.endswith("fc.bias")]
    content["state_dict"][bias] += 2.0
    torch.save(content, tmp_path / "off.ckpt")
    before = (tmp_path / "off.ckpt").read_bytes()
    given = ("--data", site / "site", "--map", site / "map.yaml", "--cache-dir", "cache")
    code, out, err = xray("recalibrate", "off.ckpt", *given, "--out", "site.ckpt")
    assert (code, err) == (0, "")
    assert (tmp_path / "off.ckpt").read_bytes() == before
    assert "Recalibrated on 90 images" in " ".join(out.split())
    assert "Nodule" in out
    return tmp_path / "site.ckpt"


def test_recalibrating_mends_what_is_off_and_keeps_all_else(
    recalibrated: Path, site: Path, xray: Xray, tmp_path: Path
) -> None:
    old, new = (read_checkpoint(tmp_path / name) for name in ("off.ckpt", "site.ckpt"))
    was, now = old.pop("xray"), new.pop("xray")
    assert all(
        torch.equal(new["state_dict"][key], old["state_dict"][key]) for key in old["state_dict"]
    )
    # Thresholds of abstention hold beside the operating points that they were fitted with alone.
    assert now["abstention"] is None
    fitted = {"thresholds", "operating_points", "calibration", "recalibrated", "abstention"}
    assert {key: now[key] for key in now.keys() - fitted} == {
        key: was[key] for key in was.keys() - fitted
    }
    record = now["recalibrated"]
    assert (record["data"], record["images"]) == ("site", 90)
    refitted = set(record["positives"])
    assert refitted == {"Effusion", "Pneumothorax"}
    assert refitted | set(record["kept"]) == set(FINDINGS)
    assert record["kept"]["Hernia"] == "the data have no labels of it"
    assert record["kept"]["Nodule"].startswith("the labels are of several findings together")
    for name in FINDINGS:
        same = now["thresholds"][name] == was["thresholds"][name]
        assert same == (name not in refitted)
    given = ("--data", site / "site", "--map", site / "map.yaml", "--cache-dir", "cache")
    blocks = []
    for name in ("off", "site"):
        code, out, _ = xray("evaluate", f"{name}.ckpt", *given, "--out", name, "--resamples", "0")
        assert code == 0
        blocks.append(external(tmp_path / name)["external"]["per_finding"])
    assert "it was recalibrated on these images" in out
    for ours in refitted:
        theirs = {"Effusion": "Fluid", "Pneumothorax": "Air"}[ours]
        before, after = (block[theirs]["kept"] for block in blocks)
        assert after["brier"] < before["brier"] - 0.02
        assert after["expected_calibration_error"] < before["expected_calibration_error"]
        mended = blocks[0][theirs]["recalibrated"]  # nobody is judged by a fit to themselves
        assert mended["brier"] < before["brier"] - 0.02


def test_what_goes_on_with_a_recalibrated_checkpoint_knows_of_it(
    recalibrated: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    code, out, err = xray("info", "site.ckpt")
    assert (code, err) == (0, "")
    assert "Recalibrated on 90 images of" in " ".join(out.split())
    told = json.loads(xray("info", "site.ckpt", "--json")[1])
    assert told["recalibrated"] == read_checkpoint(recalibrated)["xray"]["recalibrated"]
    assert "**Recalibrated:** on 90 images" in xray("info", "site.ckpt", "--card")[1]
    images = next((phantoms / "images").glob("*.png"))
    assert xray("predict", "site.ckpt", images, "--out", "p.csv")[0] == 0
    thresholds = read_checkpoint(recalibrated)["xray"]["thresholds"]
    row = pd.read_csv(tmp_path / "p.csv").iloc[0]
    assert row["threshold_Effusion"] == pytest.approx(thresholds["Effusion"])


def test_the_checkpoint_of_a_run_is_told_from_its_recalibrated_one(
    first: Ended, site: Path, xray: Xray, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(first.runs[0], run)
    given = ("--data", site / "site", "--map", site / "map.yaml", "--cache-dir", "cache")
    beside = run / "checkpoints" / "site.ckpt"
    assert xray("recalibrate", run / "checkpoints/best.ckpt", *given, "--out", beside)[0] == 0
    told = json.loads(xray("info", beside, "--json")[1])
    assert "before it was recalibrated on site" in told["metrics_unknown"]
    assert told["metrics"] is None


def test_recalibrating_by_another_rule_needs_no_map_where_names_are_the_same(
    first: Ended, site: Path, xray: Xray, tmp_path: Path
) -> None:
    films = pd.read_csv(site / "site" / "films.csv")
    names = {"film": "image", "person": "patient", "Fluid": "Effusion", "Air": "Pneumothorax"}
    (tmp_path / "same").mkdir()
    films.rename(columns=names).to_csv(tmp_path / "same" / "films.csv", index=False)
    given = ("--data", "same", "--images", site / "site" / "images", "--cache-dir", "c")
    aimed = ("--rule", "sensitivity", "--target", "0.9")
    code, _, err = xray("recalibrate", best(first), *given, *aimed, "--out", "new.ckpt")
    assert (code, err) == (0, "")
    entry = read_checkpoint(tmp_path / "new.ckpt")["xray"]
    points = entry["operating_points"]
    assert (points["rule"], points["target"], points["images"]) == ("sensitivity", 0.9, 90)
    assert set(entry["recalibrated"]["positives"]) == {"Effusion", "Pneumothorax"}


@pytest.mark.parametrize(
    ("further", "fault"),
    [
        (("--out", "best.ckpt"), "is there already"),
        (("--out", "new.pt"), "ends in .ckpt"),
        (("--out", "new.ckpt", "--rule", "best"), "rule=best must be one of"),
        (("--out", "new.ckpt", "--rule", "sensitivity"), "target=None must be"),
        (("--out", "new.ckpt", "--data", "absent"), "--data=absent does not exist"),
        (("--out", "new.ckpt", "--map", "union.yaml"), "are of several findings together"),
        (("--out", "new.ckpt", "--map", "twice.yaml"), "Mass is meant by several"),
        (("--out", "new.ckpt", "--data", "other"), "no finding by the names"),
        (("--out", "new.ckpt", "--data", "nih"), "needs at least ten patients with the finding"),
    ],
    ids=str,
)
def test_a_mistake_in_recalibrating_is_one_line_and_writes_nothing(
    further: tuple[str, ...],
    fault: str,
    first: Ended,
    site: Path,
    phantoms: Path,
    xray: Xray,
    tmp_path: Path,
) -> None:
    shutil.copy(best(first), "best.ckpt")
    head = "columns: {image: film, patient: person}\nfindings: "
    Path("union.yaml").write_text(head + "{Lump: [Nodule, Mass]}")
    Path("twice.yaml").write_text(head + "{Lump: Mass, Air: Mass}")
    Path("other").mkdir()
    Path("other/a.csv").write_text("image,patient,Fracture\na.png,1,1\n")
    before = Path("best.ckpt").read_bytes()
    Path("nih").symlink_to(phantoms)
    of_map = () if further[-1] in ("other", "nih") else ("--map", site / "map.yaml")
    given = ("--data", site / "site", *of_map, *further)
    code, out, err = xray("recalibrate", "best.ckpt", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fault in err
    assert Path("best.ckpt").read_bytes() == before
    assert not list(tmp_path.glob("new*"))


def test_a_damaged_record_is_refused_in_one_line(recalibrated: Path, xray: Xray) -> None:
    for change in ({"positives": 3}, {"images": -1}, {"kept": {"Cough": "x"}}, {"data": 1}):
        content = torch.load(recalibrated, weights_only=True)
        content["xray"]["recalibrated"] |= change
        torch.save(content, "damaged.ckpt")
        code, out, err = xray("info", "damaged.ckpt")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "recalibration values" in err
