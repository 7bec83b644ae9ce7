"""DICOM radiographs to 8-bit gray, as a workstation would show them.

In the order of the standard (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2):

1. The modality LUT, or `stored value x RescaleSlope + RescaleIntercept`.
2. The first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or SIGMOID), whose lower end
   becomes 0 and whose upper end 255. Without either, the smallest value of the image becomes 0
   and the largest 255; pixel padding does not count. An image of one value is black.
3. MONOCHROME1, in which low values are bright, is inverted. Padding is black.
4. Values are rounded to whole numbers, halves upwards.

Colour of 8 bits (a scanned film, a photograph) becomes ITU-R 601 luma. Only the elements needed
for this are read: names, dates and IDs of persons never leave the file, and messages quote nothing
of its content but its numbers of rows, columns, frames and bits, and names that DICOM defines.
"""

import io
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xray_lightning.errors import UserError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Frame headers of JPEG (ITU-T T.81, table B.1: C0 to CF but C4, C8, CC) and of JPEG-LS (T.87).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
SCAN = 0xDA


def stated_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; None where it does not."""
    if frame.startswith(JPEG_2000_START):
        # SIZ (T.800, A.5.1): length, capabilities, then the right and lower edge, left and upper.
        numbers = [int.from_bytes(frame[place : place + 4], "big") for place in range(8, 24, 4)]
        right, lower, left, upper = numbers
        return lower - upper, right - left
    if not frame.startswith(JPEG_START):
        return None
    place = len(JPEG_START)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in FRAMES:
            rows = int.from_bytes(frame[place + 5 : place + 7], "big")
            return rows, int.from_bytes(frame[place + 7 : place + 9], "big")
        if marker == SCAN:
            return None
        place += 1 if marker == 0xFF else 2 + length  # fill bytes FF may precede a marker
    return None


Floats = npt.NDArray[np.float64]

START = 128  # bytes of preamble, whatever they hold
MAGIC = b"DICM"
MAX_PIXELS = 64_000_000
# Most pixels per byte of PixelData. Even a blank image has fewer, in every transfer syntax that is
# read; a few bytes that claim to be a large image would keep a decoder busy for long.
MOST_PIXELS_A_BYTE = 1000
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that may unpack to any size
META_BYTES = 4096  # the transfer syntax stands well within these

ELEMENTS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
# Elements for the modality, body part and view (PS3.3 C.7.3.1.1.1 and C.8.1.9.2.1, PS3.16 annex L),
# and the values that frontal chest radiographs have, or (LATERAL) lack. Empty elements are ignored.
SAID = ("Modality", "BodyPartExamined", "ViewPosition")
RADIOGRAPHS = ("CR", "DX", "RG", "DR", "OT")  # OT ("other") excludes nothing
CHEST = ("CHEST", "THORAX", "TORAX", "LUNG")
LATERAL = ("LL", "RL", "LAT", "LATERAL")
# The decoder plugins of pydicom that were tested with damaged files. GDCM's is left out: it may
# crash the whole process.
PLUGINS = ("pillow", "pylibjpeg", "pyjpegls", "pydicom")
NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "BitsStored")
GRAYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


class DicomError(UserError):
    """Why a DICOM file is not decoded; the caller names the file."""


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes begin as DICOM's do (PS3.10)."""
    return data[START : START + len(MAGIC)] == MAGIC


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a DICOM file of a single frame; see the module for the rule.

    Returns:
        uint8 (H, W), or (H, W, 3) of a colour image, in RGB.

    Raises:
        DicomError: pydicom or a decoder is missing, or the file is damaged or no supported image.
    """
    try:
        dataset = _read(data)
        _check(dataset)
        pixels = _pixels(dataset)
        return pixels.astype(np.uint8) if pixels.ndim == 3 else _gray(pixels, dataset)
    except DicomError:
        raise
    # pydicom and the decoders behind it fail in as many ways as files can be damaged; their
    # messages may quote the file.
    except Exception as error:  # noqa: BLE001
        raise DicomError(f"damaged DICOM file ({type(error).__name__})") from None


def unlike_chest(data: bytes) -> tuple[str, ...]:
    """Reasons in a DICOM file's header why it is no frontal chest radiograph.

    Returns:
        Those that apply of `modality` (a CT, say), `body_part` (not the chest) and `lateral` (a
        side view), never the file's own text; none if the header cannot be read.
    """
    try:
        dataset = _pydicom().dcmread(io.BytesIO(data), specific_tags=SAID, stop_before_pixels=True)
        modality, part, view = (str(dataset.get(name) or "").strip().upper() for name in SAID)
    except Exception:  # noqa: BLE001 - as in `decode`
        return ()
    found = {
        "modality": modality not in ("", *RADIOGRAPHS),
        "body_part": part != "" and not any(name in part for name in CHEST),
        "lateral": view in LATERAL,
    }
    return tuple(name for name, holds in found.items() if holds)


def _pydicom() -> Any:
    """Import pydicom and silence its warnings, which may quote the file."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise DicomError(
            "a DICOM file, which takes pydicom: uv sync --extra dicom, or "
            "pip install 'xray-lightning[dicom]'"
        ) from error
    settings = pydicom.config.settings
    if settings.reading_validation_mode != pydicom.config.IGNORE:
        settings.reading_validation_mode = pydicom.config.IGNORE
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        # Once, and not around each call: warning filters are shared by all threads.
        warnings.filterwarnings("ignore", module=r"pydicom\b")
    return pydicom


