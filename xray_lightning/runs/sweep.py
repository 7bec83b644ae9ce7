"""Sweep folder: sweep.json, the sweep's request, and a run folder for each trial.

A trial is the run folder `<number>_<name>`. Its status is stored in its own results.json alone, so
that a killed process cannot leave contradicting records. With `Claims`, no two workers run the same
trial.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from xray_lightning.errors import UserError, one_line
from xray_lightning.files import write_atomically
from xray_lightning.runs.results_json import FREE_KEYS, RunRecord, differences, leaving_out

FILE_NAME = "sweep.json"
JOURNAL = "study.journal"  # Optuna's, where no database is named
LOCKS = ".locks"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
PRUNED = "pruned"  # the status of a run that Optuna has ended early
FINAL = ("finished", "failed", "skipped", PRUNED)
# Overrides of a job by which the sweep controls it; they do not define the trial.
CONDUCT = ("resume", "callbacks.pruning")


@dataclass(frozen=True)
class Sweep:
    """The request of a sweep, as stored in sweep.json.

    Attributes:
        trials: number of trials.
        fixed: the overrides that all of them share.
        space: the values of each parameter, as the user wrote them.
        distributions: the same as Optuna's JSON; empty for a grid.
        study, storage: Optuna's study name and database; None for a grid.
    """

    kind: Literal["optuna", "grid"]
    command: str
    trials: int
    fixed: tuple[str, ...]
    space: dict[str, str]
    distributions: dict[str, str]
    study: str | None = None
    storage: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "Sweep | None":
        """Read a folder's sweep.json; None if it is missing or cannot be read."""
        try:
            content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
            known = {field.name: content[field.name] for field in fields(cls)}
            return cls(**known | {"fixed": tuple(known["fixed"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write sweep.json into the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"sweep folder {folder} cannot be written ({one_line(error)}); choose another with "
                "hydra.sweep.dir=FOLDER"
            ) from error

    def refuse_another(self, folder: Path) -> None:
        """Refuse a folder that holds another sweep.

        Raises:
            UserError: kind, space or fixed overrides differ, other than in `FREE_KEYS`.
        """
        earlier = Sweep.read(folder)
        if earlier is None:
            return
        was, now = (
            {"kind": one.kind} | one.space | leaving_out(by_key(one.fixed), FREE_KEYS)
            for one in (earlier, self)
        )
        if changed := differences(was, now):
            raise UserError(
                f"{folder} holds another sweep ({'; '.join(changed)}); undo the change to go on "
                "with it, or give this one a folder of its own: hydra.sweep.dir=FOLDER"
            )


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides as a dict: {"optimizer.lr": "0.1"} of ["+optimizer.lr=0.1"]."""
    pairs = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs}


@dataclass(frozen=True)
class Outcome:
    """The state of a trial's run.

    Attributes:
        status: that of its results.json; "absent" without one.
        value: the validation macro AUROC of its best epoch.
        reason: why it has not finished, or has no value.
    """

    status: str
    value: float | None
    reason: str | None
    seconds: float | None

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        record = RunRecord.load(folder)
        try:
            return cls._of(record.content) if record is not None else _ABSENT
        except (KeyError, TypeError, AttributeError):  # not a run's results.json
            return _ABSENT

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> "Outcome":
        history = content["history"]
        values = [row["val_auroc_macro"] for row in history if row["val_auroc_macro"] is not None]
        reason = content["reason"]
        if content["status"] == "finished" and not values:
            reason = (
                "no epoch has a validation AUROC: no finding is on some validation images and not "
                "on others"
                if history
                else "it was not trained"
            )
        best = max(values, default=None)
        return cls(content["status"], best, reason, content["timing"]["total"])

    @property
    def final(self) -> bool:
        return self.status in FINAL


_ABSENT = Outcome("absent", None, "it has left no results.json", None)


@dataclass(frozen=True)
class Trial:
    """A run of a sweep, and the overrides that it was given."""

    number: int
    folder: Path
    given: tuple[str, ...]
    outcome: Outcome

    @property
    def overrides(self) -> dict[str, str]:
        return by_key(self.given)


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a sweep folder, by their numbers."""
    trials = []
    for path in folder.glob("[0-9]*_*"):
        number = path.name.partition("_")[0]
        given = overrides_of(path)
        if number.isdecimal() and given is not None:
            trials.append(Trial(int(number), path, given, Outcome.of(path)))
    return sorted(trials, key=lambda trial: trial.number)


def overrides_of(folder: Path) -> tuple[str, ...] | None:
    """The overrides of a run, without `CONDUCT`; None if their file is missing or damaged."""
    try:
        text = (folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
        overrides = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        return None
    return tuple(one for one in overrides if not by_key([one]).keys() & set(CONDUCT))


class Claims:
    """File locks on the trials that this process works on; the kernel releases them when it ends.

    So a started trial that is neither done nor locked is one whose worker was killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LOCKS
        self._held: dict[str, Any] = {}

    def take(self, name: str) -> bool:
        """Try to lock a trial; whether this process now holds it."""
        from filelock import FileLock, Timeout  # `--help` should not wait for it

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = self._held.get(name) or FileLock(self._folder / name, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        self._held[name] = lock
        return True

    def release(self, name: str) -> None:
        self._held.pop(name).release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock under which one worker at a time chooses its next trial."""
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "choosing"):
            yield
