"""Optuna study of a run: its storage, and the callback that reports to it and prunes a trial."""

import logging
import os
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from xray_lightning.errors import UserError, one_line

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

log = logging.getLogger(__name__)

MONITOR = "val/auroc_macro"
ATTEMPTS = 3  # to open a database


def open_storage(place: str) -> "BaseStorage":
    """The storage of a study.

    Args:
        place: URL of a database (`sqlite:///study.db`, `postgresql://...`), or a journal's path.

    Raises:
        UserError: the database cannot be reached, or a driver is missing.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in place:
        lock: Any = JournalLock(Path(place))
        return optuna.storages.JournalStorage(JournalFileBackend(place, lock))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return optuna.storages.RDBStorage(place)
        except Exception as error:  # whatever SQLAlchemy or a driver raises
            if attempt < ATTEMPTS and isinstance(error, _others_begin_it_too()):
                sleep(attempt)
                continue
            name = place.partition("://")[0]
            raise UserError(
                f"hydra.sweeper.storage: {name} cannot be opened: {one_line(error)[:300]}"
            ) from error
    raise RuntimeError("the last attempt returns or raises")


def _others_begin_it_too() -> tuple[type[Exception], ...]:
    """The errors of a database whose tables another worker is creating at the same moment."""
    from sqlalchemy import exc

    return exc.IntegrityError, exc.OperationalError, exc.ProgrammingError


class JournalLock:
    """Journal lock that the kernel releases when its process is killed; drops a cut-off line.

    Optuna's own lock is a file that outlives a killed process: others wait for half a minute. And
    a line appended to one that a kill has cut off could not be read.
    """

    def __init__(self, journal: Path) -> None:
        from filelock import FileLock

        self._journal = journal
        self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        drop_cut_line(self._journal)
        return True

    def release(self) -> None:
        self._lock.release()


def drop_cut_line(path: Path) -> None:
    """Truncate a file after its last complete line."""
    with path.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if not end:
            return
        stream.seek(end - 1)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


class TrialPruning(Callback):
    """Reports the validation macro AUROC to Optuna after each epoch, and stops a pruned trial.

    All ranks stop after the same epoch. `reason` then says why; the run's record has it too.

    Args:
        storage: see `open_storage`.
        study: its name.
        trial: the trial's number.
        pruner: decides whether the trial is stopped.
    """

    def __init__(self, *, storage: str, study: str, trial: int, pruner: "BasePruner") -> None:
        self._storage, self._study, self._number = storage, study, trial
        self._pruner = pruner
        self._trial: Any = None
        self.reason: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        import optuna

        # The sampler is never used: the trial already has its parameters.
        study = optuna.load_study(
            study_name=self._study,
            storage=open_storage(self._storage),
            sampler=optuna.samplers.RandomSampler(),
            pruner=self._pruner,
        )
        frozen = study.get_trials(deepcopy=False)[self._number]
        if frozen.state.is_finished():
            log.info("trial %d is done: its epochs are not told again", self._number)
        else:
            self._trial = optuna.trial.Trial(study, frozen._trial_id)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(MONITOR)
        prune = False
        if self._trial is not None and value is not None and value.isfinite():
            self._report(trainer.current_epoch, float(value))
            prune = self._trial.should_prune()
        if trainer.strategy.broadcast(prune):
            name = type(self._pruner).__name__
            self.reason = (
                f"pruned by Optuna's {name} after epoch {trainer.current_epoch + 1} of "
                f"{trainer.max_epochs}"
            )
            if value is not None:
                self.reason += f", at a validation macro AUROC of {float(value):.3f}"
            trainer.should_stop = True

    def _report(self, epoch: int, value: float) -> None:
        known = self._trial.storage.get_trial(self._trial._trial_id).intermediate_values
        if epoch not in known:  # a resumed run does some epochs again
            self._trial.report(value, step=epoch)
