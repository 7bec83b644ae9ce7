"""Run folders: which runs there are, and what produced them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xray_lightning.errors import UserError, check_whole
from xray_lightning.runs.record import FILE_NAME as RESULTS
from xray_lightning.runs.record import SCHEMA_VERSION, Run, RunRecord, run_of

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


@dataclass(frozen=True)
class Provenance:
    """A run's results.json, as far as there is one; what it lacks is empty or None.

    Attributes:
        folder: the run folder; None where there is none.
        results: its results.json; empty where there is none.
    """

    folder: Path | None
    results: Mapping[str, Any]

    @classmethod
    def of_folder(cls, folder: Path) -> "Provenance":
        """What a folder says, if it is a run folder."""
        record = RunRecord.load(folder) if (folder / RESULTS).is_file() else None
        if record is None or not isinstance(record.content, Mapping):
            return cls(None, {})
        return cls(folder, record.content)

    @classmethod
    def of_checkpoint(cls, path: Path) -> "Provenance":
        """What the run folder of RUN/checkpoints/NAME.ckpt says."""
        return cls.of_folder(path.absolute().parent.parent)

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's resolved configuration."""
        return _mapping(self.results.get("config"))

    @property
    def data(self) -> Mapping[str, Any]:
        """Its group `data`."""
        return _mapping(self.config.get("data"))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Its group `evaluation`."""
        return _mapping(self.config.get("evaluation"))

    @property
    def tested_only(self) -> bool:
        """Whether the run tested another run's checkpoint."""
        return self.config.get("ckpt_path") is not None

    def bootstrap(self, resamples: int | None, seed: int | None) -> tuple[int, int]:
        """Resamples and seed: those asked for, else the run's, else 1,000 and 0.

        Raises:
            UserError: they are no whole numbers of at least 0.
        """
        resamples = self.evaluation.get("resamples", 1000) if resamples is None else resamples
        seed = self.evaluation.get("seed", 0) if seed is None else seed
        check_whole("--resamples", resamples, least=0)
        check_whole("--seed", seed, least=0)
        return resamples, seed

    @property
    def prevalences(self) -> dict[str, float] | None:
        """The share of its training images with each finding."""
        data = _mapping(self.results.get("data"))
        images = _mapping(data.get("images")).get("train")
        positives = _mapping(_mapping(data.get("positives")).get("train"))
        counts = [images, *positives.values()]
        if not images or not positives or not all(isinstance(count, int) for count in counts):
            return None
        return {finding: count / images for finding, count in positives.items()}

    @property
    def findings(self) -> tuple[str, ...] | None:
        """Those of its data, in their order."""
        positives = _mapping(_mapping(self.results.get("data")).get("positives"))
        return tuple(_mapping(positives.get("train"))) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
