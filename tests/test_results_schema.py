"""results.json against its written schema."""

import copy
import json
from collections.abc import Callable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, check_findings
from xray_lightning.runs.schema import Results as Types
from xray_lightning.runs.schema import json_schema

SCHEMA_FILE = Path(__file__).parents[1] / "docs" / "results_schema.json"
SCHEMA = json_schema()
SAMPLE = json.loads((Path(__file__).parent / "results_sample.json").read_text(encoding="utf-8"))

Results = dict[str, Any]


def faults(results: Results) -> list[str]:
    """Where the schema finds a fault; the types that it comes from find one in the same content."""
    found = [error.json_path for error in Draft202012Validator(SCHEMA).iter_errors(results)]
    unknown = [path for path in found if path == "$" and results.keys() - SAMPLE.keys()]
    assert (found == unknown) == is_read(results)  # an unknown key is not read
    return found


def is_read(results: Results) -> bool:
    try:
        Types.model_validate(results)
    except ValidationError:
        return False
    return True


def changed(change: Callable[[Results], object]) -> Results:
    results = copy.deepcopy(SAMPLE)
    change(results)
    return results


def is_finding(name: str) -> bool:
    try:
        return check_findings([name], what="names") == (name,)
    except UserError:
        return False


def at(results: Results, path: Sequence[Any]) -> Any:
    """What stands at a path of keys and places."""
    return reduce(getitem, path, results)


TEST = ("metrics", "test")
# A block of each kind, of whose keys none may lack.
BLOCKS: list[tuple[Any, ...]] = [
    *[(), ("data",), ("environment",), ("timing",), ("history", 0), TEST],
    *[(*TEST, "operating_point"), (*TEST, "calibrated")],
    *[(*TEST, "subgroups", 2), (*TEST, "per_finding", "Mass")],
]
REQUIRED = [(*block, key) for block in BLOCKS for key in at(SAMPLE, block)]


def test_the_schema_is_itself_valid() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_written_schema_is_that_of_the_types() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == SCHEMA, (
        "python -m xray_lightning.runs.schema > docs/results_schema.json"
    )


def test_the_schema_takes_the_same_names_of_findings_as_the_code() -> None:
    names = [*FINDINGS, "Fracture", "Nodule/Mass", "Œdème (1)", "No Finding", "<b>", "_x", "x" * 61]
    for name in names:
        taken = Draft202012Validator(SCHEMA["$defs"]["Finding"]).is_valid(name)
        assert taken == is_finding(name), name


def test_a_finished_run_is_accepted() -> None:
    assert faults(SAMPLE) == []


def test_a_run_that_never_read_data_is_accepted() -> None:
    def skipped(results: Results) -> None:
        results.update(status="skipped", reason="needs CUDA", data=None, history=[])
        results["metrics"]["test"] = None
        for key in results["timing"].keys() - {"peak_memory_bytes"}:
            results["timing"][key] = None

    assert faults(changed(skipped)) == []


def test_a_finding_without_a_score_is_null_with_its_reason() -> None:
    def undefined(results: Results) -> None:
        test = results["metrics"]["test"]
        test["per_finding"]["Hernia"].update(auroc=None, auroc_ci95=None, average_precision=None)
        test["undefined"] = {"Hernia": "no positives"}

    assert faults(changed(undefined)) == []


@pytest.mark.parametrize("status", ["failed", "interrupted", "skipped"])
def test_a_run_that_did_not_finish_says_why(status: str) -> None:
    assert faults(changed(lambda r: r.update(status=status, reason=None))) == ["$.reason"]


@pytest.mark.parametrize("path", [p for p in REQUIRED if p != ("training",)], ids=str)
def test_every_key_is_required(path: tuple[Any, ...]) -> None:
    *block, key = path
    told = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in block)
    found = faults(changed(lambda results: at(results, block).pop(key)))
    assert any(map(told.startswith, found))


