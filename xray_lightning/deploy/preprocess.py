"""Preprocessing: the only path from an image file to a model's input, set by the checkpoint.

A file is decoded to gray (`data.decode_resize.decode_gray`), resized to the checkpoint's
`image_size` (`data.decode_resize.resize_gray`), and normalised inside the model
(`models.checkpoint.RestoredModel`, whose `Normalize` is loaded with the weights). The training
cache holds bit-identical pixels: its `read_gray` is the first two steps. All other code of the
package that reads images for a model uses this module.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin

from xray_lightning.data import dicom, png
from xray_lightning.data.decode_resize import (
    DAMAGE,
    JPEG_START,
    UnreadableImageError,
    decode_gray,
    resize_gray,
)
from xray_lightning.deploy.unusual_inputs import Picture, Rule, flags
from xray_lightning.errors import UserError
from xray_lightning.workers import in_threads

SAID_BY = {
    "modality": "another modality than radiography",
    "body_part": "another body part than the chest",
    "lateral": "a lateral view",
}
THUMBNAIL = 64  # pixels: enough to tell a colour photograph
# Offset of a PNG's colour type byte, and the colour types of gray, without and with alpha.
PNG_COLOUR, PNG_GRAY = 25, (0, 4)


@dataclass(frozen=True)
class Preprocessing:
    """Reads images and resizes them to one size."""

    image_size: int  # side of the squares that the model takes, in pixels
    strict: bool = False  # whether a DICOM file of anything but a frontal chest is refused

    def file(self, path: str | Path) -> Picture:
        """Read an image file.

        Raises:
            UnreadableImageError: as `decode_gray`, naming the file and the cause; or, if strict, a
                DICOM file whose header names anything but a frontal chest radiograph.
        """
        gray = decode_gray(path)
        unlike = _unlike_chest(Path(path))
        if unlike and self.strict:
            said = ", ".join(SAID_BY[name] for name in unlike)
            raise UnreadableImageError(f"{path}: the DICOM file says that it shows {said}")
        pixels = resize_gray(gray, self.image_size)
        colour = _colour(Path(path))
        return Picture(pixels, gray.shape[0], gray.shape[1], colour, unlike)

    def array(self, image: npt.NDArray[np.uint8]) -> Picture:
        """Resize an image that is already decoded, bright where the X-rays were stopped.

        Args:
            image: uint8 (H, W).

        Raises:
            UserError: another shape or type.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2:
            found = (
                f"{image.dtype} {image.shape}"
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise UserError(f"an image must be a path or a uint8 array (H, W), not {found}")
        if not image.size:
            raise UserError("an image of no pixels, which says nothing")
        gray = np.ascontiguousarray(image)
        return Picture(resize_gray(gray, self.image_size), gray.shape[0], gray.shape[1])


def _unlike_chest(path: Path) -> tuple[str, ...]:
    """Result of `dicom.unlike_chest` for a file that `decode_gray` has read; () if not DICOM."""
    try:
        with path.open("rb") as stream:
            start = stream.read(dicom.START + len(dicom.MAGIC))
            return dicom.unlike_chest(start + stream.read()) if dicom.is_dicom(start) else ()
    except OSError:
        return ()


def _colour(path: Path) -> float:
    """`Picture.colour` of a PNG or JPEG that `decode_gray` has read; 0 for any other file.

    Only a file whose header says colour is decoded again, a JPEG at a scale down to 1/8.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(PNG_COLOUR + 1)
            is_png = start.startswith(png.START)
            if is_png and start[PNG_COLOUR] in PNG_GRAY:
                return 0.0
            if not is_png and not start.startswith(JPEG_START):
                return 0.0
            data = io.BytesIO(start + stream.read())
        opened = PngImagePlugin.PngImageFile if is_png else JpegImagePlugin.JpegImageFile
        image: Image.Image = opened(data)
        if image.mode not in ("RGB", "RGBA", "P", "CMYK"):
            return 0.0
        if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "RGB":
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        image.load()
        image.info.pop("transparency", None)  # Pillow warns of it
        small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    except DAMAGE:
        return 0.0
    rgb = np.asarray(small)  # (64, 64, 3)
    return float(np.mean(rgb.max(axis=2).astype(np.int16) - rgb.min(axis=2)))


Source = TypeVar("Source")


@dataclass(frozen=True)
class Decoded(Generic[Source]):
    """One input: its picture and the rules that flag it, or the error of reading it."""

    source: Source
    picture: Picture | None
    flags: tuple[Rule, ...] = ()
    error: UnreadableImageError | None = None


def decoded_batches(
    sources: Iterable[Source], read: Callable[[Source], Picture], *, size: int
) -> Iterator[list[Decoded[Source]]]:
    """Yield the inputs in order, `size` at a time, while two more batches are being decoded.

    Args:
        sources: consumed lazily, so that memory does not grow with their number.
        read: called in threads.
        size: inputs per batch, unreadable ones included.
    """

    def decode(source: Source) -> Decoded[Source]:
        try:
            picture = read(source)
        except UnreadableImageError as error:
            return Decoded(source, None, error=error)
        return Decoded(source, picture, flags(picture))

    with closing(in_threads(decode, sources, ahead=2 * size)) as decoded:
        while batch := list(islice(decoded, size)):
            yield batch
