"""Preprocessing: the one way from an image file to what a model takes, set by the checkpoint.

A file is decoded to gray (`data.decode_resize.decode_gray`), resized to the checkpoint's
`image_size` (`data.decode_resize.resize_gray`), and normalised inside the model
(`models.checkpoint.RestoredModel`, whose `Normalize` is loaded with the weights). Training's cache
holds the same pixels: `read_gray` is these two steps to the bit. Whatever else reads images for a
model comes through here.
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
# The byte of a PNG that holds its colour type, and the types of gray, without and with alpha.
PNG_COLOUR, PNG_GRAY = 25, (0, 4)


@dataclass(frozen=True)
class Preprocessing:
    """Images to pixels of one size."""

    image_size: int  # side of the squares that the model takes, in pixels
    strict: bool = False  # whether a DICOM file of anything but a frontal chest is refused

    def file(self, path: str | Path) -> Picture:
        """Read an image file.

        Raises:
            UnreadableImageError: as `decode_gray`, naming the file and the cause; or, where strict,
                a DICOM file that says that it shows something else.
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
        """Take an image that is decoded already, bright where the X-rays were stopped.

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
    """What `dicom.unlike_chest` says of a file that `decode_gray` has passed."""
    try:
        with path.open("rb") as stream:
            start = stream.read(dicom.START + len(dicom.MAGIC))
            return dicom.unlike_chest(start + stream.read()) if dicom.is_dicom(start) else ()
    except OSError:
        return ()


def _colour(path: Path) -> float:
    """How colourful a PNG or JPEG is that `decode_gray` has passed; 0 for any other file.

    Only a file whose header says colour is decoded again, and a JPEG then at an eighth.
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
    """One input: its picture and the rules that speak of it, or why it cannot be read."""

    source: Source
    picture: Picture | None
    flags: tuple[Rule, ...] = ()
    error: UnreadableImageError | None = None


def decoded_batches(
    sources: Iterable[Source], read: Callable[[Source], Picture], *, size: int
) -> Iterator[list[Decoded[Source]]]:
    """Every input in order, `size` at a time, while two more batches are being decoded.

    Args:
        sources: taken as needed, so that any number of them needs the same memory.
        read: called in threads.
        size: inputs of a batch, those that cannot be read among them.
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
