"""results.json against its written schema."""

import copy
import json
from collections.abc import Callable
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


def first(block: Any) -> Any:
    """One of a list's rows or of the 14 findings' rows; a plain block as it is."""
    return block[0] if isinstance(block, list) else block.get("Mass", block)


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


@pytest.mark.parametrize("key", [key for key in SAMPLE if key != "training"])
def test_every_top_level_key_is_required(key: str) -> None:
    assert faults(changed(lambda r: r.pop(key)))


@pytest.mark.parametrize(
    "block, key",
    [(block, key) for block in ("data", "environment", "timing") for key in SAMPLE[block]],
)
def test_every_key_of_a_block_is_required(block: str, key: str) -> None:
    assert faults(changed(lambda r: r[block].pop(key)))


@pytest.mark.parametrize("key", SAMPLE["metrics"]["test"])
def test_every_metric_is_required(key: str) -> None:
    assert faults(changed(lambda r: r["metrics"]["test"].pop(key)))


@pytest.mark.parametrize(
    "block, key",
    [
        (block, key)
        for block in ("operating_point", "calibrated", "subgroups", "per_finding")
        for key in (first(SAMPLE["metrics"]["test"][block]))
    ],
)
def test_every_figure_of_a_part_of_the_metrics_is_required(block: str, key: str) -> None:
    assert faults(changed(lambda r: first(r["metrics"]["test"][block]).pop(key)))


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
        interval = row["gap_ci95"]
        assert row["flagged"] == bool(interval and (interval[0] > 0 or interval[1] < 0))


@pytest.mark.parametrize("key", SAMPLE["history"][0])
def test_every_column_of_the_history_is_required(key: str) -> None:
    assert faults(changed(lambda r: r["history"][0].pop(key))) == ["$.history[0]"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: r.update(status="done"), id="unknown status"),
        pytest.param(lambda r: r.update(schema_version=2), id="another version"),
        pytest.param(lambda r: r.update(extra=1), id="unknown key"),
        pytest.param(lambda r: r["history"][0].update(train_loss="NaN"), id="NaN as text"),
        pytest.param(lambda r: r["timing"].update(fit="Infinity"), id="infinity as text"),
        pytest.param(lambda r: r["timing"].update(fit=-1.0), id="negative time"),
        pytest.param(lambda r: r["metrics"]["test"].update(auroc_macro=83.1), id="percentage"),
        pytest.param(lambda r: r["metrics"]["test"].update(auroc_macro_ci95=[0.8]), id="half a CI"),
        pytest.param(lambda r: r["metrics"]["test"].update(images=-1), id="negative count"),
        pytest.param(lambda r: r["metrics"]["test"].update(per_finding={}), id="no findings"),
        pytest.param(
            lambda r: r["metrics"]["test"]["per_finding"].update({"<b>": {}}),
            id="no finding's name",
        ),
        pytest.param(
            lambda r: r["metrics"]["test"]["subgroups"][0].update(gap=-1.2), id="gap below -1"
        ),
        pytest.param(
            lambda r: r["metrics"]["test"]["subgroups"][0].update(by="height"), id="other attribute"
        ),
        pytest.param(
            lambda r: r["metrics"]["test"]["operating_point"].update(rule="best"), id="other rule"
        ),
        pytest.param(
            lambda r: r["metrics"]["test"]["calibrated"].update(brier_macro=None), id="no Brier"
        ),
        pytest.param(
            lambda r: r["metrics"]["test"]["per_finding"]["Mass"].update(reliability=[]),
            id="no bins",
        ),
        pytest.param(lambda r: r["data"].update(split_sha256="abc"), id="short digest"),
        pytest.param(lambda r: r["data"]["images"].update(holdout=3), id="unknown split side"),
        pytest.param(lambda r: r["data"]["dropped"].update(unreadable="3"), id="count as text"),
    ],
)
def test_a_wrong_value_is_refused(change: Callable[[Results], object]) -> None:
    assert faults(changed(change))
