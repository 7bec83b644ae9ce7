"""Learning-rate schedules that torch has no class for."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xray_lightning.errors import UserError


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_fraction: float = 0.05
) -> LambdaLR:
    """Linear rise over the first steps, then half a cosine down to zero at `total_steps`.

    The cosine is that of Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.

    Raises:
        UserError: a warm-up that is no part of the run.
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
