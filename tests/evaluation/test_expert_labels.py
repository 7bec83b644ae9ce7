"""Expert labels: what a data set's own are worth against them, and a model on both."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Ended, Xray
from predicted import grouped, points, redrawn, table
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score, roc_auc_score
from statsmodels.stats.inter_rater import cohens_kappa as judged_kappa

from xray_lightning.data.expert_labels import ExpertLabels
from xray_lightning.data.label_map import NIH_EXPERT_LABELS, LabelMap
from xray_lightning.errors import UserError
from xray_lightning.evaluation.label_agreement import ExpertOptions, cohens_kappa
from xray_lightning.evaluation.mapped_findings import MappedFindings
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import read_predictions

MAP = """
columns: {image: picture}
findings:
  Opacity: [Atelectasis, Consolidation, Edema]
  Air: Pneumothorax
"""
THEIRS = {"Opacity": ("Atelectasis", "Consolidation", "Edema"), "Air": ("Pneumothorax",)}
CUTS = points(Atelectasis=0.4, Consolidation=0.6, Edema=0.7, Pneumothorax=0.55)


def write_map(folder: Path, text: str = MAP) -> Path:
    path = folder / "map.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_labels(folder: Path, predictions: pd.DataFrame, *, seed: int = 0) -> Path:
    """Labels of experts who contradict a fifth of the data set's, of all images but the first."""
    draw = np.random.default_rng(seed)
    kept = predictions[1:]
    columns = {"picture": kept["image"], "age": range(len(kept))}
    for name, ours in THEIRS.items():
        own = kept[[f"label_{one}" for one in ours]].any(axis=1).to_numpy()
        columns[name] = np.where(own ^ (draw.random(len(kept)) < 0.2), "YES", "NO")
    columns["Fracture"] = np.where(draw.random(len(kept)) < 0.3, "YES", "NO")
    path = folder / "labels.csv"
    pd.DataFrame(columns).sample(frac=1, random_state=seed).to_csv(path, index=False)
    return path


def experts(folder: Path, predictions: pd.DataFrame) -> ExpertOptions:
    labels = write_labels(folder, predictions)
    found = ExpertOptions.of(labels, write_map(folder), known=FINDINGS)
    assert found is not None
    return found


def judged(predictions: pd.DataFrame, expert: pd.DataFrame, name: str) -> dict[str, float]:
    """What scikit-learn says of the rows of a table."""
    ours = THEIRS[name]
    probabilities = predictions[[f"prob_{one}" for one in ours]].to_numpy()
    score = 1 - np.prod(1 - probabilities, axis=1)
    called = (probabilities >= [CUTS.cuts[one] for one in ours]).any(axis=1)
    own = predictions[[f"label_{one}" for one in ours]].any(axis=1).to_numpy()
    truth = expert.loc[predictions["base"], name].to_numpy() == 1
    found = {}
    for kind, labels in (("", own), ("expert_", truth)):
        found[f"{kind}auroc"] = roc_auc_score(labels, score)
        found[f"{kind}sensitivity"] = recall_score(labels, called)
        found[f"{kind}specificity"] = recall_score(~labels, ~called)
    for key in ("auroc", "sensitivity", "specificity"):
        found[f"{key}_difference"] = found[f"expert_{key}"] - found[key]
    found |= {
        "labels_sensitivity": recall_score(truth, own),
        "labels_ppv": precision_score(truth, own),
        "labels_specificity": recall_score(~truth, ~own),
        "labels_kappa": cohen_kappa_score(truth, own),
    }
    return found


def flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {f"labels_{key}": value for key, value in row["labels"].items()}


