"""Image growth: training on smaller images in the first epochs, for speed."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from xray_lightning.errors import UserError, check_whole, one_line


@dataclass(frozen=True)
class ImageGrowth:
    """Side of the training images by epoch: smaller ones at first, for speed.

    Tan and Le, "EfficientNetV2", ICML 2021, section 4, in linear steps of `STRIDE` pixels.

    Args:
        start: side in the first epoch, in pixels.
        epochs: share of all epochs after which the images have full size.

    Raises:
        UserError: a value out of range.
    """

    STRIDE: ClassVar[int] = 32  # of most networks, such as ResNets: smaller steps only pad

    start: int
    epochs: float

    def __post_init__(self) -> None:
        check_whole("growth.start", self.start, least=32)
        if not isinstance(self.epochs, int | float) or not 0 < self.epochs <= 1:
            raise UserError(f"growth.epochs={self.epochs} must be above 0, at most 1")

    def side(self, *, epoch: int, of: int, full: int) -> int:
        """Side in pixels of the images in epoch number `epoch`, counted from 0, of `of` epochs.

        Raises:
            UserError: the images are smaller than `start`.
        """
        if self.start > full:
            raise UserError(f"growth.start={self.start} is above data.image_size={full}")
        grown = min(1.0, epoch / max(1, round(self.epochs * of)))
        steps = (full - self.start) * grown // self.STRIDE
        return full if grown == 1 else self.start + self.STRIDE * int(steps)

    def sized(self, images: Tensor, *, epoch: int, of: int) -> Tensor:
        """Images (B, 1, S, S) at their side of this epoch."""
        full = images.shape[-1]
        side = self.side(epoch=epoch, of=of, full=full)
        smaller: Tensor = images if side == full else resize(images, [side, side])
        return smaller

    @torch.no_grad()
    def check(self, model: nn.Module, *, full: int) -> None:
        """Run the model once on images of the smallest size.

        Raises:
            UserError: the model takes images of one size alone.
        """
        side = self.side(epoch=0, of=1, full=full)
        device = next(model.parameters()).device
        model.eval()
        try:
            model(torch.zeros((1, 1, side, side), dtype=torch.uint8, device=device))
        except Exception as error:  # each library raises its own type
            raise UserError(
                f"growth.start={side}: this backbone takes no such images ({one_line(error)}); "
                "take growth=none"
            ) from error
        finally:
            model.train()