def _read(data: bytes) -> "Dataset":
    pydicom = _pydicom()
    if DEFLATED in data[:META_BYTES]:
        raise DicomError("a deflated DICOM file, which may unpack to any size, is not read")
    return pydicom.dcmread(io.BytesIO(data), specific_tags=ELEMENTS)  # type: ignore[no-any-return]


def _check(dataset: "Dataset") -> None:
    """Refuse what is no single supported image, before memory is allocated for its pixels."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise DicomError("DICOM pixels in floating point are not read")
    if not dataset.get("PixelData"):
        raise DicomError("a DICOM file without pixels, such as a report")
    if missing := [name for name in NEEDED if dataset.get(name) is None]:
        raise DicomError(f"damaged DICOM file: it lacks {', '.join(missing)}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DicomError(f"{frames} frames: a film or a volume is no radiograph; take one frame")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not 0 < rows * columns <= MAX_PIXELS:
        raise DicomError(f"{columns} x {rows} pixels; at most {MAX_PIXELS:,} are decoded")
    if rows * columns > MOST_PIXELS_A_BYTE * len(dataset.PixelData):
        raise DicomError(f"damaged DICOM file: too few bytes for {columns} x {rows} pixels")
    bits, kind = int(dataset.BitsStored), dataset.PhotometricInterpretation
    if kind not in GRAYS + COLOURS:
        raise DicomError(
            f"the DICOM colours {kind} are not read"
            if kind == "PALETTE COLOR"
            else "unknown DICOM colours are not read"
        )
    if (kind in COLOURS and bits != 8) or not 1 <= bits <= 16:
        raise DicomError(f"{bits} bits of {'colour' if kind in COLOURS else 'gray'} are not read")


def _pixels(dataset: "Dataset") -> npt.NDArray[Any]:
    """Stored values (H, W), or RGB (H, W, 3), checked against Rows and Columns."""
    pydicom = _pydicom()
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise DicomError("no decoder for this DICOM transfer syntax exists") from None
    native = not decoder.UID.is_compressed
    plugins = ("",) if native else [one for one in PLUGINS if one in decoder.available_plugins]
    if not plugins:
        raise DicomError(
            f"{syntax.name} takes a decoder that is not installed: uv sync --extra dicom, or "
            "pip install 'xray-lightning[dicom]'"
        )
    if not native and syntax != pydicom.uid.RLELossless:
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        if stated_size(frame) != (dataset.Rows, dataset.Columns):
            raise DicomError("damaged DICOM file: its pixels are not of the size that it says")
    pixels = _first_that_can(plugins, dataset)
    if pixels.shape[:2] != (dataset.Rows, dataset.Columns) or pixels.ndim > 3:
        raise DicomError("damaged DICOM file: its pixels are not of the size that it says")
    return pixels


def _first_that_can(plugins: Sequence[str], dataset: "Dataset") -> npt.NDArray[Any]:
    """The pixels from the first plugin that decodes this file; raises the last one's error."""
    decoded: Callable[..., npt.NDArray[Any]] = _pydicom().pixels.pixel_array
    for plugin in plugins[:-1]:
        # The one for Pillow, for example, decodes JPEG of 8 bits but not of 12.
        with suppress(Exception):
            return decoded(dataset, decoding_plugin=plugin)
    return decoded(dataset, decoding_plugin=plugins[-1])


