"""Subgroups: who is in which, their scores, and a flag where a gap's interval excludes zero."""

import logging
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import arrays, frame, grouped, points, redrawn, table
from sklearn.metrics import recall_score, roc_auc_score

from xray_lightning.errors import UserError
from xray_lightning.evaluation.grouping import attributes_of
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS

QUICK = Evaluator(resamples=60)
RATES = ("sensitivity", "specificity")
MACROS = ("auroc_macro", *(f"{name}_macro" for name in RATES))
GAPS = ("gap", *(f"{name}_gap" for name in RATES))
FIGURES = (
    *(key for name in (*MACROS, *GAPS) for key in (name, f"{name}_ci95")),
    *(key for gap in GAPS for key in (f"{gap}_ci95_simultaneous", f"smallest_{gap}")),
)


def rows(predictions: pd.DataFrame, evaluator: Evaluator = QUICK) -> dict[tuple[str, str], Any]:
    found = evaluator(predictions)["subgroups"]
    return {(row["by"], row["group"]): row for row in found}


def macro(predictions: pd.DataFrame) -> float:
    scores, labels = arrays(predictions)
    return float(roc_auc_score(labels, scores, average="macro"))


def test_every_image_is_in_one_group_of_each_attribute() -> None:
    found = rows(grouped())
    assert list(found) == [
        *[("sex", group) for group in ("female", "male")],
        *[("age", group) for group in ("0-17", "18-39", "40-59", "60-79", "80+")],
        *[("view", group) for group in ("PA", "AP")],
        *[("visit", group) for group in ("first image", "follow-up")],
    ]
    for by in ("sex", "age", "view", "visit"):
        assert sum(row["images"] for (of, _), row in found.items() if of == by) == 600


@pytest.mark.parametrize(
    "age, group",
    [
        *((0, "0-17"), (17, "0-17"), (17.9, "0-17"), (18, "18-39"), (39, "18-39")),
        *((40, "40-59"), (59, "40-59"), (60, "60-79"), (79, "60-79"), (80, "80+"), (113, "80+")),
    ],
)
def test_an_age_lies_in_its_band(age: float, group: str) -> None:
    assert [key for key in rows(table().assign(age=age)) if key[0] == "age"] == [("age", group)]


def test_auroc_and_gap_equal_scikit_learn_on_the_groups_rows() -> None:
    predictions = grouped()
    predictions.loc[:40, "sex"] = ""
    found = rows(predictions)
    bands = pd.cut(predictions["age"], [0, 18, 40, 60, 80, 200], right=False).cat.codes
    groups = {
        ("sex", "female"): predictions["sex"] == "F",
        ("sex", "male"): predictions["sex"] == "M",
        ("view", "AP"): predictions["view"] == "AP",
        ("visit", "first image"): predictions["follow_up"] == 0,
        ("age", "18-39"): bands == 1,
        ("age", "60-79"): bands == 3,
    }
    for key, inside in groups.items():
        known = predictions["sex"] != "" if key[0] == "sex" else inside | True
        row = found[key]
        assert row["findings"] == 14
        assert row["images"] == inside.sum()
        assert row["patients"] == predictions.loc[inside, "patient_id"].nunique()
        own, rest = macro(predictions[inside]), macro(predictions[known & ~inside])
        assert row["auroc_macro"] == pytest.approx(own, abs=1e-9), key
        assert row["gap"] == pytest.approx(own - rest, abs=1e-9), key
        low, high = row["auroc_macro_ci95"]
        assert low < own < high
        low, high = row["gap_ci95"]
        assert low < own - rest < high


def test_intervals_are_of_the_resampled_rows_of_the_group() -> None:
    predictions = grouped(images=300, patients=90)
    row = rows(predictions, Evaluator(resamples=40, seed=3))[("sex", "female")]
    own, gaps = [], []
    for drawn in redrawn(predictions, resamples=40, seed=3):
        own.append(macro(drawn[drawn["sex"] == "F"]))
        gaps.append(own[-1] - macro(drawn[drawn["sex"] == "M"]))
    assert row["auroc_macro_ci95"] == pytest.approx(np.quantile(own, [0.025, 0.975]), abs=1e-9)
    assert row["gap_ci95"] == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=1e-9)


