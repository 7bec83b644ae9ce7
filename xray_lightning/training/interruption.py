"""Interruption of a run by signal or time limit: all ranks save and stop after the same step."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import sleep
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn

from xray_lightning.errors import EXIT_INTERRUPTED, EXIT_WARNED, STOPPED
from xray_lightning.training.callbacks import LastCheckpoint
from xray_lightning.training.launch import (
    SIGNALS,
    STOP_FILE,
    Failure,
    asked_to_stop,
    interrupted,
)
from xray_lightning.training.slurm import AWAITED_SECONDS, SCONTROL_SECONDS
from xray_lightning.training.strategies import World, end

STOP_FILE_SECONDS = 0.5  # how often a thread looks for the stop file, or for a failure
FAILURE_SECONDS = 15.0  # how long a rank may go on after another one has recorded a failure
TIME_IS_UP = 1  # below every signal's exit code: ranks take the maximum, so a signal has priority


class FitClock(Timer):
    """Timer of `trainer.max_time`, over all parts of a resumed fit, that does not stop the fit.

    Lightning's Timer ends the current epoch as if it were complete, so that a run resumed from
    there would skip its rest. Here `Interruption` reads the clock, and the ranks agree on this
    stop as on any other.
    """

    @property
    def state_key(self) -> str:
        return Timer.__qualname__

    @property
    def is_up(self) -> bool:
        left = self.time_remaining()
        return left is not None and left <= 0

    def _check_time_remaining(self, trainer: Trainer) -> None:
        """Do nothing: `Interruption` reads the clock."""


class Interruption(Checkpoint):  # so that Lightning calls it last, after the other checkpoints
    """Turns signals, and the time limit of a fit, into an orderly stop.

    Within the batch loops a signal is only noted; after each batch the ranks agree on whether to
    stop. A fit then saves a checkpoint to resume from: the state after the training step or, if
    stopped within a validation, the state before that validation. Outside of the batch loops, as
    while a cache is built, a signal ends the run at once. A second signal ends the process at
    once, except those that a cluster sends after its warning (SIGUSR1). A stop file written by the
    launching process counts as the signal that it names. At its time limit a fit ends with a
    validation, and the run goes on to its test.

    Args:
        folder: the run folder, in which a stop file may appear.
        checkpoint: where to save; None, which may be set later, for no saving.
        check: called before a save; raises if the state must not be saved.
        clock: the fit's time limit; None, which may be set later, for no limit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        checkpoint: Path | None,
        world: World,
        check: Callable[[Trainer], None] = lambda trainer: None,
        clock: FitClock | None = None,
    ) -> None:
        self._folder, self._stop_file = folder, folder / STOP_FILE
        self.checkpoint = checkpoint
        self.clock = clock
        self._world = world
        self._check = check
        # Exit code of the signal received, or 0; an earlier one's error may have been swallowed.
        self._wanted = asked_to_stop[0] if asked_to_stop else 0
        self._deferring = False
        self._group: Any = None
        self._watch: Thread | None = None

    def install(self) -> None:
        """Handle SIGINT, SIGTERM and SIGUSR1 from now on; call it in the main thread."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        watch = self._watch_failures if self._world.launcher == "slurm" else self._watch_stop_file
        leads = self._world.rank == 0 or self._world.launcher == "slurm"
        if self._watch is None and self._world.launcher != "none" and leads:
            self._watch = Thread(target=watch, daemon=True)
            self._watch.start()

    def _watch_stop_file(self) -> None:
        numbers = {exit_code: number for number, exit_code in SIGNALS.items()}
        while True:
            sleep(STOP_FILE_SECONDS)
            with suppress(OSError, ValueError):  # no such file, or not yet complete
                os.kill(os.getpid(), numbers[int(self._stop_file.read_text())])
                return

    def _watch_failures(self) -> None:
        """End this task after another one has failed: by default srun leaves the others running."""
        while True:
            sleep(STOP_FILE_SECONDS)
            failure = Failure.read(self._folder)
            if failure is not None:
                sleep(FAILURE_SECONDS)  # this rank may still end in an orderly way
                if failure.exit_code in STOPPED:  # the other one may be requeueing the job
                    sleep(AWAITED_SECONDS + SCONTROL_SECONDS)
                os._exit(failure.exit_code)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        exit_code = SIGNALS[signal.Signals(number)]
        if self._wanted == EXIT_WARNED and exit_code != EXIT_INTERRUPTED:
            return  # the cluster ends the job, as it has warned; the checkpoint is being written
        if self._wanted and self._world.size == 1:
            Failure.of(interrupted(self._wanted), self._world).record(self._folder)
            os._exit(self._wanted)
        if self._wanted:
            end(self._world, self._wanted)
        self._wanted = exit_code
        if not self._deferring:
            raise interrupted(exit_code)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and self._group is None:
            # On Gloo also under CUDA: asking the GPU after each step would stall it.
            self._group = dist.new_group(backend="gloo")

    def leave(self) -> None:
        """Release the process group once all ranks are done: if it lived until the interpreter
        exits, its threads might call into Python too late and abort the process."""
        self._group = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferring = True
        if self._agreed() == TIME_IS_UP:  # a resumed fit that has no time left
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.install()  # Lightning has just put its own handler in place
        # After each step Lightning 2.6 broadcasts from rank 0 whether its own handler has seen a
        # SIGTERM, and waits for the device. With our handler in place it never has.
        loop: Any = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.install()
        self._deferring = True

    on_test_start = on_validation_start

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # a checkpoint does not hold gradients
            return
        # After an epoch's last step come its validation and checkpoints: see on_train_epoch_end.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._stop_if_wanted(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.should_stop:
            self._stop_if_wanted(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        exit_code = self._agreed()
        if exit_code > TIME_IS_UP:  # at the time limit, finish: the best epoch is needed
            if trainer.state.fn == TrainerFn.FITTING:
                _before_validation(trainer)
                self._save(trainer)
            raise interrupted(exit_code)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferring = False
        exit_code = self._agreed()
        if exit_code > TIME_IS_UP:
            raise interrupted(exit_code)

    on_test_end = on_fit_end

    def _stop_if_wanted(self, trainer: Trainer) -> None:
        exit_code = self._agreed()
        if exit_code:
            self._save(trainer)
        if exit_code == TIME_IS_UP:
            for one in trainer.checkpoint_callbacks:
                if isinstance(one, LastCheckpoint):
                    one.keep()  # this step's state: the epoch that ends now may be incomplete
            trainer.should_stop = True
        elif exit_code:
            raise interrupted(exit_code)

    def _save(self, trainer: Trainer) -> None:
        if self.checkpoint is not None:
            self._check(trainer)
            trainer.save_checkpoint(self.checkpoint)

    def _agreed(self) -> int:
        """The highest stop code of all ranks, the same on each; 0 to go on. A collective."""
        wanted = self._wanted
        if not wanted and self.clock is not None and self.clock.is_up:
            wanted = TIME_IS_UP
        if self._group is None:
            return wanted
        agreed = torch.tensor(wanted)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self._group)
        return int(agreed)


def _before_validation(trainer: Trainer) -> None:
    """Reset a validation's progress to its first batch, where a resumed fit will start it again.

    The scores so far are not part of a checkpoint.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for part, before in (
        (progress.total, progress.total.ready - progress.current.ready),
        (progress.current, 0),
    ):
        part.ready = part.started = before + 1
        part.processed = part.completed = before
