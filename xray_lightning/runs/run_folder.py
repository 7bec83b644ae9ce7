"""Run folders: which there are, what their results.json says, and what produced a checkpoint."""

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from xray_lightning.errors import UserError, check_whole, printable
from xray_lightning.files import is_held
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import LOG_NAME, RUNNING, RunRecord, flat
from xray_lightning.runs.schema import (
    DataSummary,
    Demographics,
    Epoch,
    FirstWeights,
    Results,
    TestMetrics,
    Timing,
)


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


@dataclass(frozen=True)
class Side:
    """What the train, val or test images hold; positives by finding, and who is on them."""

    name: str
    images: int
    patients: int | None
    positives: dict[str, int]
    demographics: Demographics | None = None


@dataclass(frozen=True)
class Run:
    """One run as the report shows it; None where the run did not get so far.

    Attributes:
        settings: the resolved configuration by dotted key, such as `trainer.max_epochs`.
        versions: what else is known of the environment, by name.
    """

    folder: Path
    name: str
    status: str
    reason: str | None
    command: str
    seed: int | None
    git_commit: str | None
    settings: dict[str, Any]
    paper_row: int | None
    model: str
    data: str
    root: str | None
    split: str
    split_sha256: str | None
    sides: tuple[Side, ...]
    overlap: dict[str, int]
    dropped: dict[str, int]
    device: str | None
    accelerator: str | None
    world_size: int | None
    strategy: str | None
    precision_asked: str | None
    precision_used: str | None
    versions: dict[str, str]
    timing: Timing
    test: TestMetrics | None
    history: tuple[Epoch, ...]
    warnings: tuple[str, ...]
    skipped_steps: int
    first_weights: FirstWeights | None = None

    @property
    def findings(self) -> tuple[str, ...]:
        """Those of its test, else of its data; empty where neither is known."""
        if self.test:
            return tuple(self.test.per_finding)
        return tuple(dict.fromkeys(name for side in self.sides for name in side.positives))

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, whose checkpoint was kept, if it is kept by the validation AUROC."""
        monitor = self.settings.get("callbacks.best.monitor", "val/auroc_macro")
        known = [e for e in self.history if e.val_auroc_macro is not None]
        if monitor != "val/auroc_macro" or not known:
            return None
        return max(known, key=lambda e: (e.val_auroc_macro or 0.0, -e.epoch)).epoch + 1

    @property
    def weights_files(self) -> list[str]:
        """The files of weights that training began with; empty where it was none."""
        given = self.settings.get("model.weights_path")
        files = given if isinstance(given, list | tuple) else [given]
        return [str(file) for file in files if file is not None]

    @property
    def images(self) -> dict[str, int]:
        """Images per split."""
        return {side.name: side.images for side in self.sides}


_NO_DATA = DataSummary.model_construct(
    name="",
    root=None,
    split="",
    split_sha256=None,
    patient_overlap={},
    images={},
    patients={},
    positives={},
    demographics=None,
    dropped={},
)


def run_of(folder: Path, results: object) -> Run:
    """A run from the content of its results.json.

    Raises:
        DamagedResultsError: it is not a run's record.
    """
    try:
        content = Results.model_validate(results)
    except ValidationError as error:
        raise DamagedResultsError(_first_fault(error)) from error
    data, environment = content.data or _NO_DATA, content.environment
    model = _mapping(content.config.get("model"))
    return Run(
        folder=folder,
        **_values(content, "name", "status", "reason", "command", "seed", "git_commit"),
        **_values(content, "timing", "history"),
        **_values(data, "root", "split", "split_sha256", "dropped"),
        **_values(environment, "device", "accelerator", "world_size", "strategy"),
        **_values(environment, "precision_asked", "precision_used"),
        settings=flat(content.config),
        paper_row=content.config.get("paper_row"),
        model=f"{model.get('arch', '')}"
        + (", pooled stages" if model.get("pool_stages") else "")
        + (" + FC layers" if model.get("hidden") else ""),
        data=data.name,
        sides=tuple(
            Side(
                name,
                images,
                data.patients.get(name),
                data.positives.get(name, {}),
                (data.demographics or {}).get(name),
            )
            for name, images in data.images.items()
        ),
        overlap={pair: both.patients for pair, both in data.patient_overlap.items()},
        versions={
            key: value
            for key in ("python", "torch", "lightning", "xray_lightning", "mpi")
            if (value := getattr(environment, key)) is not None
        },
        test=content.metrics.test,
        warnings=content.training.warnings,
        skipped_steps=content.training.skipped_steps,
        first_weights=content.first_weights,
    )


def _values(part: BaseModel, *keys: str) -> dict[str, Any]:
    return {key: getattr(part, key) for key in keys}


def _first_fault(error: ValidationError) -> str:
    """The first key that is missing or wrong, and its value, in one line."""
    fault = error.errors(include_url=False)[0]
    key = printable(".".join(map(str, fault["loc"])))[:120]
    value = printable(repr(fault["input"]))[:60]
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    if fault["type"] == "literal_error":
        return f"{key} {value} is not {fault['ctx']['expected']}"
    said = fault["msg"].removeprefix("Value error, ")
    return f"{key} is {value}: {said}" if key else f"not a run's results: {said}"


GONE = "its process is gone without a word: killed, or its machine stopped"


def read_run(folder: Path) -> Run:
    """Read `folder`/results.json.

    A run with status "running" on this host is reported as interrupted if no process holds its log.

    Raises:
        DamagedResultsError: it cannot be read, is not standard JSON (which has no NaN), or does
            not match the schema.
    """
    path = folder / RESULTS
    try:
        if not path.is_file():  # reading a named pipe would wait for ever
            raise DamagedResultsError("not a file")
        results = _json_in(path)
        run = run_of(folder, results)
        here = results["environment"]["hosts"][:1] == [socket.gethostname()]
        if run.status == RUNNING and here and is_held(folder / LOG_NAME) is False:
            run = run_of(folder, _json_in(path))  # it may have ended between the two
            if run.status == RUNNING:
                return replace(run, status="interrupted", reason=GONE)
        return run
    except DamagedResultsError:
        raise
    except json.JSONDecodeError as error:
        raise DamagedResultsError(f"not complete JSON (line {error.lineno})") from error
    except OSError as error:
        raise DamagedResultsError(error.strerror or "cannot be read") from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise DamagedResultsError(f"not a run's results: {error}") from error


def _json_in(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)


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
    def subgroups(self) -> tuple[str, ...] | None:
        """The columns that it formed subgroups by; None where it does not say."""
        names = self.evaluation.get("subgroups")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return tuple(names)

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
    def metadata_model(self) -> Mapping[str, Any]:
        """The metadata baseline that its test was set beside."""
        test = _mapping(self.results.get("metrics")).get("test")
        return _mapping(_mapping(test).get("metadata_model"))

    @property
    def combined_model(self) -> Mapping[str, Any]:
        """Metadata and its model together, as its test had them."""
        test = _mapping(self.results.get("metrics")).get("test")
        return _mapping(_mapping(test).get("combined_model"))

    @property
    def thresholds(self) -> dict[str, Any]:
        """From which probability its test called each finding present; empty without a test."""
        test = _mapping(_mapping(self.results.get("metrics")).get("test"))
        rows = _mapping(test.get("per_finding"))
        return {finding: _mapping(row).get("threshold") for finding, row in rows.items()}

    @property
    def findings(self) -> tuple[str, ...] | None:
        """Those of its data, in their order."""
        positives = _mapping(_mapping(self.results.get("data")).get("positives"))
        return tuple(_mapping(positives.get("train"))) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
