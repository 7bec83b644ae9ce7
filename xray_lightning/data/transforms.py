"""Normalisation of a whole batch where it lies."""

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
    """uint8, or float in [0, 1], (B, 1, S, S) to float32 of about zero mean and unit spread.

    Args:
        mode: `per_image` subtracts each image's mean and divides by its standard deviation (the
            paper's), and so undoes a change of brightness or contrast; `dataset` uses one mean
            and deviation, those of the training split, which `fit_to` sets; `imagenet` those that
            torchvision's pretrained weights expect.
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
        pixels = images / 255 if images.dtype == torch.uint8 else images.float()  # (B, 1, S, S)
        if self.mode == "per_image":
            centred = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)
            # Two passes: as exact as torch.std_mean, and half its time on a CPU.
            deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            return centred / (deviation + EPSILON)
        return (pixels - self.mean) / self.std