def test_a_planted_gap_is_flagged_and_no_other() -> None:
    predictions = grouped(images=1200, patients=400)
    draw = np.random.default_rng(9)
    worse = np.flatnonzero(predictions["view"] == "AP")
    for finding in FINDINGS:  # half of the AP images get another AP image's answers
        column = predictions.columns.get_loc(f"prob_{finding}")
        half = draw.choice(worse, len(worse) // 2, replace=False)
        predictions.iloc[half, column] = predictions.iloc[draw.permutation(half), column].to_numpy()
    found = rows(predictions, Evaluator(resamples=200))
    assert {key for key, row in found.items() if row["flagged"]} == {("view", "PA"), ("view", "AP")}
    assert found[("view", "AP")]["gap"] < -0.05
    assert found[("view", "AP")]["gap_ci95"][1] < 0 < found[("view", "PA")]["gap_ci95"][0]


def test_what_is_not_known_is_counted_and_in_no_group() -> None:
    predictions = grouped()
    predictions.loc[:29, ["sex", "view"]] = ""
    predictions.loc[:9, "age"] = np.nan
    predictions["follow_up"] = predictions["follow_up"].astype("Int64").mask(np.arange(600) < 5)
    found = rows(predictions)
    for by, count in {"sex": 30, "view": 30, "age": 10, "visit": 5}.items():
        row = found[(by, "unknown")]
        assert row["images"] == row["patients"] == count
        assert [row[name] for name in FIGURES] == [None] * len(FIGURES)
        assert row["undefined_reason"] == dict.fromkeys(
            FIGURES, "it is not known which group these images belong to"
        )
        assert (row["findings"], row["flagged"]) == (0, False)
        known = [r["images"] for (of, group), r in found.items() if of == by and group != "unknown"]
        assert sum(known) == 600 - count


def test_a_column_that_is_not_there_is_said_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = rows(grouped().drop(columns=["age", "view"]))
    assert {by for by, _ in found} == {"sex", "visit"}
    assert "no age, view" in caplog.text
    assert QUICK(table())["subgroups"] == []


def test_a_group_of_one_patient_or_without_others_is_null_with_its_reason() -> None:
    predictions = grouped()
    predictions["view"] = np.where(predictions["patient_id"] == 3, "AP", "PA")
    found = rows(predictions)
    small, large = found[("view", "AP")], found[("view", "PA")]
    assert (small["images"], small["patients"], small["findings"]) == (3, 1, 0)
    assert small["auroc_macro"] is small["auroc_macro_ci95"] is None
    assert "two of its patients" in small["undefined_reason"]["auroc_macro_ci95"]
    assert large["auroc_macro"] is not None
    predictions["sex"] = np.where(predictions["sex"] == "F", "F", "")
    alone = rows(predictions)[("sex", "female")]  # of known sex
    assert alone["auroc_macro_ci95"] is not None
    for row in (small, large, alone):
        assert row["gap"] is row["gap_ci95"] is None
        assert not row["flagged"]
        assert "in the others" in row["undefined_reason"]["gap"]


def test_findings_that_a_group_cannot_tell_are_left_out_of_its_macro() -> None:
    predictions = grouped()
    female = predictions["sex"] == "F"
    predictions.loc[female, "label_Hernia"] = 0
    predictions.loc[female & (predictions["patient_id"] != 7), "label_Mass"] = 0
    found = rows(predictions)
    assert found[("sex", "female")]["findings"] == 12
    assert found[("sex", "male")]["findings"] == 14
    scores, labels = arrays(predictions)
    kept = [i for i, finding in enumerate(FINDINGS) if finding not in ("Hernia", "Mass")]
    own, rest = (
        roc_auc_score(labels[np.ix_(side, kept)], scores[np.ix_(side, kept)], average="macro")
        for side in (female.to_numpy(), ~female.to_numpy())
    )
    assert found[("sex", "female")]["auroc_macro"] == pytest.approx(own)
    assert found[("sex", "female")]["gap"] == pytest.approx(own - rest)
    assert found[("sex", "male")]["gap"] == pytest.approx(rest - own)


def test_without_resamples_a_group_has_its_score_alone() -> None:
    row = rows(grouped(), Evaluator(resamples=0))[("sex", "male")]
    assert row["auroc_macro"] is not None
    assert row["gap"] is not None
    assert row["auroc_macro_ci95"] is row["gap_ci95"] is None
    plain = {f"{name}_{kind}" for name in RATES for kind in ("macro", "gap")}
    assert set(row["undefined_reason"]) == {*FIGURES} - {"auroc_macro", "gap", *plain}
    assert set(row["undefined_reason"].values()) == {"no resamples were asked for"}
    assert row["flagged"] is False


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_class_leave_every_group_null(label: int) -> None:
    everything = frame(np.full((6, 14), 0.5), np.full((6, 14), label), range(6), sex=list("MFMFMF"))
    for row in rows(everything).values():
        assert row["auroc_macro"] is row["gap"] is None
        assert row["findings"] == 0


def rates(predictions: pd.DataFrame, cut: float = 0.5) -> tuple[float, float]:
    """Macro sensitivity and specificity by scikit-learn."""
    scores, labels = arrays(predictions)
    return tuple(
        float(
            np.mean(
                [
                    recall_score(t, s >= cut, pos_label=side)
                    for t, s in zip(labels.T, scores.T, strict=True)
                ]
            )
        )
        for side in (1, 0)
    )


def test_sensitivity_and_specificity_equal_scikit_learn_on_the_groups_rows() -> None:
    predictions = grouped(images=1200, patients=400)
    predictions.loc[:20, "sex"] = ""
    cuts = points(**dict.fromkeys(FINDINGS, 0.4))
    metrics = Evaluator(resamples=60)(predictions, operating_points=cuts)
    found = {(row["by"], row["group"]): row for row in metrics["subgroups"]}
    for by, group, inside in (
        ("sex", "female", predictions["sex"] == "F"),
        ("view", "AP", predictions["view"] == "AP"),
        ("visit", "follow-up", predictions["follow_up"] > 0),
    ):
        known = predictions["sex"] != "" if by == "sex" else inside | True
        own = rates(predictions[inside], 0.4)
        rest = rates(predictions[known & ~inside], 0.4)
        for name, value, other in zip(RATES, own, rest, strict=True):
            row = found[(by, group)]
            assert row[f"{name}_macro"] == pytest.approx(value, abs=1e-12), (by, name)
            assert row[f"{name}_gap"] == pytest.approx(value - other, abs=1e-12), (by, name)
            low, high = row[f"{name}_gap_ci95"]
            assert low < value - other < high


def test_the_intervals_of_rates_are_of_the_resampled_rows_of_the_group() -> None:
    predictions = grouped(images=900, patients=300)
    row = rows(predictions, Evaluator(resamples=30, seed=3))[("sex", "female")]
    own, gaps = [], []
    for drawn in redrawn(predictions, resamples=30, seed=3):
        own.append(rates(drawn[drawn["sex"] == "F"]))
        gaps.append(np.subtract(own[-1], rates(drawn[drawn["sex"] == "M"])))
    for place, name in enumerate(RATES):
        expected = np.quantile(np.array(own)[:, place], [0.025, 0.975])
        assert row[f"{name}_macro_ci95"] == pytest.approx(expected, abs=1e-9)
        expected = np.quantile(np.array(gaps)[:, place], [0.025, 0.975])
        assert row[f"{name}_gap_ci95"] == pytest.approx(expected, abs=1e-9)


def test_a_finding_of_fewer_than_ten_patients_is_in_no_macro_sensitivity() -> None:
    predictions = grouped()
    female = predictions["sex"] == "F"
    ids = predictions.loc[female, "patient_id"].unique()
    predictions.loc[female, "label_Mass"] = (
        predictions["patient_id"].isin(ids[:9])[female].astype(int)
    )
    kept = [finding for finding in FINDINGS if finding != "Mass"]
    found = rows(predictions)[("sex", "female")]
    part = predictions[[c for c in predictions if not c.endswith("_Mass")]]
    scores = part.loc[female, [f"prob_{finding}" for finding in kept]] >= 0.5
    labels = part.loc[female, [f"label_{finding}" for finding in kept]]
    expected = [recall_score(labels.iloc[:, i], scores.iloc[:, i]) for i in range(13)]
    assert found["sensitivity_macro"] == pytest.approx(np.mean(expected))
    predictions.loc[female, "label_Mass"] = (
        predictions["patient_id"].isin(ids[:10])[female].astype(int)
    )
    assert rows(predictions)[("sex", "female")]["sensitivity_macro"] != found["sensitivity_macro"]


def test_any_column_forms_subgroups_by_its_values_or_its_quartiles() -> None:
    predictions = grouped()
    draw = np.random.default_rng(3)
    predictions["site"] = draw.choice(
        ["north", "south", "", "Unknown"], 600, p=[0.5, 0.3, 0.1, 0.1]
    )
    predictions["device"] = draw.choice([f"d{i}" for i in range(9)], 600)
    predictions["kilovolt"] = draw.normal(100, 9, 600).round(1).astype(str)
    predictions["rows"] = draw.choice(["1024", "512"], 600)
    names = ["site", "device", "kilovolt", "rows"]
    found = rows(predictions, Evaluator(resamples=30, subgroups=names))
    counts = predictions["site"].value_counts()
    assert {key[1]: row["images"] for key, row in found.items() if key[0] == "site"} == {
        "north": counts["north"],
        "south": counts["south"],
        "unknown": counts[""] + counts["Unknown"],
    }
    devices = [group for by, group in found if by == "device"]
    assert len(devices) == 6
    assert devices[-1] == "other (4 values)"
    bands = [(group, row["images"]) for (by, group), row in found.items() if by == "kilovolt"]
    assert [group.split()[0] for group, _ in bands] == ["up", "over", "over", "over"]
    assert all(140 <= images <= 160 for _, images in bands)
    assert [group for by, group in found if by == "rows"] == ["512", "1024"]
    assert not {"sex", "view"} & {by for by, _ in found}


def test_codes_of_many_digits_are_groups_of_their_own() -> None:
    sites, days = [4015321, 4015322], list(range(20230101, 20230129))
    table = pd.DataFrame({"site": sites * 14, "day": days})
    by = {one.by: one.groups for one in attributes_of(table, ["site", "day"])}
    assert by["site"] == ("4015321", "4015322")
    assert len({*by["day"]}) == 4
    assert by["day"][0] == "up to 20230107"


def test_without_subgroups_the_rest_of_the_metrics_is_the_same() -> None:
    predictions = grouped()
    usual, none = QUICK(predictions), Evaluator(resamples=60, subgroups=[])(predictions)
    assert none.pop("subgroups") == []
    assert usual.pop("subgroups")
    assert none == usual
    assert none["auroc_within_view_macro"] is not None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("sex", "must be a list of columns"),
        ([1], "1 is not the title of a column"),
        (["sex", "Sex"], "Sex is there twice"),
        (["follow_up"], "cannot be grouped by; visit tells"),
        (["label_Mass"], "label_Mass cannot be grouped by"),
        (["View"], "write View as view"),
        (["site"], "the predictions have no column site"),
    ],
)
def test_columns_that_cannot_form_subgroups_are_one_line(names: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"evaluation.subgroups.*{re.escape(message)}"):
        Evaluator(resamples=0, subgroups=names)(grouped())
