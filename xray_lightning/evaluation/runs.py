"""Finding run folders and reading their results.json into what the report shows."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xray_lightning.errors import UserError
from xray_lightning.training.results import FILE_NAME as RESULTS
from xray_lightning.training.results import SCHEMA_VERSION

_STATUSES = frozenset({"running", "finished", "failed", "interrupted", "skipped"})


class DamagedResultsError(ValueError):
    """A results.json that cannot be used; the message says why, in one line."""


@dataclass(frozen=True)
class TestMetrics:
    """The part of metrics.test that tables show; fractions in 0..1, None where not computed."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    images: int
    label_accuracy: float | None
    always_negative: float | None
    auroc: float | None
    auroc_findings: int
    auroc_ci95: tuple[float, float] | None
    average_precision: float | None


@dataclass(frozen=True)
class Epoch:
    """One row of the history; `number` counts from 0."""

    number: int
    train_loss: float | None
    val_loss: float | None


@dataclass(frozen=True)
class Run:
    """One run as the report shows it. Times in seconds; None where the run did not get so far."""

    folder: Path
    name: str
    status: str
    reason: str | None
    paper_row: int | None
    model: str
    data: str
    split: str
    split_sha256: str | None
    images: dict[str, int]
    overlap: dict[str, int]
    dropped: dict[str, int]
    device: str | None
    accelerator: str | None
    world_size: int | None
    strategy: str | None
    precision_asked: str | None
    precision_used: str | None
    fit_seconds: float | None
    images_per_second: float | None
    test: TestMetrics | None
    history: tuple[Epoch, ...]


def find_run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders at or below `paths`, each once, in the order of the paths and their names.

    Raises:
        UserError: a path that does not exist, or that has no results.json at or below it.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        start = path.parent if path.name == RESULTS else path
        if not os.path.exists(start):  # False, too, for a name that is too long
            raise UserError(f"no such run: {path}; name a run folder, or a folder above runs")
        below = _folders_below(start)
        if not below:
            raise UserError(f"no {RESULTS} in {path} or below it; name a run folder")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def newest_run(runs: Path) -> Path:
    """The run or sweep folder directly in `runs` whose results were written last.

    Raises:
        UserError: `runs` has none.
    """
    if runs.is_dir():
        for folder in sorted(filter(Path.is_dir, runs.iterdir()), key=_last_written, reverse=True):
            if _last_written(folder) > 0:
                return folder
    raise UserError(f"no run in {runs}/; train one first, or name a run folder")


def read_run(folder: Path) -> Run:
    """Read `folder`/results.json.

    Raises:
        DamagedResultsError: it cannot be read, is no JSON (NaN included), or lacks a key.
    """
    path = folder / RESULTS
    try:
        if not path.is_file():  # reading a named pipe would wait for ever
            raise DamagedResultsError("not a file")
        text = path.read_text(encoding="utf-8")
        return _run(folder, json.loads(text, parse_constant=_refuse_constant))
    except DamagedResultsError:
        raise
    except KeyError as error:
        raise DamagedResultsError(f"key {error.args[0]!r} is missing") from error
    except json.JSONDecodeError as error:
        raise DamagedResultsError(f"not complete JSON (line {error.lineno})") from error
    except OSError as error:
        raise DamagedResultsError(error.strerror or "cannot be read") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DamagedResultsError(f"not a run's results: {error}") from error


def _folders_below(start: Path) -> list[Path]:
    folders = []
    for folder, below, files in os.walk(start):
        below.sort(key=_natural)
        if RESULTS in files:
            folders.append(Path(folder))
            below.clear()  # a run holds no other run
    return folders


def _natural(name: str) -> tuple[int, str]:
    """Sort a sweep's numbered jobs, 2_name before 10_name."""
    number = re.match(r"[0-9]{1,9}", name)
    return int(number[0]) if number else -1, name


def _last_written(folder: Path) -> float:
    return max(((f / RESULTS).lstat().st_mtime for f in _folders_below(folder)), default=0.0)


def _refuse_constant(name: str) -> NoReturn:
    raise DamagedResultsError(f"{name} is not a JSON number")


def _run(folder: Path, results: dict[str, Any]) -> Run:
    if results["schema_version"] != SCHEMA_VERSION:
        known = f"is not {SCHEMA_VERSION}"
        raise DamagedResultsError(f"schema_version {results['schema_version']!r} {known}")
    if results["status"] not in _STATUSES:
        raise DamagedResultsError(f"unknown status {results['status']!r}")
    config, data = results["config"], results["data"] or {}
    environment, timing = results["environment"], results["timing"]
    return Run(
        folder=folder,
        name=str(results["name"]),
        status=results["status"],
        reason=_text(results["reason"]),
        paper_row=_integer(config.get("paper_row")),
        model=_model(config),
        data=str(data.get("name", "")),
        split=str(data.get("split", "")),
        split_sha256=_text(data.get("split_sha256")),
        images=_counts(data.get("images", {})),
        overlap={pair: int(n["patients"]) for pair, n in data.get("patient_overlap", {}).items()},
        dropped=_counts(data.get("dropped", {})),
        device=_text(environment["device"]),
        accelerator=_text(environment["accelerator"]),
        world_size=_integer(environment["world_size"]),
        strategy=_text(environment["strategy"]),
        precision_asked=_text(environment["precision_asked"]),
        precision_used=_text(environment["precision_used"]),
        fit_seconds=_number(timing["fit"]),
        images_per_second=_number(timing["fit_images_per_second"]),
        test=_test_metrics(results["metrics"]["test"]),
        history=tuple(
            Epoch(int(e["epoch"]), _number(e["train_loss"]), _number(e["val_loss"]))
            for e in results["history"]
        ),
    )


def _test_metrics(test: dict[str, Any] | None) -> TestMetrics | None:
    if test is None:
        return None
    interval = test.get("auroc_macro_ci95")  # of another confidence it has another name
    return TestMetrics(
        images=int(test["images"]),
        label_accuracy=_number(test["label_accuracy"]),
        always_negative=_number(test["always_negative_accuracy"]),
        auroc=_number(test["auroc_macro"]),
        auroc_findings=int(test["auroc_macro_findings"]),
        auroc_ci95=None if interval is None else (float(interval[0]), float(interval[1])),
        average_precision=_number(test["average_precision_macro"]),
    )


def _model(config: dict[str, Any]) -> str:
    """The backbone's name, and whether further fully connected layers follow it."""
    model = config.get("model") or {}
    return f"{model.get('arch', '')}{' + FC layers' if model.get('hidden') else ''}"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not math.isfinite(number := float(value)):  # json reads 1e999 as infinity
        raise ValueError(f"{number} is not a number")
    return number


def _counts(values: dict[str, Any]) -> dict[str, int]:
    return {str(key): int(value) for key, value in values.items()}
