"""Callbacks: throughput and history, TensorBoard, progress, and checkpoints."""

import logging
import math
import resource
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import Progress

from xray_lightning.data.loader import Batch
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.findings import FINDINGS, decode
from xray_lightning.models.checkpoint import write_checkpoint
from xray_lightning.models.classifier import Classifier
from xray_lightning.progress import live_bar
from xray_lightning.terminal import readable
from xray_lightning.training.loggers import RunLogger

log = logging.getLogger(__name__)

WARMUP_STEPS = 5  # left out of the steady rate: allocations, autotuning
GRID_IMAGES = 16

Array = npt.NDArray[Any]


class Throughput(Callback):
    """Timing of the fit: history rows of results.json, rates for the loggers, a log line per epoch.

    `fit_images_per_second` is over the whole fit, including validation and checkpoints.
    `steady_images_per_second` is over the training steps after the first `WARMUP_STEPS`: the wait
    for each batch, the step, and Lightning's own work around it. CUDA is synchronised only at the
    end of the warm-up and of each epoch.
    """

    def __init__(self, *, batch_size: int, title: str = "") -> None:
        self.batch_size = batch_size  # over all ranks
        self._title = title  # prefix of its log lines
        self.history: list[dict[str, Any]] = []
        self.fit_seconds = 0.0
        self.first_step_at: float | None = None  # time.monotonic(), like `Job.started`
        self._epoch_trained = 0  # images of this epoch, including those before a resume
        # Each holds: steps, images, seconds, and the seconds of these spent waiting for data.
        self._all, self._epoch, self._steady = np.zeros((3, 4))
        self._recent: deque[tuple[float, int]] = deque(maxlen=50)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start, self._first_epoch = perf_counter(), trainer.current_epoch
        self._start_epoch()  # a run resumed in mid-epoch gets no on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_trained = 0
        self._start_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch_trained": self._epoch_trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch_trained = state_dict["epoch_trained"]

    def _start_epoch(self) -> None:
        self._epoch_start = self._mark = perf_counter()
        self._epoch[:] = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.first_step_at is None:
            self.first_step_at = monotonic()
        self._wait = perf_counter() - self._mark

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if pl_module.device.type == "cuda" and (
            self._all[0] + 1 == WARMUP_STEPS or batch_idx + 1 >= trainer.num_training_batches
        ):
            torch.cuda.synchronize()
        now = perf_counter()
        images = round(trainer.world_size / batch.scale)  # the global batch's size
        seconds = now - self._mark
        step = np.array([1, images, seconds, self._wait])
        self._all += step
        self._epoch += step
        if self._all[0] > WARMUP_STEPS:
            self._steady += step
        self._epoch_trained += images
        self._recent.append((seconds, images))
        self._mark = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier):
            raise TypeError("the history is of a Classifier")
        now = perf_counter()
        metrics = trainer.callback_metrics
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "train_loss": float(pl_module.mean_train_loss()),
            "val_loss": float(metrics.get("val/loss", math.nan)),
            "val_auroc_macro": float(metrics.get("val/auroc_macro", math.nan)),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": now - self._epoch_start,
            "images": self._epoch_trained,
        }
        self.history.append(row)
        self.fit_seconds = now - self._fit_start
        steps, images, seconds, wait = self._epoch.tolist()
        seconds = seconds or math.nan
        rates = {
            "train/images_per_second": images / seconds,
            "train/step_seconds": seconds / max(1, steps),
            "train/data_wait_fraction": wait / seconds,
            **{f"memory/{key}_bytes": peak for key, peak in peak_memory().items() if peak},
        }
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)
        if trainer.is_global_zero:
            done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
            left = (epochs - done) * self.fit_seconds / (done - self._first_epoch)
            log.info(
                "%sepoch %d/%d  loss %.4f  val %.4f, AUROC %.3f  lr %.2g  %.0f images/s  %s left",
                self._title,
                done,
                epochs,
                *(row[key] for key in ("train_loss", "val_loss", "val_auroc_macro", "lr")),
                self.images_per_second or 0.0,
                f"{int(left) // 60}:{int(left) % 60:02d}",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fit_seconds = perf_counter() - self._fit_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "_fit_start") and trainer.training:
            self.fit_seconds = perf_counter() - self._fit_start

    @property
    def images_per_second(self) -> float | None:
        """Rate over the last 50 steps; None before the first step."""
        seconds = sum(seconds for seconds, _ in self._recent)
        return sum(images for _, images in self._recent) / seconds if seconds else None

    def timing(self) -> dict[str, float | None]:
        """The rates of results.json's `timing` block."""
        steps, images, steady, wait = self._steady.tolist()
        all_images, fit = float(self._all[1]), self.fit_seconds
        return {
            "fit": fit or None,
            "fit_images_per_second": all_images / fit if fit else None,
            "steady_images_per_second": images / steady if steady else None,
            "step_seconds": steady / steps if steady else None,
            "data_wait_fraction": wait / steady if steady else None,
        }


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process in bytes: on the host, and in CUDA tensors (or None)."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"host": host, "device": device}


