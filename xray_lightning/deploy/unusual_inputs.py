"""Flags for inputs unlike the images that a model was trained on.

Fixed rules, each with one threshold. They flag an image but never refuse it, and an image without a
flag may still be no chest X-ray. Three more rules read a DICOM file's header: a `modality` other
than radiography, a `body_part` other than the chest, a `lateral` view. `xray predict --strict`
refuses such files.

| rule     | flags an image                                    | NIH 256 | NIH 1024 | phantoms |
|----------|---------------------------------------------------|---------|----------|----------|
| tiny     | with a side below 32 px, or half of the model's   |       0 |        0 |        0 |
| aspect   | with one side over 1.5 times as long as the other |       0 |        0 |        0 |
| colour   | in colour                                         |       0 |        0 |        0 |
| blank    | of nearly uniform brightness                      |       0 |        0 |        0 |
| inverted | bright where a chest is dark                      |  0.09 % |        0 |        0 |
| layout   | bright and dark unlike a chest                    |  0.18 % |   0.62 % |        0 |

The figures are shares flagged of 2,178 and 160 frontal chest X-rays of NIH ChestX-ray14 (0.09 % is
two images, 0.62 % is one) and of 300 phantoms, for a model of 224 pixels. With black and white
exchanged, `inverted` flags 99.72, 99.38 and 100 % of them. Upside down, `inverted` or `layout`
flags 95.8, 94.4 and 98.3 %; rotated by 90 degrees, 55, 62 and 76 %.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from xray_lightning.data.decode_resize import Gray, resize_gray


@dataclass(frozen=True)
class Picture:
    """An image resized for a model, and properties of its file that resizing and gray hide."""

    pixels: Gray  # (S, S)
    height: int  # of the file's image, in pixels
    width: int
    # Mean over the pixels of max(R, G, B) - min(R, G, B), 0 to 255.
    colour: float = 0.0
    unlike_chest: tuple[str, ...] = ()  # names of the rules that flag a DICOM file's header


LEAST_SIDE = 32  # pixels; half of the model's image size if that is more
MOST_ASPECT = 1.5  # radiographs are taken on 35 x 43 cm, 1.23, or cropped to a square
MOST_COLOUR = 10.0  # of 255; NIH's RGBA files have 0.0, and JPEG rounds gray by about 1
LEAST_SPREAD = 10.0  # standard deviation of 0..255; the least of 2,338 NIH images is 26
# Least correlation of an image, at 8 x 8 pixels, with the mean chest X-ray.
LEAST_LIKENESS = 0.15

# Mean of 2,178 NIH images at 8 x 8, each of mean 0 and deviation 1, in tenths: dark air above the
# shoulders and in the lungs, bright in the middle and below the diaphragm.
MEAN_CHEST = np.array(
    [
        [-21, -18, -13, 0, 1, -12, -18, -20],
        [-4, -1, -7, -2, -1, -8, -2, -4],
        [2, 1, -11, -2, 0, -12, -1, 2],
        [0, 0, -9, 2, 6, -8, -1, 0],
        [-4, 0, -3, 8, 12, 0, -1, -4],
        [-7, 3, 6, 13, 15, 8, 2, -7],
        [-10, 7, 15, 18, 18, 13, 5, -11],
        [-11, 9, 18, 20, 20, 16, 7, -12],
    ],
    dtype=np.float64,
)


class Rule(StrEnum):
    """Name of a rule that flags an image."""

    TINY = "tiny"
    ASPECT = "aspect"
    COLOUR = "colour"
    BLANK = "blank"
    INVERTED = "inverted"
    LAYOUT = "layout"
    MODALITY = "modality"
    BODY_PART = "body_part"
    LATERAL = "lateral"


def flags(picture: Picture) -> tuple[Rule, ...]:
    """The rules that flag this image, in the order of `Rule`; empty for a usual image."""
    size = picture.pixels.shape[0]
    short, long = sorted([picture.height, picture.width])
    found = []
    if short < max(LEAST_SIDE, size / 2):
        found.append(Rule.TINY)
    if long > MOST_ASPECT * short:
        found.append(Rule.ASPECT)
    if picture.colour > MOST_COLOUR:
        found.append(Rule.COLOUR)
    if picture.pixels.std() < LEAST_SPREAD:
        found.append(Rule.BLANK)
    else:
        alike = likeness(picture.pixels)
        if alike < -LEAST_LIKENESS:
            found.append(Rule.INVERTED)
        elif alike < LEAST_LIKENESS:
            found.append(Rule.LAYOUT)
    return (*found, *map(Rule, picture.unlike_chest))


def likeness(pixels: Gray) -> float:
    """Correlation of an image (S, S) with the mean chest X-ray, at 8 x 8: -1 to 1."""
    small: npt.NDArray[np.float64] = resize_gray(pixels, len(MEAN_CHEST)).astype(np.float64)
    ours, mean = small - small.mean(), MEAN_CHEST - MEAN_CHEST.mean()
    scale = float(np.linalg.norm(ours) * np.linalg.norm(mean))
    return float(np.sum(ours * mean)) / scale if scale else 0.0
