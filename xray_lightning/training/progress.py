"""What a person sees while a run works: a live bar on a terminal, lines in a log."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xray_lightning.training.throughput import Throughput

log = logging.getLogger(__name__)

QUIET_SECONDS = 2.0  # shorter work shows nothing


def on_terminal() -> bool:
    """Whether a live display would be seen by a person."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def display(title: str, items: int) -> Iterator[Callable[[int], None]]:
    """Progress of work over so many items: a bar on a terminal, two lines in a log.

    Nothing at all is shown for work that ends within two seconds.
    """
    start = perf_counter()
    shown = False
    done = 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal(),
    )
    task = bar.add_task(title, total=items, rate="")

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        seconds = perf_counter() - start
        if seconds > QUIET_SECONDS:
            if not shown:
                shown = True
                log.info("%s: %d ...", title, items)
                bar.start()
            bar.update(task, completed=done, rate=f"{done / seconds:.0f} images/s")

    try:
        yield advance
    finally:
        bar.stop()
    seconds = perf_counter() - start
    if shown:
        log.info("%s: %d in %.1f s, %.0f images/s", title, done, seconds, done / seconds)


class ImagesBar(RichProgressBar):
    """Lightning's bar with images/s over all ranks in place of the version number."""

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=False)
        self._throughput = throughput

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        rate = self._throughput.images_per_second
        if rate is not None:
            items["images/s"] = f"{rate:.0f}"
        return items


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
            "epoch %d/%d  train loss %.4f  val loss %.4f  val AUROC %.3f  lr %.2g  "
            "%.0f images/s  %s left",
            row["epoch"] + 1,
            epochs,
            row["train_loss"],
            row["val_loss"],
            row["val_auroc_macro"],
            row["lr"],
            self._throughput.images_per_second or 0.0,
            f"{int(left) // 60}:{int(left) % 60:02d}",
        )
