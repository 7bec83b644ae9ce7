"""Batched transforms that run where the batch lies."""

import torch
from torch import Tensor, nn

from xray_lightning.errors import UserError

# torchvision's ImageNet statistics, averaged over the three channels: one gray channel stands for
# all three.
IMAGENET_MEAN = (0.485 + 0.456 + 0.406) / 3
IMAGENET_STD = (0.229 + 0.224 + 0.225) / 3
EPSILON = 1e-6  # a constant image has no spread: it becomes all zeros

NORMALIZATIONS = ("per_image", "dataset", "imagenet")


class Normalize(nn.Module):
    """uint8 (B, 1, S, S) to float32 of about zero mean and unit spread.

    Args:
        mode: `per_image` subtracts each image's mean and divides by its standard deviation (the
            paper's); `dataset` uses one mean and deviation, those of the training split, which
            `fit_to` sets; `imagenet` those that torchvision's pretrained weights expect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mode: str = "per_image") -> None:
        super().__init__()
        if mode not in NORMALIZATIONS:
            raise UserError(
                f"data.normalize={mode} is unknown; choose one of {', '.join(NORMALIZATIONS)}"
            )
        self.mode = mode
        # Saved with the weights: prediction needs the numbers that training used.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))

    def fit_to(self, *, mean: float, std: float) -> None:
        """Set the training split's statistics, in units of 0 to 1; used by `dataset` alone."""
        if self.mode == "dataset":
            self.mean.fill_(mean)
            self.std.fill_(std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255  # (B, 1, S, S)
        if self.mode == "per_image":
            deviation, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
            return (pixels - mean) / (deviation + EPSILON)
        return (pixels - self.mean) / self.std