def test_metrics_without_operating_points_calibration_and_subgroups_are_accepted() -> None:
    def plain(results: Results) -> None:
        results["metrics"]["test"].update(operating_point=None, calibrated=None, subgroups=[])

    assert faults(changed(plain)) == []


def test_the_samples_figures_agree_with_each_other() -> None:
    test = SAMPLE["metrics"]["test"]
    rows = test["per_finding"].values()
    assert test["auroc_macro_findings"] == len(rows) == 14
    for name in ("auroc", "average_precision", "brier", "expected_calibration_error"):
        assert test[f"{name}_macro"] == pytest.approx(mean(row[name] for row in rows), abs=2e-6)
    positives = sum(row["positives"] for row in rows)
    assert test["always_negative_accuracy"] == pytest.approx(1 - positives / 14 / 400, abs=1e-6)
    for row in rows:
        assert row["true_positives"] + row["false_negatives"] == row["positives"]
        assert row["false_positives"] + row["true_negatives"] == 400 - row["positives"]
        assert sum(part["images"] for part in row["reliability"]) == test["images"] == 400
        assert row["sensitivity"] == pytest.approx(
            row["true_positives"] / row["positives"], abs=1e-6
        )
    for row in test["subgroups"]:
        gaps = {"AUROC": "gap", "specificity": "specificity_gap", "sensitivity": "sensitivity_gap"}
        joint = "_simultaneous" if "flagged_by" in row else ""
        ends = {name: row.get(f"{gap}_ci95{joint}") for name, gap in gaps.items()}
        apart = [name for name, one in ends.items() if one and (one[0] > 0 or one[1] < 0)]
        assert apart == row.get("flagged_by", apart)
        assert row["flagged"] == bool(apart)


def test_a_row_of_the_papers_study_has_a_number() -> None:
    assert is_read(changed(lambda results: results["config"].update(paper_row=3)))
    assert not is_read(changed(lambda results: results["config"].update(paper_row="<b>")))


def test_rows_have_their_finding_and_its_calibration_and_groups_three_gaps() -> None:
    test = Types.model_validate(SAMPLE).metrics.test
    assert test is not None
    assert test.calibrated is not None
    rows = {row.finding: row for row in test.finding_rows}
    assert rows.keys() == SAMPLE["metrics"]["test"]["per_finding"].keys()
    assert rows["Mass"].auroc == test.per_finding["Mass"].auroc
    assert rows["Mass"].calibrated == test.calibrated.per_finding["Mass"]
    for group in test.subgroups:
        assert [gap for gap, _, _ in group.gaps] == [
            *(group.gap, group.sensitivity_gap, group.specificity_gap)
        ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), "done"),
        (("name",), 3),
        (("schema_version",), 2),
        (("extra",), 1),
        (("history", 0, "train_loss"), "NaN"),
        (("timing", "fit"), "Infinity"),
        (("timing", "fit"), -1.0),
        ((*TEST, "auroc_macro"), 83.1),
        ((*TEST, "auroc_macro_ci95"), [0.8]),
        ((*TEST, "images"), -1),
        ((*TEST, "per_finding"), {}),
        ((*TEST, "per_finding", "<b>"), {}),
        ((*TEST, "per_finding", "No Finding"), {}),
        ((*TEST, "subgroups", 0, "gap"), -1.2),
        ((*TEST, "subgroups", 0, "by"), ""),
        ((*TEST, "subgroups", 0, "flagged_by"), ["height"]),
        ((*TEST, "operating_point", "rule"), "best"),
        ((*TEST, "calibrated", "brier_macro"), None),
        ((*TEST, "per_finding", "Mass", "reliability"), []),
        (("data", "split_sha256"), "abc"),
        (("data", "images", "holdout"), 3),
        (("data", "dropped", "unreadable"), "3"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(path: tuple[Any, ...], value: object) -> None:
    *block, key = path
    assert faults(changed(lambda results: at(results, block).update({key: value})))
