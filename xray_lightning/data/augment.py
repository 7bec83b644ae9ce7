"""Random transforms of a whole batch where it lies, each image by parameters of its own.

The parameters belong to the number of the draw (`Batch.draws`): image and transform are the same
at any batch size, on any number of ranks, on any device, and after a resume in mid-epoch. Nothing
waits for the device and no shape depends on a value, so that a CUDA graph can hold it all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from xray_lightning.data.uniforms import uniforms
from xray_lightning.errors import UserError, check_whole

Range = tuple[float, float]
UNCHANGED: Range = (1.0, 1.0)


class Drawn(NamedTuple):
    """What was drawn for each image, all (B,); lengths are in half sides, `grid_sample`'s unit.

    A new parameter goes to the end, so that the others keep their random numbers.
    """

    flip: Tensor  # below 0 where the image is flipped
    angle: Tensor  # radians, clockwise
    right: Tensor  # shift
    down: Tensor
    scale: Tensor  # above 1 enlarges
    brightness: Tensor  # factor
    contrast: Tensor  # factor
    area: Tensor  # of the crop, as a share of the image's
    shape: Tensor  # 0 to 1: from the tallest to the widest crop of that area
    left: Tensor  # 0 to 1: from the leftmost to the rightmost place of that crop
    top: Tensor


class Augment(nn.Module):
    """Images (B, 1, S, S), uint8 or float in [0, 1], to transformed float32 images in [0, 1].

    Names, ranges and directions are torchvision's. In this order: crop, flip, rotation with shift
    and scale, brightness, contrast. The geometric ones are folded into one affine map and one
    bilinear `grid_sample`; a flip alone is exact, without interpolation. What lies outside the
    image becomes black, as in torchvision and as the frames around NIH's slanted scans are. The
    edge of a crop is no such outside: the map looks past it.

    `normalize=per_image` subtracts each image's mean and divides by its deviation, which undoes
    brightness and contrast but for what was clamped: they matter to the other normalisations.

    Args:
        seed: the parameters depend on it and on the draw's number alone.
        hflip: probability of a flip left to right (RandomHorizontalFlip's `p`).
        degrees: rotation drawn from [-degrees, degrees] (RandomAffine).
        translate: shift in sides of the image, drawn from [-translate, translate] for each way and
            not rounded to pixels (RandomAffine).
        scale: range of the scale (RandomAffine).
        crop_scale: range of the crop's share of the image's area (RandomResizedCrop's `scale`).
        crop_ratio: range of the crop's width to height, 1 among it (RandomResizedCrop's `ratio`).
            torchvision draws again when a crop does not fit; here the range narrows to the ratios
            that fit the area drawn, so that areas stay uniform.
        brightness: factor drawn from [1 - brightness, 1 + brightness] (ColorJitter).
        contrast: likewise, about the image's mean (ColorJitter).

    Raises:
        UserError: an option out of its range, by its key.
    """

    low: Tensor
    span: Tensor

    def __init__(
        self,
        *,
        seed: int = 0,
        hflip: float = 0.0,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: Sequence[float] = UNCHANGED,
        crop_scale: Sequence[float] = UNCHANGED,
        crop_ratio: Sequence[float] = UNCHANGED,
        brightness: float = 0.0,
        contrast: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole("seed", seed, least=0)
        for key, value, most in (
            ("hflip", hflip, 1),
            ("degrees", degrees, 180),
            ("translate", translate, 1),
            ("brightness", brightness, 1),
            ("contrast", contrast, 1),
        ):
            _check_amount(key, value, most=most)
        zoom = _checked_range("scale", scale, most=10)
        area = _checked_range("crop_scale", crop_scale, most=1)
        self.ratio = _checked_range("crop_ratio", crop_ratio, most=100)
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise UserError(f"augment.crop_ratio={list(crop_ratio)} must have 1 inside its range")

        self.seed = seed
        self.flips = hflip > 0
        self.crops = area != UNCHANGED
        self.warps = self.crops or degrees > 0 or translate > 0 or zoom != UNCHANGED
        self.brightens, self.contrasts = brightness > 0, contrast > 0

        turn, share = math.radians(degrees), (0.0, 1.0)
        ranges = (
            (-hflip, 1 - hflip),
            (-turn, turn),
            (-2 * translate, 2 * translate),
            (-2 * translate, 2 * translate),
            zoom,
            (1 - brightness, 1 + brightness),
            (1 - contrast, 1 + contrast),
            area,
            share,
            share,
            share,
        )
        low, high = torch.tensor(ranges, dtype=torch.float64).unbind(1)
        # On the batch's device; made again from the options, so not saved.
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("span", (high - low).float(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images transformed, each as its draw's number says: int64 (B,)."""
        drawn = self.draw(draws)
        if self.flips and not self.warps:
            images = torch.where((drawn.flip < 0)[:, None, None, None], images.flip(-1), images)
        pixels = images / 255 if images.dtype == torch.uint8 else images.float()
        if self.warps:
            size, centre = self.crop(drawn)
            pixels = warp(pixels, drawn, size=size, centre=centre)
        if self.brightens:
            pixels = (pixels * drawn.brightness[:, None, None, None]).clamp_(0, 1)
        if self.contrasts:
            mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
            pixels = torch.lerp(mean, pixels, drawn.contrast[:, None, None, None]).clamp_(0, 1)
        return pixels

    def draw(self, draws: Tensor) -> Drawn:
        """The parameters of the draws with these numbers, int64 (B,)."""
        shares = uniforms(draws, seed=self.seed, places=len(Drawn._fields))
        return Drawn(*torch.addcmul(self.low, self.span, shares).unbind(1))

    def crop(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Size and centre of the part that is shown, each (B, 2) for x and y in half sides.

        A negative width shows it flipped.
        """
        if self.crops:
            tallest = drawn.area.clamp(min=self.ratio[0]).log()
            widest = drawn.area.reciprocal().clamp(max=self.ratio[1]).log()
            ratio = torch.lerp(tallest, widest, drawn.shape).exp()
            width, height = (drawn.area * ratio).sqrt(), (drawn.area / ratio).sqrt()
        else:
            width = height = torch.ones_like(drawn.area)
        places = torch.stack([drawn.left, drawn.top], dim=1)
        centre = (2 * places - 1) * (1 - torch.stack([width, height], dim=1))
        return torch.stack([width.copysign(drawn.flip), height], dim=1), centre


def warp(images: Tensor, drawn: Drawn, *, size: Tensor, centre: Tensor) -> Tensor:
    """Show a part of each image, turned, shifted and scaled, by bilinear interpolation.

    Args:
        images: float (B, 1, S, S).
        drawn: of which angle, right, down and scale are used.
        size: of the part, (B, 2) for x and y in half sides; negative to flip it.
        centre: of the part, likewise.

    Returns:
        float (B, 1, S, S), black where the map leaves the image.
    """
    # Elementwise, not `affine_grid`: its matrix product would run in bf16 under autocast or in
    # TF32, which is off by pixels.
    cosine, sine = drawn.angle.cos() / drawn.scale, drawn.angle.sin() / drawn.scale
    along = size * torch.stack([cosine, -sine], dim=1)  # (B, 2) steps in the image per step right
    across = size * torch.stack([sine, cosine], dim=1)  # and per step down
    side = images.shape[-1]
    middles = torch.arange(1 - side, side, 2, device=images.device) / side  # (S,) of the pixels
    columns = (middles - drawn.right[:, None])[:, None, :, None] * along[:, None, None]
    rows = (middles - drawn.down[:, None])[:, :, None, None] * across[:, None, None]
    grid = columns + (rows + centre[:, None, None])  # (B, S, S, 2)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _check_amount(key: str, value: object, *, most: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"augment.{key}={value} must be a number from 0 to {most}")


def _checked_range(key: str, values: Sequence[float], *, most: float) -> Range:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high <= most:
        raise UserError(
            f"augment.{key}={values} must be two numbers, the smaller first, above 0 and at most "
            f"{most}"
        )
    return low, high
