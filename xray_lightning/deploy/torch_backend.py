"""Torch backend: checkpoints run by torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from xray_lightning.data.loader import Batch
from xray_lightning.evaluation.ensemble import Member, average, member_logits, read_members
from xray_lightning.hardware import Speed, choose_accelerator, choose_precision


@dataclass(frozen=True)
class TorchNetwork:
    """One checkpoint, or several averaged.

    Attributes:
        device: `cpu` or `cuda`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        average: `probabilities` or `logits`.
    """

    members: Sequence[Member]
    device: str
    precision: str
    average: str

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        *,
        device: str,
        precision: str,
        average: str,
        tta: str | None = None,
    ) -> "TorchNetwork":
        """Read checkpoints; the arguments are those of `load_model`."""
        accelerator = choose_accelerator(device)
        chosen = choose_precision(precision, accelerator=accelerator)
        return cls(read_members(paths, tta=tta), accelerator, chosen, average)

    def prepare(self) -> None:
        """Set torch's threads and process-wide options that speed up inference."""
        Speed().prepare(accelerator=self.device, local_ranks=1)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 (B, F), of images (B, 1, S, S).

        Raises:
            RunFailedError: the model gives NaN or infinite logits.
        """
        rows = torch.arange(len(pixels))
        unknown = torch.empty(len(pixels), 0)  # in place of labels, which are not used
        logits = member_logits(
            self.members,
            [Batch(torch.from_numpy(pixels), unknown, rows, rows, 1.0)],
            images=len(pixels),
            device=torch.device(self.device),
            precision=self.precision,
            advance=lambda done: None,
        )
        return average(logits, of=self.average)
