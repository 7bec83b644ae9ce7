"""Checkpoints that are whole or absent, and that fit the run that goes on from them."""

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from xray_lightning.atomic import replacing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.models.checkpoint import BEST, LAST, read_checkpoint
from xray_lightning.training.results import differences

__all__ = [
    "BEST",
    "LAST",
    "AtomicCheckpointIO",
    "LastCheckpoint",
    "check_same",
    "read_checkpoint",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves into a file beside the final one, synced and renamed.

    Lightning's own goes through the temporary folder: from another file system the move is a
    copy, and a kill or a full disk during it destroys the previous checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        final = Path(path)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            for left_by_a_kill in final.parent.glob(f".{final.name}.*"):
                left_by_a_kill.unlink(missing_ok=True)
            with replacing(final) as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
            raise RunFailedError(
                f"checkpoint {final} cannot be written ({error}); the previous one is untouched. "
                "Free some space, or choose another folder with hydra.run.dir"
            ) from error


class LastCheckpoint(Checkpoint):
    """Keeps the full state of a whole epoch, to resume from: the last one, or nearly.

    An epoch of a second is not worth a save of half a second: an epoch's end is left out where
    saving would take more than its share of the time since the last save. The first and the last
    epoch's are always saved. An interruption saves by itself.

    ModelCheckpoint would do, but its state names the folder, and a moved run folder then warns.

    Args:
        path: the file.
        most_time: share of the run's time that saving may take; 1 saves after every epoch.
    """

    def __init__(self, path: str | Path, *, most_time: float = 0.02) -> None:
        if not isinstance(most_time, int | float) or not 0 < most_time <= 1:
            raise UserError(f"callbacks.last.most_time={most_time} must be above 0, at most 1")
        self.path = Path(path)
        self.most_time = most_time
        self._due = 0.0  # in time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        start = monotonic()
        # Saving is a collective: all ranks follow rank 0's clock.
        if last or trainer.strategy.broadcast(start >= self._due):
            trainer.save_checkpoint(self.path)
            saved = monotonic()
            self._due = saved + (saved - start) * (1 / self.most_time - 1)


def check_same(path: Path, *, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was made of other parts.

    Args:
        found, expected: nested plain values; only the keys of `expected` are compared.

    Raises:
        UserError: every difference, as `key: checkpoint -> this run`.
    """
    changed = differences({key: found.get(key) for key in expected}, expected)
    if changed:
        raise UserError(
            f"{path} does not fit this run ({'; '.join(changed)}); give the options that it was "
            "trained with"
        )
