"""Finding run folders and reading their results.json."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from xray_lightning.errors import UserError
from xray_lightning.evaluation.reading import run_of
from xray_lightning.evaluation.record import Run
from xray_lightning.training.results import FILE_NAME as RESULTS
from xray_lightning.training.results import SCHEMA_VERSION

_STATUSES = frozenset({"running", "finished", "failed", "interrupted", "skipped"})


class DamagedResultsError(ValueError):
    """A results.json that cannot be used; the message says why, in one line."""


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
    return run_of(folder, results)