def test_every_figure_and_interval_is_that_of_scikit_learn(tmp_path: Path) -> None:
    predictions = grouped(images=400, patients=150)
    options = experts(tmp_path, predictions)
    found = options.scored(predictions, operating_points=CUTS, resamples=25, seed=3)
    expert = options.labels.table.set_index("image")
    kept = predictions[1:].assign(base=predictions["image"][1:])
    assert (found["images"], found["patients"]) == (399, kept["patient_id"].nunique())
    draws = list(redrawn(kept, resamples=25, seed=3))
    for name in THEIRS:
        row = flat(found["per_finding"][name])
        plain = judged(kept, expert, name)
        assert {key: row[key] for key in plain} == pytest.approx(plain, abs=1e-12)
        resampled = pd.DataFrame([judged(draw, expert, name) for draw in draws])
        for key in plain:
            ends = np.quantile(resampled[key], [0.025, 0.975])
            assert row[f"{key}_ci95"] == pytest.approx(list(ends), abs=1e-9), key
        assert row["undefined_reason"] == {}


def test_kappa_is_that_of_statsmodels_and_nothing_where_chance_explains_all() -> None:
    counts = np.array([[28, 9], [37, 0], [26, 3], [350, 0]])
    found = cohens_kappa(counts)
    expected = judged_kappa([[28, 37], [26, 350]], return_results=True).kappa
    assert found[0] == pytest.approx(expected, abs=1e-12)
    assert cohens_kappa(np.array([[0], [0], [0], [9]]))[0] != 0  # NaN


def test_a_union_is_any_of_its_findings_and_one_alone_keeps_every_bit() -> None:
    mapped = MappedFindings.of({"A": ("Mass",), "B": ("Nodule", "Mass", "Edema")}, FINDINGS)
    single = np.random.default_rng(0).random((50, 14))
    single[0], single[1], single[2] = 1.0, 0.0, 1e-30
    found = mapped.probabilities(single)
    mass, nodule, edema = (single[:, FINDINGS.index(name)] for name in ("Mass", "Nodule", "Edema"))
    assert (found[:, 0] == mass).all()
    assert found[:, 1] == pytest.approx(1 - (1 - mass) * (1 - nodule) * (1 - edema), abs=1e-15)
    assert found[2, 1] == pytest.approx(3e-30)
    both = (single > 0.5)[:, [FINDINGS.index(name) for name in ("Mass", "Nodule", "Edema")]]
    assert (mapped.any_of(single > 0.5)[:, 1] == both.any(axis=1)).all()


def test_what_too_few_patients_carry_is_null_with_its_reason(tmp_path: Path) -> None:
    predictions = table(images=40, patients=30)
    predictions["label_Pneumothorax"] = 0
    options = experts(tmp_path, predictions)
    options.labels.table["Air"] = 0
    row = options.scored(predictions, operating_points=None, resamples=20, seed=0)["per_finding"]
    air = row["Air"]
    assert air["auroc"] is air["expert_sensitivity"] is air["labels"]["kappa"] is None
    assert air["undefined_reason"]["auroc_difference"] == "no image has the finding"
    why = air["labels"]["undefined_reason"]
    assert why["ppv"] == "no image is labelled with it"
    assert why["kappa"] == "both agree that all images are the same"
    options.labels.table["Air"] = (np.arange(39) < 5).astype(np.uint8)
    row = options.scored(predictions, operating_points=None, resamples=20, seed=0)["per_finding"]
    why = row["Air"]["undefined_reason"]
    assert (
        why["expert_auroc_ci95"] == "needs at least ten patients with the finding and ten without"
    )
    assert row["Air"]["expert_auroc"] is not None


def test_the_map_of_the_published_labels_reads_their_file(tmp_path: Path) -> None:
    header = "Image Index,Finding Labels,Follow-up #,OriginalImage[Width,Height],Fracture"
    lines = [
        f"{header},Pneumothorax,Airspace opacity,Nodule or mass,Set Id",
        "00000013_008.png,No Finding,8,3056,2544,NO,NO,YES,NO,test",
        "00000013_026.png,Emphysema,26,2500,2048,YES,YES,NO,NO,test",
    ]
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    published = LabelMap.read(Path(NIH_EXPERT_LABELS))
    assert published.name == "--map nih_expert_labels"  # not where it is installed
    found = ExpertLabels.read(path, published)
    assert found.not_scored == ("Fracture",)
    assert found.table.to_numpy().tolist() == [
        ["00000013_008.png", 0, 1, 0],
        ["00000013_026.png", 1, 0, 0],
    ]
    known = published.in_terms_of(FINDINGS)
    assert known["Nodule or mass"] == ("Nodule", "Mass")
    assert len(known["Airspace opacity"]) == 5
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be unpacked"):
        ExpertLabels.read(path, published)


