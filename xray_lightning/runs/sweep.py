"""Sweep folder: sweep.json, what was asked for, and the trials that its run folders hold.

A trial is the run folder `<number>_<name>`. Whether it is done stands in its own results.json and
nowhere else, so that a kill can leave no two answers. `Claims` tells several workers apart.
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
# Of a job's overrides: how the sweep conducts it, not what the trial is.
CONDUCT = ("resume", "callbacks.pruning")


@dataclass(frozen=True)
class Sweep:
    """What was asked for, as sweep.json keeps it.

    Attributes:
        trials: how many.
        fixed: the overrides that all of them share.
        space: what each parameter may be, as it was written.
        distributions: the same as Optuna's JSON; empty for a grid.
        study, storage: of Optuna; None for a grid.
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
        """The folder's; None where it is no sweep's, or cannot be read."""
        try:
            content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
            known = {field.name: content[field.name] for field in fields(cls)}
            return cls(**known | {"fixed": tuple(known["fixed"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keep it in the folder.

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
        """Refuse a folder in which other trials were asked for than these.

        Raises:
            UserError: the first difference, but for where and how the trials run.
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
    """How a trial's run has ended.

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
        except (KeyError, TypeError, AttributeError):  # somebody else's file
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
    """What a run was started with; None where its folder does not say, or it is damaged."""
    try:
        text = (folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")
        overrides = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        return None
    return tuple(one for one in overrides if not by_key([one]).keys() & set(CONDUCT))


class Claims:
    """Locks of the trials that this process works on, which the kernel drops when it ends.

    So a trial that is neither done nor claimed is one whose worker was killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LOCKS
        self._held: dict[str, Any] = {}

    def take(self, name: str) -> bool:
        """Whether it is ours now."""
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
        """Wait until no other worker is choosing its next trial, and keep the others waiting."""
        from filelock import FileLock

        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "choosing"):
            yield
