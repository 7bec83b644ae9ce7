"""Heat maps as pictures: alone, to lie on an image, or blended into it."""

import io

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_lightning.data.images import Gray
from xray_lightning.deploy.explain.maps import Maps

LONGEST = 512  # pixels of a picture's longer side: far more than any map can tell apart
HEAT_SIDE = 96  # pixels of a heat map alone, which is shown as large as its image
COLOURS = "inferno"  # dark to bright in equal steps, also to colour-blind readers
BLEND = 0.8  # opacity of a map's largest value in an overlay
QUALITY = 85  # of JPEG


def shrunk(gray: Gray) -> Gray:
    """An image of at most `LONGEST` pixels a side, its aspect kept."""
    image = Image.fromarray(gray)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)


def heat_png(values: Maps) -> bytes:
    """A map as colours that are the more opaque the larger a value is: PNG with transparency.

    Args:
        values: 0 and up, (S, S).
    """
    image = Image.fromarray(_heat(values))
    image = image.resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BILINEAR)
    return _encoded(image, "PNG")


def overlay_png(gray: Gray, values: Maps) -> bytes:
    """An image with its map blended in: PNG.

    Args:
        gray: uint8 (H, W), as `shrunk` gives it.
        values: 0 and up, (S, S), of the whole image.
    """
    height, width = gray.shape
    heat = Image.fromarray(_heat(values)).resize((width, height), Image.Resampling.BILINEAR)
    colours = np.asarray(heat, dtype=np.float32)
    opacity = BLEND * colours[..., 3:] / 255
    blended = (1 - opacity) * gray[..., None] + opacity * colours[..., :3]
    return _encoded(Image.fromarray(blended.round().astype(np.uint8)), "PNG")


def gray_jpeg(gray: Gray) -> bytes:
    """An image alone: JPEG."""
    return _encoded(Image.fromarray(gray), "JPEG")


def scale_png() -> bytes:
    """The colours from nothing to a map's largest value, from left to right: PNG."""
    ramp = np.linspace(0, 1, HEAT_SIDE)[None].repeat(4, axis=0)
    return _encoded(Image.fromarray((255 * _colours(ramp)).astype(np.uint8)), "PNG")


def _heat(values: Maps) -> npt.NDArray[np.uint8]:
    """Red, green, blue and opacity (S, S, 4); nothing is seen of a map of nothing."""
    largest = values.max()
    shares = values / largest if largest > 0 else np.zeros_like(values)
    # Squared: what is far below the largest value must not lie over the whole image as a veil.
    rgba = np.dstack([_colours(shares), shares**2])
    return (255 * rgba).round().astype(np.uint8)


def _colours(shares: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    colours: npt.NDArray[np.floating] = matplotlib.colormaps[COLOURS](shares)[..., :3]
    return colours


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=QUALITY)
    return buffer.getvalue()
