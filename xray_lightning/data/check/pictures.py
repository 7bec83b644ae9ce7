"""Each image file opened once: whether it decodes, its size, its mode, and what it shows."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import JpegImagePlugin, PngImagePlugin

from xray_lightning.data import dicom, png
from xray_lightning.data.images import DAMAGE, JPEG_START, UnreadableImageError, decode_gray
from xray_lightning.data.in_threads import in_threads
from xray_lightning.progress import Advance

PLAIN_MODES = ("PNG L", "JPEG L", "DICOM MONOCHROME1", "DICOM MONOCHROME2")
_HEAD = 132  # bytes that tell the three formats apart
_TAIL = 64
_ENDS = {png.START: b"IEND", JPEG_START: b"\xff\xd9"}


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file was found to be.

    Attributes:
        fault: why it cannot be decoded; "" where it can.
        cut: whether it cannot because its end is missing.
        blank: whether every pixel has one value.
        size: width and height.
        mode: format and mode, such as "PNG RGBA".
        content: digest of the bytes.
        pixels: digest of the decoded pixels.
    """

    fault: str = ""
    cut: bool = False
    blank: bool = False
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    content: bytes = b""
    pixels: bytes = b""


def look_at(paths: Iterable[str], *, jobs: int, advance: Advance) -> dict[str, Picture]:
    """Decode these files, in threads."""
    there = list(paths)
    pictures: dict[str, Picture] = {}
    for path, picture in zip(there, in_threads(_look, there, jobs=jobs), strict=True):
        pictures[path] = picture
        advance(1)
    return pictures


def _look(path: str) -> Picture:
    try:
        gray = decode_gray(path)
        content = Path(path).read_bytes()
        mode = _mode(path, content)
    except UnreadableImageError as error:
        return Picture(fault=str(error).removeprefix(f"{path}: "), cut=_cut(path))
    except DAMAGE as error:  # it changed in between
        return Picture(fault=type(error).__name__)
    height, width = gray.shape
    shape = f"{width}x{height}".encode()
    return Picture(
        blank=bool(gray.min() == gray.max()),
        size=(width, height),
        mode=mode,
        content=_digest(content),
        pixels=_digest(shape, np.ascontiguousarray(gray).data),
    )


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _mode(path: str, content: bytes) -> str:
    """Format and mode of a file that was decoded; reads its header alone."""
    if content.startswith(png.START):
        with PngImagePlugin.PngImageFile(path) as image:
            return f"PNG {image.mode}"
    if content.startswith(JPEG_START):
        with JpegImagePlugin.JpegImageFile(path) as image:
            return f"JPEG {image.mode}"
    return f"DICOM {_photometric(path)}"


def _photometric(path: str) -> str:
    """Of the values that are decoded; anything else a file says stays in it."""
    import pydicom

    said = pydicom.dcmread(
        path, stop_before_pixels=True, specific_tags=["PhotometricInterpretation"]
    ).get("PhotometricInterpretation")
    known = (*dicom.GRAYS, *dicom.COLOURS)
    return next((value for value in known if value == said), "of another kind")


def _cut(path: str) -> bool:
    """Whether the end of the format is missing in a file that cannot be decoded."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            tail = stream.read(_TAIL)
    except OSError:
        return False
    return any(head.startswith(start) and end not in tail for start, end in _ENDS.items())