class FiniteLoss(Callback):
    """Ends the run at a step whose loss is not finite, before it can reach a checkpoint.

    Args:
        patience: consecutive steps with such a loss to tolerate: in fp16, loss scaling skips these
            steps, and only a long sequence of them is a failure.
    """

    CUDA_STEPS = 20  # on a GPU, steps between two checks: each check waits for the device

    def __init__(self, *, patience: int = 0) -> None:
        self.patience = patience
        self.skipped = 0
        self._bad: list[torch.Tensor] = []  # a flag for each step since the last check
        self._step = 0
        self._in_a_row = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self._bad.append(~outputs["loss"].detach().isfinite())
        self._step = batch_idx
        last = batch_idx + 1 >= trainer.num_training_batches
        if pl_module.device.type == "cpu" or last or len(self._bad) >= self.CUDA_STEPS:
            self.look(trainer)

    def look(self, trainer: Trainer) -> None:
        """Check the losses of the steps since the last check.

        Raises:
            RunFailedError: more than `patience` consecutive losses are not finite.
        """
        if not self._bad:
            return
        first = self._step - len(self._bad) + 1
        for offset, bad in enumerate(torch.stack(self._bad).tolist()):
            self._in_a_row = self._in_a_row + 1 if bad else 0
            self.skipped += bad
            if self._in_a_row > self.patience:
                raise RunFailedError(
                    f"the loss is not a finite number at epoch {trainer.current_epoch}, step "
                    f"{first + offset}; lower optimizer.lr, or use precision=32-true. "
                    "The checkpoints are from before"
                )
        self._bad.clear()


def figure_places(trainer: Trainer) -> list[Callable[[str, Any], object]]:
    """For each logger that can show figures, the function that adds a named figure to it."""
    places: list[Callable[[str, Any], object]] = []
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            places.append(logger.log_figure)
        elif isinstance(logger, TensorBoardLogger):
            places.append(logger.experiment.add_figure)  # opens the writer, in this thread
    return places


class InputGrid(Callback):
    """The first training batch as a figure: images as loaded, before augmentation, with findings.

    It is drawn in a thread beside the training: matplotlib takes longer than many steps.
    """

    def __init__(self) -> None:
        self._drawing: Thread | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        first = trainer.global_step == 0 and trainer.is_global_zero
        places = figure_places(trainer) if first else []
        if not places:
            return
        images, targets = (
            part[:GRID_IMAGES].cpu().numpy() for part in (batch.images, batch.targets)
        )
        findings: tuple[str, ...] = getattr(pl_module, "findings", FINDINGS)

        def draw() -> None:
            try:
                figure = input_figure(images, targets, findings)
                for add in places:
                    add("inputs", figure)
            except OSError as error:
                log.warning("the inputs are not drawn: %s", error)

        self._drawing = Thread(target=draw, name="inputs")
        self._drawing.start()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._drawing is not None:
            self._drawing.join()
            self._drawing = None

    on_exception = on_train_end


