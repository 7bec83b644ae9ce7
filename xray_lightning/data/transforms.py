"""Transforms of a whole batch on its device: normalisation, and random augmentation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from xray_lightning.errors import UserError, check_whole

# torchvision's ImageNet statistics, averaged over the three channels: one gray channel stands for
# all three.
IMAGENET_MEAN = (0.485 + 0.456 + 0.406) / 3
IMAGENET_STD = (0.229 + 0.224 + 0.225) / 3
EPSILON = 1e-6  # avoids a division by 0: a constant image becomes all zeros

NORMALIZATIONS = ("per_image", "dataset", "imagenet", "symmetric")


class Normalize(nn.Module):
    """uint8, or float in [0, 1], (B, 1, S, S) to float32 of about zero mean and unit spread.

    Args:
        mode: `per_image` subtracts each image's mean and divides by its standard deviation (the
            paper's), and so undoes a change of brightness or contrast; `dataset` uses one mean
            and deviation, those of the training split, which `fit_to` sets; `imagenet` those that
            torchvision's pretrained weights expect; `symmetric` maps black to -1 and white to 1, as
            torchxrayvision's and some of timm's weights expect.
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
        symmetric = mode == "symmetric"
        self.register_buffer("mean", torch.tensor(0.5 if symmetric else IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(0.5 if symmetric else IMAGENET_STD))

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


PLACES = 16  # random numbers reserved for each draw

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
# 2014), with the constants of Vigna's reference implementation, prng.di.unimi.it/splitmix64.c:
# its n-th output is mixed(seed + n * GAMMA), so any of them can be had at once.
GAMMA = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def uniforms(draws: Tensor, *, seed: int, places: int) -> Tensor:
    """Numbers in [0, 1) that depend on the seed, the draw's number and the place in its row alone.

    Draw d gets the upper 24 bits of outputs 16 d + 1, 16 d + 2, ... of a splitmix64 generator that
    starts from the mixed seed (so that neighbouring seeds are far apart). Without a state and
    without synchronisation, they are the same on every device, and in a CUDA graph.

    Args:
        draws: int64 (B,).
        places: numbers for each draw, at most 16.

    Returns:
        float32 (B, places), on the device of `draws`.
    """
    count = torch.arange(1, places + 1, device=draws.device) + draws[:, None] * PLACES
    bits = _mixed(count * _signed(GAMMA) + _signed(mixed(seed)))
    shares: Tensor = _shifted(bits, 40) * 2.0**-24
    return shares


def mixed(number: int) -> int:
    """splitmix64's output function, of an unsigned 64-bit number."""
    number %= 2**64
    for shift, factor in ROUNDS:
        number = (number ^ number >> shift) * factor % 2**64
    return number


def _mixed(bits: Tensor) -> Tensor:
    """`mixed` of each element; int64 products wrap around to the same bits as unsigned ones."""
    for shift, factor in ROUNDS:
        bits = bits ^ _shifted(bits, shift)
        if factor != 1:
            bits = bits * _signed(factor)
    return bits


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical right shift: torch's own copies the sign bit."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


def _signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    return number - 2**64 if number >= 2**63 else number


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
    image becomes black, as in torchvision and as the frames around NIH's slanted scans are. Beyond
    the edge of a crop, rotation and shift show the rest of the image, not black.

    `normalize=per_image` subtracts each image's mean and divides by its deviation, which undoes
    brightness and contrast except for clamped pixels: they matter to the other normalisations.

    Args:
        seed: the parameters depend on it and on the draw's number alone.
        hflip: probability of a flip left to right (RandomHorizontalFlip's `p`).
        degrees: rotation drawn from [-degrees, degrees] (RandomAffine).
        translate: shift as a fraction of the image's side, drawn from [-translate, translate] for
            each axis and not rounded to pixels (RandomAffine).
        scale: range of the scale (RandomAffine).
        crop_scale: range of the crop's share of the image's area (RandomResizedCrop's `scale`).
        crop_ratio: range of the crop's width to height, including 1 (RandomResizedCrop's `ratio`).
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
        # Buffers move to the batch's device; they are made from the options, and so not saved.
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("span", (high - low).float(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        """Transform each image with the parameters of its draw; `draws` are numbers, int64 (B,)."""
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
        """Size and centre of the crop, each (B, 2) for x and y, in half sides of the image.

        A negative width flips it.
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
