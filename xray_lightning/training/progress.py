"""What a person sees while a model trains: a live bar on a terminal, and a line an epoch."""

import logging
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import Progress

from xray_lightning.progress import live_bar
from xray_lightning.training.throughput import Throughput

log = logging.getLogger(__name__)


class ImagesBar(Callback):
    """One live line: the epoch, the run's steps, images/s over all ranks, and the time left.

    Lightning's own bars take several lines here, leave pieces behind when they stop, and count
    the time that is left of an epoch alone.
    """

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self._bar: Progress | None = None

    def _open(self, title: str, *, steps: int | None, done: int = 0) -> None:
        self._close()
        self._bar = live_bar()
        self._bar.add_task(title, total=steps, completed=done, rate="")
        self._bar.start()
        # A second Ctrl-C ends the process at once; the cursor must be there then.
        self._bar.console.show_cursor(True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _update(self, **changes: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], **changes)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        done = trainer.current_epoch * steps + trainer.fit_loop.epoch_loop.batch_idx + 1
        total = epochs * steps if epochs > 0 else None
        self._open(_epoch(trainer), steps=total, done=max(0, done))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(description=_epoch(trainer))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        steps = int(trainer.num_training_batches)
        rate = self._throughput.images_per_second or 0.0
        self._update(
            completed=trainer.current_epoch * steps + batch_idx + 1, rate=f"{rate:.0f} images/s"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validating", steps=sum(map(int, trainer.num_val_batches)))
        else:
            self._update(description=f"{_epoch(trainer)}, validating")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._step()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", steps=sum(map(int, trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self._step()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _step(self) -> None:
        if self._bar is not None:
            rate = (self._bar.tasks[0].speed or 0.0) * self._throughput.batch_size
            self._update(advance=1, rate=f"{rate:.0f} images/s" if rate else "")


def _epoch(trainer: Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


class EpochLines(Callback):
    """One line an epoch, with images/s and the time left."""

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self._first_epoch: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_epoch = trainer.current_epoch
        self._start = perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self._throughput.history[-1]
        epochs = trainer.max_epochs or 0
        done = trainer.current_epoch + 1 - (self._first_epoch or 0)
        left = (epochs - trainer.current_epoch - 1) * (perf_counter() - self._start) / done
        log.info(
            "epoch %d/%d  loss %.4f  val %.4f, AUROC %.3f  lr %.2g  %.0f images/s  %s left",
            row["epoch"] + 1,
            epochs,
            row["train_loss"],
            row["val_loss"],
            row["val_auroc_macro"],
            row["lr"],
            self._throughput.images_per_second or 0.0,
            f"{int(left) // 60}:{int(left) % 60:02d}",
        )
