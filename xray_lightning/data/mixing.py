"""Mixing of each training image with another one of its batch, on the batch's device.

The random numbers depend on the seed and the draw's number alone, as in `data.transforms.Augment`.
An image is mixed with the one before it in the rank's batch, as in torchvision's MixUp and CutMix;
which one that is depends on the number of ranks, too.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from xray_lightning.data.transforms import mixed, uniforms
from xray_lightning.errors import UserError, check_whole

QUANTILES = 1025  # tabulated of the Beta distribution, with linear interpolation between them
MOST_ALPHA = 100.0


def beta_quantiles(alpha: float, count: int = QUANTILES) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at `count` (odd) even levels from 0 to 1: float32 (count,).

    The lower half is integrated over s = x ** alpha, in which its density has no pole at 0; the
    upper half is its mirror image.
    """
    places = np.linspace(0, 0.5**alpha, 8193)
    values = places ** (1 / alpha)
    density = (1 - values) ** (alpha - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    lower = np.interp(np.linspace(0, 0.5, count // 2 + 1), mass / mass[-1] / 2, values)
    return torch.from_numpy(np.concatenate([lower, 1 - lower[-2::-1]])).float()


class Mixing(ABC, nn.Module):
    """Mixes each image of a batch (B, 1, S, S) with the one before it.

    Args:
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha).
        seed: the shares depend on it and on the draws' numbers alone.

    Raises:
        UserError: an option out of its range, by its key.
    """

    quantiles: Tensor

    def __init__(self, *, alpha: float, seed: int = 0) -> None:
        super().__init__()
        check_whole("seed", seed, least=0)
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not (is_number and 0 < alpha <= MOST_ALPHA):
            raise UserError(
                f"mixing.alpha={alpha} must be a number above 0 and at most {MOST_ALPHA:.0f}"
            )
        self._seed = mixed(seed)  # so that the numbers differ from those of augmentation
        self.register_buffer("quantiles", beta_quantiles(alpha), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: uint8, or float in [0, 1], (B, 1, S, S).
            draws: the draws' numbers, int64 (B,), see `Batch`.

        Returns:
            Float images in [0, 1] (B, 1, S, S), and the share that each image keeps (B,); the rest
            comes from the image before it, for the first image from the last.
        """
        pixels = images / 255 if images.dtype == torch.uint8 else images.float()
        drawn = uniforms(draws, seed=self._seed, places=3)
        place = drawn[:, 0] * (len(self.quantiles) - 1)
        below = place.long()
        own = torch.lerp(self.quantiles[below], self.quantiles[below + 1], place - below)
        return self.mix(pixels, pixels.roll(1, 0), own, drawn[:, 1:])

    @abstractmethod
    def mix(
        self, images: Tensor, others: Tensor, own: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and the shares kept; `places` are random numbers in [0, 1), (B, 2)."""


class MixUp(Mixing):
    """Weighted means of two images (Zhang et al., "mixup: Beyond Empirical Risk Minimization",
    ICLR 2018, arXiv:1710.09412)."""

    def mix(
        self, images: Tensor, others: Tensor, own: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.lerp(others, images, own[:, None, None, None]), own


class CutMix(Mixing):
    """Images with a box of another one (Yun et al., "CutMix: Regularization Strategy to Train
    Strong Classifiers with Localizable Features", ICCV 2019, arXiv:1905.04899).

    The box has the image's aspect ratio, and its centre is uniform over the image. It is clipped
    to the image, and the share that the image keeps is computed from the clipped box.
    """

    def mix(
        self, images: Tensor, others: Tensor, own: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        side = images.shape[-1]
        half = side * (1 - own).sqrt() / 2
        centre = places * side  # (B, 2)
        low = (centre - half[:, None]).round().clamp(0, side)
        high = (centre + half[:, None]).round().clamp(0, side)
        pixel = torch.arange(side, device=images.device)
        inside = (pixel >= low[..., None]) & (pixel < high[..., None])  # (B, 2, S)
        box = (inside[:, 1, :, None] & inside[:, 0, None])[:, None]  # (B, 1, S, S)
        area = (high - low).prod(dim=1)
        return torch.where(box, others, images), 1 - area / side**2
