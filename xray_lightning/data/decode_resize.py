"""Decoder of image files to 8-bit gray, their resizing, and the file check of `xray data check`."""

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from xray_lightning.data import dicom, png
from xray_lightning.errors import UserError
from xray_lightning.progress import Advance
from xray_lightning.workers import in_threads

Gray = npt.NDArray[np.uint8]

# Part of every cache key: raise it with any change below that changes a pixel.
DECODER_VERSION = "1"

MAX_PIXELS = 64_000_000  # three times the largest radiographs (about 4,300 x 4,300)
MAX_FILE_BYTES = 8 * MAX_PIXELS  # what that many pixels take at 4 x 16 bit, uncompressed

JPEG_START = b"\xff\xd8\xff"

# Everything that Pillow was seen to raise on damaged files.
DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


# 8-bit value of each 16-bit value: round(value / 257), where 65535 / 257 is exactly 255.
_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


class UnreadableImageError(UserError):
    """An image file that cannot be decoded; the message names the file and the cause."""


def decode_gray(path: str | Path) -> Gray:
    """Decode a PNG, JPEG or DICOM file, recognised by its first bytes, to gray.

    Colour becomes ITU-R 601 luma, alpha is dropped (it is opaque in NIH's RGBA files), 1 bit
    becomes 0 and 255, and 16 bits are scaled over their full range, `round(value / 257)`, so that
    an image of low values stays dark rather than being stretched. Orientation tags are ignored.
    The pixels are those of Pillow's decoder, also where `png.inflated` inflates them. The module
    `dicom` describes how DICOM files are decoded.

    Returns:
        uint8 (H, W).

    Raises:
        UnreadableImageError: no regular file, another format, damaged (PNG: in any byte that its
            checksums cover), or more than 64 million pixels.
    """
    return np.asarray(_decode(Path(path)), dtype=np.uint8)


def resize_gray(image: Gray, size: int) -> Gray:
    """Resize to a square by antialiased bilinear filtering; the aspect ratio is not kept.

    The filter is Pillow's, as in torchvision's `Resize((size, size))` on a PIL image: its support
    grows with the scale, so that every source pixel counts.

    Args:
        image: uint8 (H, W).
        size: side of the result in pixels.

    Returns:
        uint8 (size, size).
    """
    return _resize(Image.fromarray(image), size)


def read_gray(path: str | Path, size: int) -> Gray:
    """`resize_gray(decode_gray(path), size)`, to the bit, without the copies in between.

    Returns:
        uint8 (size, size).

    Raises:
        UnreadableImageError: as `decode_gray`.
    """
    return _resize(_decode(Path(path)), size)


def _resize(image: Image.Image, size: int) -> Gray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def _decode(path: Path) -> Image.Image:
    """The file as an image of mode L."""
    data = _read(path)
    try:
        if dicom.is_dicom(data):
            return Image.fromarray(dicom.decode(data)).convert("L")
        image = _open(path, data)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UnreadableImageError(
                f"{path}: {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded"
            )
        if isinstance(image, PngImagePlugin.PngImageFile):
            image = _open(path, png.inflated(data, png.checked_chunks(data)))
        return _gray(image)
    except UnreadableImageError:
        raise
    except dicom.DicomError as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    except DAMAGE as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"{path}: damaged image: {cause}") from error


def _read(path: Path) -> bytes:
    """The file's bytes; never blocks on a FIFO, never reads without end."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise UnreadableImageError(f"{path}: not a regular file")
        if state.st_size == 0:
            raise UnreadableImageError(f"{path}: the file is empty (0 bytes)")
        if state.st_size > MAX_FILE_BYTES:
            raise UnreadableImageError(
                f"{path}: {state.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
            )
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # a NUL byte in the name
        raise UnreadableImageError(f"{str(path)!r}: {error}") from error


def _open(path: Path, data: bytes) -> ImageFile.ImageFile:
    """Read the header alone.

    The format classes are opened directly: `Image.open` warns of large images, and silencing a
    warning is not safe in threads. The pixel limit here is stricter than Pillow's.
    """
    if data.startswith(png.START):
        return PngImagePlugin.PngImageFile(io.BytesIO(data))
    if data.startswith(JPEG_START):
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    start = data.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnreadableImageError(f"{path}: a web page, not an image; download it again")
    raise UnreadableImageError(f"{path}: neither PNG, JPEG nor DICOM (starts with {data[:8]!r})")


def _gray(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        wide: npt.NDArray[np.integer] = np.asarray(image)
        if wide.dtype != np.uint16:  # mode I, of 32 bits
            wide = np.clip(wide, 0, 65535).astype(np.uint16)
        return Image.fromarray(_EIGHT_BITS[wide])
    # Pillow would warn of palette transparency, which is dropped as all alpha is.
    image.info.pop("transparency", None)
    return image if image.mode == "L" else image.convert("L")


PLAIN_MODES = ("PNG L", "JPEG L", "DICOM MONOCHROME1", "DICOM MONOCHROME2")
_HEAD = 132  # bytes that tell the three formats apart
_TAIL = 64
_ENDS = {png.START: b"IEND", JPEG_START: b"\xff\xd9"}


@dataclass(frozen=True, slots=True)
class Picture:
    """Result of decoding an image file for the check.

    Attributes:
        fault: why it cannot be decoded; "" if it can.
        cut: whether it cannot be decoded and lacks its format's end marker.
        blank: whether all pixels have the same value.
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
    except DAMAGE as error:  # the file changed after it was decoded
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
    import pydicom

    # Only values that can be decoded are shown: no other text of the file is quoted.
    said = pydicom.dcmread(
        path, stop_before_pixels=True, specific_tags=["PhotometricInterpretation"]
    ).get("PhotometricInterpretation")
    known = (*dicom.GRAYS, *dicom.COLOURS)
    return f"DICOM {next((value for value in known if value == said), 'of another kind')}"


def _cut(path: str) -> bool:
    """Whether a PNG or JPEG file that cannot be decoded lacks its format's end marker."""
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
