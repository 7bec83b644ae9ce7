"""What a run did epoch by epoch, and how fast: history and images per second."""

import math
import resource
from collections import deque
from time import monotonic, perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from xray_lightning.data.batches import Batch
from xray_lightning.errors import RunFailedError
from xray_lightning.models.classifier import Classifier

WARMUP_STEPS = 5  # left out of the steady rate: allocations, autotuning


class Throughput(Callback):
    """Clocks of the fit, the history rows of results.json, and the rates in TensorBoard.

    `fit_images_per_second` counts everything inside fit, validation and checkpoints too;
    `steady_images_per_second` the training steps alone, after the first few: the wait for each
    batch, the step, and all that Lightning does around it. Nothing here waits for a GPU but at
    the end of the warm-up and of an epoch.
    """

    def __init__(self, *, batch_size: int) -> None:
        self.batch_size = batch_size  # over all ranks
        self.history: list[dict[str, Any]] = []
        self.fit_seconds = 0.0
        self.first_step_at: float | None = None  # in time.monotonic(), as the run's start
        self._images = 0
        self._steady_images = 0
        self._steady_seconds = 0.0
        self._wait_seconds = 0.0
        self._steps = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=50)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start = perf_counter()
        self._start_epoch()  # a run resumed in mid-epoch gets no on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._epoch_start = self._mark = perf_counter()
        self._epoch_images = self._epoch_steps = 0
        self._train_seconds = self._epoch_wait = 0.0

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
        self._steps += 1
        if pl_module.device.type == "cuda" and (
            self._steps == WARMUP_STEPS or batch_idx + 1 >= trainer.num_training_batches
        ):
            torch.cuda.synchronize()
        now = perf_counter()
        images = round(trainer.world_size / batch.scale)  # the global batch's size
        seconds = now - self._mark
        self._images += images
        self._epoch_images += images
        self._epoch_steps += 1
        self._epoch_wait += self._wait
        self._train_seconds += seconds
        if self._steps > WARMUP_STEPS:
            self._steady_images += images
            self._steady_seconds += seconds
            self._wait_seconds += self._wait
        self._recent.append((seconds, images))
        self._mark = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier):
            raise TypeError("the history is of a Classifier")
        now = perf_counter()
        metrics = trainer.callback_metrics
        self.history.append(
            {
                "epoch": trainer.current_epoch,
                "train_loss": float(pl_module.mean_train_loss()),
                "val_loss": float(metrics.get("val/loss", math.nan)),
                "val_auroc_macro": float(metrics.get("val/auroc_macro", math.nan)),
                "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
                "seconds": now - self._epoch_start,
            }
        )
        self.fit_seconds = now - self._fit_start
        for logger in trainer.loggers:
            logger.log_metrics(self._epoch_rates(), step=trainer.global_step)

    def _epoch_rates(self) -> dict[str, float]:
        seconds = self._train_seconds or math.nan
        memory = {f"memory/{key}_bytes": peak for key, peak in peak_memory().items() if peak}
        return {
            "train/images_per_second": self._epoch_images / seconds,
            "train/step_seconds": seconds / max(1, self._epoch_steps),
            "train/data_wait_fraction": self._epoch_wait / seconds,
            **memory,
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fit_seconds = perf_counter() - self._fit_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "_fit_start") and trainer.training:
            self.fit_seconds = perf_counter() - self._fit_start

    @property
    def images_per_second(self) -> float | None:
        """Over the last few steps, for the progress bar."""
        seconds = sum(seconds for seconds, _ in self._recent)
        return sum(images for _, images in self._recent) / seconds if seconds else None

    def timing(self) -> dict[str, float | None]:
        """The rates of results.json's `timing` block."""
        steady = self._steady_seconds
        steps = self._steps - WARMUP_STEPS
        return {
            "fit": self.fit_seconds or None,
            "fit_images_per_second": self._images / self.fit_seconds if self.fit_seconds else None,
            "steady_images_per_second": self._steady_images / steady if steady else None,
            "step_seconds": steady / steps if steady else None,
            "data_wait_fraction": self._wait_seconds / steady if steady else None,
        }


def peak_memory() -> dict[str, int | None]:
    """The most memory that this process has had, in bytes: of the host, and of CUDA's tensors."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"host": host, "device": device}


class FiniteLoss(Callback):
    """Ends the run at the step whose loss is no number, before a checkpoint can hold it.

    Args:
        patience: steps in a row that may go wrong; fp16 with loss scaling skips such steps, and
            only a long run of them is a failure.
    """

    CUDA_STEPS = 20  # on a GPU the loss is looked at only so often: each look waits for the device

    def __init__(self, *, patience: int = 0) -> None:
        self.patience = patience
        self.skipped = 0
        self._bad: list[torch.Tensor] = []  # of the steps up to this one, not yet looked at
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
        """Look at the losses of the last steps.

        Raises:
            RunFailedError: too many in a row are no finite numbers.
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
