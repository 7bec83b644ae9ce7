"""Ctrl-C and SIGTERM: every rank stops after the same step, with a checkpoint."""

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
from lightning.pytorch.callbacks import Checkpoint

from xray_lightning.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from xray_lightning.training.launch import STOP_FILE, Failure, interrupted
from xray_lightning.training.strategies import World, end

STOP_FILE_SECONDS = 0.5  # how often it is looked for

_EXIT_CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


class Interruption(Checkpoint):  # so that Lightning calls it last, after the other checkpoints
    """Turns signals into an orderly end.

    During fit a signal is noted, agreed on by all ranks after each step, and answered with a
    checkpoint; one that comes in validation waits for its end, so that no epoch is half judged.
    At any other time it ends the run where it stands. A second signal ends the process at once.
    A wish that the process which started the ranks has left as a file counts as its signal.

    Args:
        folder: the run's, where a wish to stop may lie as a file.
        checkpoint: where to save; None, also later on, for not at all.
        check: raises where the state is not worth saving.
    """

    def __init__(
        self,
        folder: Path,
        *,
        checkpoint: Path | None,
        world: World,
        check: Callable[[Trainer], None] = lambda trainer: None,
    ) -> None:
        self._folder, self._stop_file = folder, folder / STOP_FILE
        self.checkpoint = checkpoint
        self._world = world
        self._check = check
        self._wanted = 0  # the exit code that a signal asks for
        self._deferring = False
        self._group: Any = None
        self._watch: Thread | None = None

    def install(self) -> None:
        """Take over SIGINT and SIGTERM; only the main thread may."""
        for number in _EXIT_CODES:
            signal.signal(number, self._on_signal)
        if self._watch is None and self._world.launcher != "none" and self._world.rank == 0:
            self._watch = Thread(target=self._watch_stop_file, daemon=True)
            self._watch.start()

    def _watch_stop_file(self) -> None:
        numbers = {exit_code: number for number, exit_code in _EXIT_CODES.items()}
        while True:
            sleep(STOP_FILE_SECONDS)
            with suppress(OSError, ValueError):  # not there, or not written to its end
                os.kill(os.getpid(), numbers[int(self._stop_file.read_text())])
                return

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        exit_code = _EXIT_CODES[signal.Signals(number)]
        if self._wanted and self._world.size == 1:
            Failure.of(interrupted(self._wanted), self._world).record(self._folder)
            os._exit(self._wanted)
        if self._wanted:
            end(self._world, self._wanted)
        self._wanted = exit_code
        if not self._deferring:
            raise interrupted(exit_code)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferring = True
        if trainer.world_size > 1 and self._group is None:
            # On Gloo also under CUDA: asking the GPU after each step would stall it.
            self._group = dist.new_group(backend="gloo")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.install()  # Lightning has just put its own handler in place
        # Lightning 2.6 asks rank 0 after each step, and waits for the device, whether its own
        # handler saw a SIGTERM; with ours in place it never did.
        loop: Any = trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            loop._broadcast_sigterm_tensor = lambda: None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.install()

    on_test_start = on_validation_start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferring = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        # After an epoch's last step come its validation and checkpoints: see on_train_epoch_end.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._stop_if_wanted(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_wanted(trainer)

    def _stop_if_wanted(self, trainer: Trainer) -> None:
        exit_code = self._agreed()
        if exit_code:
            if self.checkpoint is not None:
                self._check(trainer)
                trainer.save_checkpoint(self.checkpoint)
            raise interrupted(exit_code)

    def _agreed(self) -> int:
        """The exit code that any rank was asked for, the same on every rank; 0 to go on."""
        if self._group is None:
            return self._wanted
        wanted = torch.tensor(self._wanted)
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX, group=self._group)
        return int(wanted)
