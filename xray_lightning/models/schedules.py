"""Schedules of the learning rate that torch has no class for, and its scaling by batch size."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xray_lightning.errors import UserError, check_whole


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_fraction: float = 0.05
) -> LambdaLR:
    """Linear rise over the first steps, then half a cosine down to zero at `total_steps`.

    The cosine is that of Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.

    Raises:
        UserError: `warmup_fraction` is not in [0, 1).
    """
    if not 0 <= warmup_fraction < 1:
        raise UserError(
            f"scheduler.scheduler.warmup_fraction={warmup_fraction} must be at least 0 and below 1"
        )
    warmup = max(1, round(total_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class RateScaling:
    """Factor of the learning rate for a larger global batch, reached after a warm-up.

    The rate of a step is the schedule's times `(batch / reference_batch) ** exponent`; the
    factor rises to that from 1 in equal steps (Goyal et al. 2017, section 2.2).

    Args:
        exponent: 1 for the linear rule (Goyal et al. 2017, section 2.1), 0.5 for the square root
            (Malladi et al. 2022).
        reference_batch: global batch size that the unscaled rate is meant for.
        warmup_epochs: length of the warm-up; there is none unless the factor is above 1.

    Raises:
        UserError: a value out of range.
    """

    exponent: float
    reference_batch: int
    warmup_epochs: float = 5

    def __post_init__(self) -> None:
        check_whole("lr_scaling.reference_batch", self.reference_batch, least=1)
        for key in ("exponent", "warmup_epochs"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"lr_scaling.{key}={value} must be a number of at least 0")

    def factors(self, *, batch: int, steps_an_epoch: int) -> Callable[[int], float]:
        """The factor of each optimizer step, counted from 0.

        Args:
            batch: images of an optimizer step, over all ranks and accumulated batches.
            steps_an_epoch: optimizer steps.
        """
        full = float((batch / self.reference_batch) ** self.exponent)
        warmup = round(self.warmup_epochs * steps_an_epoch) if full > 1 else 0

        def factor(step: int) -> float:
            return full if step >= warmup else 1 + (full - 1) * step / warmup

        return factor


class ScaledRate:
    """Keeps an optimizer's rates at those of its schedule times a factor that changes by step.

    A schedule may compute its next rate from the current one, so it must see the unscaled rate.
    Each parameter group keeps that as `unscaled_lr` beside `lr`, so that checkpoints hold both.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer, self._factor = optimizer, factor
        for group in optimizer.param_groups:
            group["unscaled_lr"] = group["lr"]
        self.apply(0)

    def apply(self, step: int) -> None:
        """Set the rates of this optimizer step, counted from 0."""
        factor = self._factor(step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["unscaled_lr"] * factor

    @contextmanager
    def unscaled(self, *, step: int) -> Iterator[None]:
        """Show the schedule its unscaled rates within the block, then scale them for this step."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["unscaled_lr"]
        yield
        for group in self._optimizer.param_groups:
            group["unscaled_lr"] = group["lr"]
        self.apply(step)
