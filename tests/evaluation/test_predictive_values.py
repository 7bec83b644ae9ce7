"""Predictive values: equal to scikit-learn's, here and at a stated prevalence, with intervals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Xray
from predicted import column, frame, points, redrawn, table
from sklearn.metrics import precision_score
from statsmodels.stats.proportion import proportion_confint

from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import FEW_PATIENTS
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.predictive_values import (
    ALL_CALLED,
    FEW_CALLED,
    FEW_CLEARED,
    NONE_CALLED,
    StatedPrevalence,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import csv_of

CUTS = points(Mass=0.7, Hernia=0.31)


def judged(rows: pd.DataFrame, finding: str, *, prevalence: float | None = None) -> list[float]:
    """PPV and NPV by scikit-learn, of rows whose weights give them the prevalence."""
    labels = rows[f"label_{finding}"].to_numpy()
    called = rows[f"prob_{finding}"].to_numpy() >= CUTS.cuts[finding]
    weights = np.ones(len(rows))
    if prevalence is not None:
        share = labels.mean()
        weights = np.where(labels == 1, prevalence / share, (1 - prevalence) / (1 - share))
    return [
        float(precision_score(labels, called, pos_label=kind, sample_weight=weights))
        for kind in (1, 0)
    ]


def test_predictive_values_and_their_intervals_equal_scikit_learns() -> None:
    predictions = table(patients=60)
    stated = {"Mass": 0.02, "Hernia": 0.3}
    result = Evaluator(resamples=30, seed=3, prevalence=stated)(predictions, operating_points=CUTS)
    many = list(redrawn(predictions, resamples=30, seed=3))
    for finding in ("Mass", "Hernia", "Edema"):
        row = result["per_finding"][finding]
        for ending, prevalence in (("", None), ("_at_stated_prevalence", stated.get(finding))):
            names = [f"ppv{ending}", f"npv{ending}"]
            if ending and prevalence is None:
                assert not {*names, "stated_prevalence"} & row.keys()
                continue
            once = judged(predictions, finding, prevalence=prevalence)
            drawn = [judged(rows, finding, prevalence=prevalence) for rows in many]
            ends = np.quantile(drawn, [0.025, 0.975], axis=0).T
            for name, value, interval in zip(names, once, ends, strict=True):
                assert row[name] == pytest.approx(value, abs=1e-9)
                assert row[f"{name}_ci95"] == pytest.approx(interval, abs=1e-9), name
        assert row.get("stated_prevalence") == stated.get(finding)


def test_at_the_prevalence_of_the_test_set_both_are_the_same() -> None:
    predictions = table()
    shares = {finding: predictions[f"label_{finding}"].mean() for finding in FINDINGS}
    rows = Evaluator(resamples=0, prevalence=shares)(predictions)["per_finding"]
    for row in rows.values():
        for name in ("ppv", "npv"):
            assert row[f"{name}_at_stated_prevalence"] == pytest.approx(row[name], abs=1e-12)


def test_one_number_is_stated_of_every_finding() -> None:
    rows = Evaluator(resamples=0, prevalence=0.02)(table())["per_finding"]
    assert {row["stated_prevalence"] for row in rows.values()} == {0.02}


def test_of_one_image_a_patient_the_interval_is_nearly_wilsons() -> None:
    predictions = table(images=4000, patients=4000)
    row = Evaluator(resamples=400)(predictions)["per_finding"]["Effusion"]
    hits, called = row["true_positives"], row["true_positives"] + row["false_positives"]
    low, high = proportion_confint(hits, called, method="wilson")
    assert row["ppv_ci95"] == pytest.approx([low, high], abs=0.1 * (high - low))


def few_called(scores: Any, labels: Any, *, patients: int = 40) -> dict[str, Any]:
    """The row of Atelectasis with these scores and labels, of a patient each or of fewer."""
    of = np.arange(len(scores)) % patients
    drawn = table(images=len(scores)).assign(patient_id=of)
    rows = Evaluator(resamples=20, prevalence=0.1)(column(drawn, FINDINGS[0], scores, labels))
    return dict(rows["per_finding"][FINDINGS[0]])


@pytest.mark.parametrize(
    "scores, value, count, reasons",
    [
        ([0.1] * 40, "ppv", NONE_CALLED, NONE_CALLED),
        ([0.9] * 40, "npv", ALL_CALLED, ALL_CALLED),
        ([0.1] * 35 + [0.9] * 5, "ppv", FEW_CALLED, None),
        ([0.1] * 5 + [0.9] * 35, "npv", FEW_CLEARED, None),
    ],
)
def test_where_nobody_or_few_are_called_the_reason_is_told(
    scores: list[float], value: str, count: str, reasons: str | None
) -> None:
    row = few_called(scores, [0, 1] * 20)
    told = row["undefined_reason"]
    assert row[f"{value}_ci95"] is None
    assert told[f"{value}_ci95"] == count
    assert told.get(value) == told.get(f"{value}_at_stated_prevalence") == reasons
    assert (row[value] is None) == (reasons is not None)


def test_few_patients_with_the_finding_give_no_interval_at_the_stated_prevalence() -> None:
    row = few_called([0.1, 0.9] * 20, [0] * 31 + [1] * 9)
    assert row["ppv_at_stated_prevalence_ci95"] is None
    assert row["undefined_reason"]["ppv_at_stated_prevalence_ci95"] == FEW_PATIENTS
    assert row["ppv_ci95"] is not None


def test_images_without_any_finding_are_counted() -> None:
    labels = np.zeros((40, 14), dtype=int)
    labels[:13, 3] = 1
    drawn = frame(np.full((40, 14), 0.3), labels, range(40))
    assert Evaluator(resamples=0)(drawn)["images_without_finding"] == 27


@pytest.mark.parametrize(
    "given, said",
    [
        (0, "evaluation.prevalence=0 must be a number between 0 and 1"),
        (1.0, "evaluation.prevalence=1.0 must"),
        (True, "evaluation.prevalence=True must"),
        (float("nan"), "evaluation.prevalence=nan must"),
        ("2 %", "evaluation.prevalence=2 % must"),
        ({"Mass": 2}, "evaluation.prevalence.Mass=2 must"),
    ],
)
def test_what_is_no_prevalence_is_refused(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        Evaluator(prevalence=given)


def test_a_prevalence_of_another_finding_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match=r"evaluation\.prevalence names Mas, which is none of"):
        Evaluator(prevalence={"Mas": 0.1})(table())


def test_options_name_single_findings_and_all_others() -> None:
    stated = StatedPrevalence.of_options(["Mass=0.3", "0.02"])
    assert stated.of_findings(["Mass", "Edema"]).tolist() == [0.3, 0.02]
    alone = StatedPrevalence.of_options(["Mass=0.3"]).of_findings(["Mass", "Edema"])
    assert alone == pytest.approx([0.3, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    "options, said",
    [
        (["Mass=0.1", "Mass=0.2"], "Mass=0.2: it is stated twice"),
        (["0.1", "0.2"], "0.2: it is stated twice"),
        (["Mass"], "Mass must be a number such as 0.02, or a finding with one"),
        (["Mass=2"], "Mass=2 must be a number between 0 and 1"),
        (["Mas=0.2"], "names Mas, which is none of the findings"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    options: list[str], said: str, tmp_path: Path, xray: Xray
) -> None:
    path = tmp_path / "predictions_test.csv"
    path.write_text(csv_of(table(images=60)), encoding="utf-8")
    given = [word for option in options for word in ("--prevalence", option)]
    code, _, err = xray("evaluate", "--predictions", path, *given, "--resamples", 0)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--prevalence {said}" in err


def test_the_command_shows_what_a_call_is_worth_at_the_stated_prevalence(
    tmp_path: Path, xray: Xray
) -> None:
    path = tmp_path / "predictions_test.csv"
    path.write_text(csv_of(table(images=200)), encoding="utf-8")
    given = ("--prevalence", "Pleural_Thickening=0.02", "--resamples", 0)
    code, out, err = xray("evaluate", "--predictions", path, *given)
    assert (code, err) == (0, "")
    shown = next(line for line in out.splitlines() if line.startswith("Pleural Thick"))
    row = Evaluator(resamples=0, prevalence={"Pleural_Thickening": 0.02})(table(images=200))[
        "per_finding"
    ]["Pleural_Thickening"]
    assert f"0.02 {row['ppv_at_stated_prevalence']:.3f}" in " ".join(shown.split())
    assert "Edema   " not in out[out.index("PPV there") :]