def _gray(stored: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.uint8]:
    padding = _padding(stored, dataset)
    values = _pydicom().pixels.apply_modality_lut(stored, dataset)
    values = _windowed(values, dataset, counts=~padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = 255 - values
    values[padding] = 0
    # Rounded to 6 decimals first, so that floating-point noise does not move a half up or down.
    gray: npt.NDArray[np.uint8] = np.floor(np.round(np.clip(values, 0, 255), 6) + 0.5).astype("u1")
    return gray


def _padding(stored: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.bool_]:
    """Mask of the padding, whose stored values PixelPaddingValue and its RangeLimit give."""
    first = _number(dataset.get("PixelPaddingValue"))
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = _number(dataset.get("PixelPaddingRangeLimit"))
    low, high = sorted((first, first if last is None else last))
    padding: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
    # Some files give a value of real pixels: where every pixel would be padding, none is.
    return padding & (not padding.all())


def _windowed(
    values: npt.NDArray[Any], dataset: "Dataset", *, counts: npt.NDArray[np.bool_]
) -> Floats:
    """Values for display, 0 to 255, by VOI LUT, window or range; `counts` masks out padding."""
    if tables := dataset.get("VOILUTSequence"):
        return _looked_up(values, tables[0])
    center, width = (_number(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None and width > 0:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        return 255 * _window(values.astype(np.float64), center, width, function=function)
    held = values[counts]
    low, high = float(held.min()), float(held.max())
    return (values - low) * (255 / (high - low) if high > low else 0.0)


def _looked_up(values: npt.NDArray[Any], table: "Dataset") -> Floats:
    """Apply a VOI LUT (PS3.3 C.11.2.1.1), scaling the full range of its bits to 0 to 255."""
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    given = table.LUTData
    if isinstance(given, bytes):
        given = np.frombuffer(given, dtype="<u2" if bits > 8 else "u1")
    entries = np.asarray(given, dtype=np.float64)[: count or 65536]
    if not len(entries) or not 1 <= bits <= 16:
        raise DicomError("damaged DICOM file: an empty VOI LUT")
    places = np.clip(values - first, 0, len(entries) - 1).astype(np.int64)
    seen: Floats = entries[places] * (255 / (2**bits - 1))
    return seen


def _window(values: Floats, center: float, width: float, *, function: str) -> Floats:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3), with an output range of 0 to 1."""
    if function == "SIGMOID":
        seen: Floats = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        seen = np.clip((values - center) / width + 0.5, 0, 1)
    elif width <= 1:  # a threshold
        seen = (values > center - 0.5).astype(np.float64)
    else:
        seen = np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return seen


def _number(value: Any) -> float | None:
    """An element's first number, if it has a finite one."""
    try:
        first = float(value if not hasattr(value, "__getitem__") else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return first if np.isfinite(first) else None