def input_figure(images: Array, targets: Array, findings: Sequence[str] = FINDINGS) -> Any:
    """A matplotlib figure of images (B, 1, S, S), each under its findings, (B, findings)."""
    from matplotlib.figure import Figure

    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 2.4, rows * 2.75), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, target in zip(axes, images[:, 0], targets, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        names = readable(decode(target.tolist(), findings)).split("|")
        shown = names if len(names) <= 3 else [*names[:2], f"and {len(names) - 2} more"]
        axis.set_title("\n".join(shown), fontsize=8)
    return figure


def log_hyperparameters(
    trainer: Trainer, *, config: Mapping[str, Any], metrics: Mapping[str, float | None]
) -> None:
    """Log the final metrics: in TensorBoard's HPARAMS tab together with `config`; in the other
    loggers, which already have the configuration, as metrics of the last step."""
    known = {f"test/{key}": value for key, value in metrics.items() if value is not None}
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, RunLogger):
            logger.log_metrics(known, step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(config), known)
        logger.save()


class ImagesBar(Callback):
    """One live line: the epoch, the run's steps, images/s over all ranks, and the time left.

    Lightning's own bars take several lines here, leave fragments on the terminal when they stop,
    and show only the time left in the current epoch.
    """

    def __init__(self, throughput: Throughput) -> None:
        self._throughput = throughput
        self._bar: Progress | None = None

    def _open(self, title: str, *, steps: int | None, done: int = 0) -> None:
        self._close()
        self._bar = live_bar()
        self._bar.add_task(title, total=steps, completed=done, rate="")
        self._bar.start()
        # A second Ctrl-C exits without restoring the terminal: leave the cursor visible.
        self._bar.console.show_cursor(True)

    def _close(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_train_end = on_test_end = on_exception = _close

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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validating", steps=sum(map(int, trainer.num_val_batches)))
        else:
            self._update(description=f"{_epoch(trainer)}, validating")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", steps=sum(map(int, trainer.num_test_batches)))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self._bar is not None and trainer.state.fn != TrainerFn.FITTING:
            rate = (self._bar.tasks[0].speed or 0.0) * self._throughput.batch_size
            self._update(advance=1, rate=f"{rate:.0f} images/s" if rate else "")

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._close()


def _epoch(trainer: Trainer) -> str:
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves atomically: to a temporary file in the same folder, which is synced and renamed.

    Lightning's own IO writes to the system's temporary folder and moves the file. If that is
    another file system, the move is a copy, and a kill or a full disk during it destroys the
    previous checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))


class LastCheckpoint(Checkpoint):
    """Saves the full training state at the end of an epoch, to resume from.

    An epoch's save is skipped while the previous save's duration is more than the share
    `most_time` of the time since that save began, as with epochs of a second. The first and the
    last epoch are always saved. `Interruption` saves by itself.

    ModelCheckpoint would do, but its state names the folder, so that a moved run folder warns.

    Args:
        path: the file.
        most_time: largest share of the time that saving may take; 1 saves after every epoch.
    """

    def __init__(self, path: str | Path, *, most_time: float = 0.02) -> None:
        if not isinstance(most_time, int | float) or not 0 < most_time <= 1:
            raise UserError(f"callbacks.last.most_time={most_time} must be above 0, at most 1")
        self.path = Path(path)
        self.most_time = most_time
        self._due = 0.0  # time.monotonic() from which the next save is due
        self._kept = False

    def keep(self) -> None:
        """Skip the save at this epoch's end: the file holds a state saved within the epoch."""
        self._kept = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._kept:
            return
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        start = monotonic()
        # Saving is a collective: all ranks follow rank 0's clock.
        if last or trainer.strategy.broadcast(start >= self._due):
            trainer.save_checkpoint(self.path)
            saved = monotonic()
            self._due = saved + (saved - start) * (1 / self.most_time - 1)