MISTAKES = [
    ("findings: [Mass]", "no findings"),
    ("finding: {A: Mass}", "no findings"),
    ("findings: {A: [Mass]}\nyes: 1", "'yes' is none of its keys"),
    ("findings: {A: []}", "A must be a list"),
    ("findings: {A: Massive}", "'Massive' is no finding of the model, which has Atelectasis"),
    ("findings: {A: [Mass]\n", "is no YAML"),
    ("findings: " + "[" * 20_000, "is no YAML: maximum recursion depth exceeded"),
    ("findings: *" + "9" * 5000, "is no YAML: found undefined alias '999"),
    ("findings: {'': Mass}", "cannot be a finding's name"),
    ("findings: {A: Mass}\ncolumns: {picture: image}", "columns has other keys"),
    ("findings: {Air: Mass}\nuncertain: perhaps", "perhaps' is unknown"),
    ("findings: {Water: Effusion}\ncolumns: {image: picture}", "no column 'Water', which --map"),
    ("findings: {Air: Mass}", "no column 'image'"),
    ("findings: {age: Mass}", "it means another"),
    ("findings: {Air: Mass}\ncolumns: {image: picture}\npositive: [SURE]", "Air 'YES'"),
]


@pytest.mark.parametrize(("text", "fault"), MISTAKES, ids=[fault for _, fault in MISTAKES])
def test_a_mistake_in_the_map_is_one_line(
    text: str, fault: str, first: Ended, xray: Xray, tmp_path: Path
) -> None:
    predictions = first.runs[0] / "predictions_test.csv"
    labels = write_labels(tmp_path, read_predictions(predictions))
    given = ("--predictions", predictions, "--labels", labels)
    code, out, err = xray("evaluate", *given, "--map", write_map(tmp_path, text))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert len(err) < 1000
    assert fault in err


def test_labels_without_a_map_or_without_images_are_refused(
    first: Ended, xray: Xray, tmp_path: Path
) -> None:
    predictions = first.runs[0] / "predictions_test.csv"
    read = read_predictions(predictions)
    labels = write_labels(tmp_path, read.assign(image="x" + read["image"]))
    given = ("evaluate", "--predictions", predictions, "--labels", labels)
    for options, fault in (
        ((), "needs --map FILE"),
        (("--map", "absent"), "--map absent is no file"),
        (("--map", write_map(tmp_path)), "none of its"),
    ):
        code, out, err = xray(*given, *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert fault in err
    assert "--labels absent is no file" in xray(*given[:-1], "absent", *options)[2]
    assert "--map is of" in xray("evaluate", "--predictions", predictions, "--map", labels)[2]


def test_a_checkpoint_and_its_predictions_give_the_same_on_both_labels(
    first: Ended, xray: Xray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first.runs[0]
    monkeypatch.setenv("COLUMNS", "80")
    labels = write_labels(tmp_path, read_predictions(run / "predictions_test.csv"))
    given = ("--labels", labels, "--map", write_map(tmp_path))
    best = run / "checkpoints" / "best.ckpt"
    code, out, err = xray("evaluate", best, *given, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())["expert_labels"]
    assert content["not_scored"] == ["Fracture"]
    assert list(content["per_finding"]) == ["Opacity", "Air"]
    for words in ("The model, on", "The data set's labels against the experts'", "Kappa"):
        assert words in out
    assert "Not scored, since the map leaves it out: Fracture." in out
    assert "\u2026" not in out
    predictions = run / "predictions_test.csv"
    code, out, _ = xray("evaluate", "--predictions", predictions, *given, "--json", "p.json")
    assert code == 0
    assert json.loads((tmp_path / "p.json").read_text())["expert_labels"] == content
