"""The table of predictions: its order is of no matter, and its faults are told."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicted import calibration, grouped, points, table

from xray_lightning.data.loader import EpochOrder
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.calibration import Calibrator
from xray_lightning.evaluation.evaluate_predictions import recompute
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import csv_of, read_predictions
from xray_lightning.runs.summary import subgroups_said

QUICK = Evaluator(resamples=50)


PREDICTIONS = grouped(images=103, patients=40)


@functools.cache
def figures(rows: tuple[int, ...]) -> str:
    """Every figure of the predictions in this order."""
    judged = Evaluator(resamples=5)(
        PREDICTIONS.iloc[list(rows)], operating_points=points(Mass=0.4), calibration=calibration()
    )
    return json.dumps(judged)


@settings(max_examples=settings().max_examples // 4)  # each takes a third of a second
@given(
    order=st.permutations(range(len(PREDICTIONS))),
    ranks=st.integers(1, 4),
    batch_size=st.integers(1, 120),
)
def test_fault_57_neither_ranks_nor_batches_nor_the_order_of_rows_change_a_digit(
    order: list[int], ranks: int, batch_size: int
) -> None:
    shares = [
        EpochOrder(rows=103, batch_size=batch_size, shuffle=False, rank=rank, ranks=ranks).share(0)
        for rank in range(ranks)
    ]
    gathered = [order[row] for share in shares for rows, _ in share for row in rows if row >= 0]
    assert figures(tuple(gathered)) == figures(tuple(range(103)))


def test_ids_as_numbers_and_as_text_give_the_same_figures() -> None:
    predictions = table(patients=150)
    as_text = predictions.assign(patient_id=predictions["patient_id"].astype(str))
    assert QUICK(as_text) == QUICK(predictions)


def test_a_table_read_back_from_its_file_gives_the_same_figures(tmp_path: Path) -> None:
    predictions = grouped().astype({"follow_up": "Int64"})
    predictions.loc[:9, "age"], predictions.loc[:9, "sex"] = np.nan, ""
    scores = [f"prob_{finding}" for finding in FINDINGS]
    predictions[scores] = np.random.default_rng(0).random((600, 14)).astype(np.float32)
    (tmp_path / "predictions_test.csv").write_text(csv_of(predictions))
    assert QUICK(read_predictions(tmp_path / "predictions_test.csv")) == QUICK(predictions)


def test_further_columns_are_read_back_as_text_and_group_as_before(tmp_path: Path) -> None:
    sites = np.random.default_rng(0).choice(["north, old", 'the "south"', "", "3"], 600)
    predictions = grouped().astype({"follow_up": "Int64"}).assign(site=sites)
    path = tmp_path / "predictions_test.csv"
    path.write_text(csv_of(predictions))
    found = read_predictions(path)
    assert found["site"].tolist() == sites.tolist()
    alone = recompute(path, resamples=20).metrics["subgroups"]
    assert [row["by"] for row in alone].count("site") == 4
    evaluation = {"evaluation": {"subgroups": ["site"], "resamples": 20}}
    (tmp_path / "results.json").write_text(json.dumps({"config": evaluation}))
    asked = recompute(path).metrics["subgroups"]
    assert {row["by"] for row in asked} == {"site"}
    evaluation["evaluation"]["subgroups"] = ["ward"]
    (tmp_path / "results.json").write_text(json.dumps({"config": evaluation}))
    with pytest.raises(UserError, match="the predictions have no column ward"):
        recompute(path)


def test_the_last_line_of_a_run_says_which_groups_stand_apart_or_how_small_a_gap_shows() -> None:
    usual = grouped(images=1200, patients=400)
    said = subgroups_said(Evaluator(resamples=60)(usual)["subgroups"])
    assert said is not None
    assert said.startswith("Subgroups: none of ")
    assert "; the smallest group that can be told apart, age 80+ (" in said
    worse = usual.copy()
    for finding in FINDINGS:
        worse.loc[worse["sex"] == "F", f"prob_{finding}"] = 0.0
    said = subgroups_said(Evaluator(resamples=60)(worse)["subgroups"])
    assert said is not None
    assert "sex female (AUROC -0.2" in said
    assert "sex male" not in said  # two groups share one gap
    assert subgroups_said([]) is None


def test_fault_57_an_image_counted_twice_ends_the_run() -> None:
    predictions = pd.concat([table(), table().iloc[:1]], ignore_index=True)
    with pytest.raises(RunFailedError, match="1 images are there twice, such as 00000000_000"):
        QUICK(predictions)


USES: dict[str, Callable[[pd.DataFrame], object]] = {
    "predictions": QUICK,
    "operating points": OperatingRule().fit,
    "calibration": Calibrator().fit,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5])
def test_fault_55_probabilities_that_are_no_numbers_end_the_run(use: str, value: float) -> None:
    predictions = table().assign(split="val")
    predictions.loc[[3, 7], "prob_Mass"] = value
    with pytest.raises(RunFailedError, match=f"^{use}: 2 of 4200 probabilities.* 2 of 300 images"):
        USES[use](predictions)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda t: t.drop(columns="prob_Hernia"), "no column prob_Hernia"),
        (lambda t: t.drop(columns="label_Mass"), "no column label_Mass"),
        (lambda t: t.iloc[:0], "no rows|no validation images"),
        (lambda t: t.assign(label_Mass=2), "label_Mass .* other than 0 and 1"),
        (lambda t: t.assign(label_Mass=np.nan), "label_Mass .* other than 0 and 1"),
        (lambda t: t.assign(prob_Mass="high"), "prob_ column holds text for a number"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(use: str, spoil: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^{use}: .*({says})") as told:
        USES[use](spoil(table().assign(split="val")))
    assert "\n" not in str(told.value)


def test_rows_without_a_patient_are_counted() -> None:
    with pytest.raises(UserError, match="300 rows without patient_id"):
        QUICK(table().assign(patient_id=None))


@pytest.mark.parametrize("use", ["operating points", "calibration"])
@pytest.mark.parametrize("split", ["test", "train", ""])
def test_only_validation_rows_are_fitted_on(use: str, split: str) -> None:
    predictions = table().assign(split="val")
    predictions.loc[299, "split"] = split
    with pytest.raises(UserError, match=f"split 'val' alone, and the predictions hold '{split}'"):
        USES[use](predictions)
    with pytest.raises(UserError, match="no column split"):
        USES[use](predictions.drop(columns="split"))


def test_resamples_below_zero_are_refused() -> None:
    with pytest.raises(UserError, match="resamples=-1"):
        Evaluator(resamples=-1)


@pytest.mark.parametrize(
    "values, says",
    [
        ({**dict.fromkeys(FINDINGS, 0.5), "Masss": 0.5}, "'Masss' is no finding"),
        (dict.fromkeys(FINDINGS[1:], 0.5), "'Atelectasis' is missing"),
        ({**dict.fromkeys(FINDINGS, 0.5), "Mass": np.inf}, "Mass has inf"),
        ({**dict.fromkeys(FINDINGS, 0.5), "Mass": np.nan}, "Mass has nan"),
        ({**dict.fromkeys(FINDINGS, 0.5), "Mass": -0.1}, "Mass has -0.1"),
    ],
)
def test_a_wrong_cut_or_prevalence_is_told_in_one_line(values: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=f"operating points: .*{says}"):
        QUICK(table(), operating_points=OperatingPoints("f1", None, 9, values, {}))
    with pytest.raises(UserError, match=f"prevalences: .*{says}"):
        QUICK(table(), prevalences=values)
