"""A StepGraph for machines without CUDA: its recorder runs the step again instead of replaying."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xray_lightning.data.loader import Batch
from xray_lightning.models.cuda_graph import StepGraph


class Recorded(StepGraph):
    """A StepGraph whose recorder needs no CUDA; all else is the real thing."""

    records = 0

    def _record(self, inputs: Batch) -> tuple[Callable[[], None], Tensor]:
        type(self).records += 1
        loss = self._run(inputs)
        gradients = [parameter.grad for parameter in self._parameters]

        def replay() -> None:  # on the same memory, as a CUDA graph does
            loss.copy_(self._run(inputs))
            for parameter, fixed in zip(self._parameters, gradients, strict=True):
                if fixed is not None and parameter.grad is not None:
                    fixed.copy_(parameter.grad)

        return replay, loss


def normalising_backbone() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(1800, 14)
    backbone = nn.Sequential(*layers)
    backbone.head_prefix = "3."  # type: ignore[assignment]
    return backbone
