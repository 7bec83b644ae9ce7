"""What TensorBoard shows beside the scalars: a grid of inputs, and the run's hyper-parameters."""

import logging
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from xray_lightning.data.batches import Batch
from xray_lightning.findings import FINDINGS, decode

log = logging.getLogger(__name__)

GRID_IMAGES = 16


def tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The trainer's TensorBoard logger, if it has one."""
    found = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return found[0] if found else None


class InputGrid(Callback):
    """The first training batch as images with their findings: what the model is really given.

    It is drawn beside the training: matplotlib takes longer than many steps.
    """

    def __init__(self) -> None:
        self._drawing: Thread | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            board = tensorboard(trainer)
            if board is not None:
                first = batch._replace(
                    images=batch.images[:GRID_IMAGES].cpu(),
                    targets=batch.targets[:GRID_IMAGES].cpu(),
                )
                writer = board.experiment  # opened here: the first one to ask opens it
                self._drawing = Thread(
                    target=_add_inputs, args=(writer, first, _names(pl_module)), name="inputs"
                )
                self._drawing.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._wait()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._wait()

    def _wait(self) -> None:
        if self._drawing is not None:
            self._drawing.join()
            self._drawing = None


def _names(module: LightningModule) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(module, "findings", FINDINGS)
    return names


def _add_inputs(writer: Any, batch: Batch, findings: Sequence[str]) -> None:
    try:
        writer.add_figure("inputs", input_figure(batch, findings), global_step=0)
    except OSError as error:
        log.warning("the inputs are not drawn: %s", error)


def input_figure(batch: Batch, findings: Sequence[str] = FINDINGS) -> Any:
    """A matplotlib figure of a batch's first images, each under its findings."""
    from matplotlib.figure import Figure

    images = batch.images[:GRID_IMAGES, 0].cpu().numpy()
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 2.4, rows * 2.75), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, target in zip(axes, images, batch.targets.cpu(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        names = decode(target.tolist(), findings).replace("_", " ").split("|")
        shown = names if len(names) <= 3 else [*names[:2], f"and {len(names) - 2} more"]
        axis.set_title("\n".join(shown), fontsize=8)
    return figure


def log_hyperparameters(
    trainer: Trainer, *, config: Mapping[str, Any], metrics: Mapping[str, float | None]
) -> None:
    """Put the run's choices beside its final metrics, for TensorBoard's HPARAMS tab."""
    board = tensorboard(trainer)
    if board is not None and trainer.is_global_zero:
        known = {f"test/{key}": value for key, value in metrics.items() if value is not None}
        board.log_hyperparams(dict(config), known)
        board.save()
