"""results.json: whole at every moment, and standard JSON."""

import json
import logging
import math
import subprocess
import warnings
from importlib import metadata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from xray_lightning.runs import results_json
from xray_lightning.runs.results_json import (
    FILE_NAME,
    RunRecord,
    bare_environment,
    differences,
    flat,
    git_commit,
    kept_warnings,
    leaving_out,
    predictions_name,
)
from xray_lightning.runs.schema import Results, json_schema

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"arch": "resnet18", "hidden": []},
    "data": {"root": "a", "batch_size": 32},
    "trainer": {"max_epochs": 1},
    "strategy": {"name": "single"},
}


def start(folder: Path) -> RunRecord:
    return RunRecord.start(folder, name="n", command="c", seed=3, config=CONFIG)


@pytest.mark.parametrize("status", ["running", "finished", "failed", "interrupted", "skipped"])
def test_a_record_is_valid_against_the_schema_at_every_end(status: str, tmp_path: Path) -> None:
    record = start(tmp_path)
    record.end(status, None if status in ("running", "finished") else "why")
    again = RunRecord.load(tmp_path)
    assert again is not None
    Draft202012Validator(json_schema()).validate(again.content)
    Results.model_validate(again.content)
    assert (again.status, again.content["seed"], again.content["config"]) == (status, 3, CONFIG)


def test_a_number_that_is_none_is_written_as_null(tmp_path: Path) -> None:
    record = start(tmp_path)
    record.content["timing"]["fit"] = math.nan
    same = {"a": [1, 2.5, "x", None, True, {"b": []}]}
    record.content["config"] = {"a": (1.5, -math.inf), "b": Path("x"), 3: True, "c": same}
    record.write()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((tmp_path / FILE_NAME).read_text(), parse_constant=refuse)
    assert content["timing"]["fit"] is None
    assert content["config"] == {"a": [1.5, None], "b": "x", "3": True, "c": same}


def test_fault_25_a_failed_write_keeps_the_record_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start(tmp_path)
    record.write()
    before = (tmp_path / FILE_NAME).read_bytes()
    record.content["name"] = object  # the default of json.dumps takes it: write the new record
    monkeypatch.setattr("xray_lightning.files.os.replace", None)
    with pytest.raises(TypeError):
        record.end("finished")
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 10**5])
def test_a_record_that_cannot_be_read_is_none(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    assert RunRecord.load(tmp_path) is None


def test_two_records_share_no_block(tmp_path: Path) -> None:
    one, two = start(tmp_path), start(tmp_path)
    one.content["timing"]["peak_memory_bytes"]["host"] = 1
    assert two.content["timing"]["peak_memory_bytes"]["host"] is None


def test_the_commit_is_that_of_the_checkout_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = git_commit()
    assert found is None or len(found) == 40
    other = tmp_path / "other" / "site-packages" / "results_json.py"  # installed below another's
    other.parent.mkdir(parents=True)
    other.touch()
    options = ("-c", "user.name=x", "-c", "user.email=x@x", "commit", "--allow-empty", "-m", "x")
    for command in (("init", "--quiet"), (*options, "--quiet")):
        subprocess.run(["git", "-C", str(tmp_path / "other"), *command], check=True)
    monkeypatch.setattr(results_json, "__file__", str(other))
    assert git_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_a_checkout_that_was_never_installed_has_no_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bare_environment()["xray_lightning"] == version("xray-lightning")
    found = metadata.version

    def absent(name: str) -> str:
        if name == "xray-lightning":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert bare_environment()["xray_lightning"] is None


def test_predictions_are_named_after_their_split() -> None:
    assert predictions_name("val") == "predictions_val.csv"


def test_settings_are_left_out_with_what_is_below_them_and_no_other() -> None:
    settings = {"data.root": 1, "data.roots": 2, "speed.threads": 3, "speed": 4, "seed": 5}
    assert leaving_out(settings, ("data.root", "speed")) == {"data.roots": 2, "seed": 5}


def test_nested_keys_are_told_by_their_dotted_names() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 5}, "d": 3}) == [
        "a.b: 1 -> 5",
        "c: 2 -> None",
        "d: None -> 3",
    ]


def test_warnings_are_kept_once_each_with_neither_path_nor_code() -> None:
    kept: list[str] = []
    logging.captureWarnings(True)
    try:
        with kept_warnings(kept):
            logging.getLogger("any").warning("few images: %d", 3)
            logging.getLogger("any").info("not a warning")
            for _ in range(2):
                with warnings.catch_warnings():
                    warnings.simplefilter("always")
                    warnings.warn("odd: 2: 3", UserWarning, stacklevel=1)
        logging.getLogger("any").warning("too late")
    finally:
        logging.captureWarnings(False)
    assert kept == ["few images: 3", "UserWarning: odd: 2: 3"]
