"""Averaged weights (EMA), which are validated, kept as best, tested and exported."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from torch import Tensor

from xray_lightning.errors import UserError
from xray_lightning.models.classifier import Classifier


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights over all steps, and of batch-norm statistics.

    Step n uses the decay min(decay, (1 + n) / (10 + n)), as TensorFlow's ExponentialMovingAverage
    does, so that a short run's average does not stay near the initial weights. Lightning's callback
    does the averaging, and saves both the averaged and the current weights in `last.ckpt`. It does
    not do so in `best.ckpt`, which has no callback state: there the classifier saves the average.

    Args:
        decay: share of the average that a late step keeps.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        if not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} must be at least 0 and below 1")
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay
        self._swapped = False  # in a validation, module and average hold each other's weights

    def _average(self, averaged: Sequence[Tensor], now: Sequence[Tensor], _: object) -> None:
        steps = self._latest_update_step
        kept = min(self.decay, (1 + steps) / (10 + steps))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(now), 1 - kept)
        else:  # counters
            torch._foreach_copy_(list(averaged), list(now))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and isinstance(pl_module, Classifier):
            pl_module.averaged_state = self.averaged_state

    def averaged_state(self) -> dict[str, Tensor]:
        """The classifier's state dict with averaged values."""
        if self._average_model is None:
            raise RuntimeError("there is an average during fit alone")
        state: dict[str, Tensor] = self._average_model.module.state_dict()
        return state

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The average was made before the module was moved to its device. Its counter stays on the
        # CPU: it is read in every step, which must not wait for a GPU.
        if self._average_model is not None:
            self._average_model.to(pl_module.device)
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # From now on, the weights of a checkpoint are validated or tested as they are.
        self._average_model = None
        if isinstance(pl_module, Classifier):
            pl_module.averaged_state = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is None:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            one, other = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = other, one

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def refuse_other_averaging(checkpoint: dict[str, Any], callbacks: Sequence[object]) -> None:
    """Refuse to resume a run with weight averaging without it, or the reverse.

    Raises:
        UserError: only one of the checkpoint and the callbacks has averaging.
    """
    was = "current_model_state" in checkpoint
    now = any(isinstance(callback, AveragedWeights) for callback in callbacks)
    if was != now:
        told = "averaged its weights" if was else "did not average its weights"
        raise UserError(
            f"the run that is to go on {told}: {'give' if was else 'leave out'} callbacks=ema"
        )
