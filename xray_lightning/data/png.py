"""The chunks of a PNG: checked, and its pixels inflated faster than Pillow does it."""

import struct
import zlib
from importlib import import_module
from typing import Any, NamedTuple

try:
    isal_zlib: Any = import_module("isal.isal_zlib")  # its stubs make `error` no exception type
except ImportError:  # no wheel for this platform: Pillow inflates by itself, which takes longer
    isal_zlib = None

START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type (PNG specification, section 11.2.1)
MOST = 64 * 2**20  # bytes inflated ahead of Pillow: three times a large radiograph's 4,300 x 4,300
BLOCK = 65_535  # bytes in a stored block of deflate (RFC 1951, section 3.2.4)


class Chunk(NamedTuple):
    name: bytes
    start: int  # of its length, in the file
    end: int


def checked_chunks(data: bytes) -> list[Chunk]:
    """The chunks of a PNG before IEND, each checked against its CRC-32.

    Decoders stop at the last pixel, and Pillow's skips the checksums of the pixels.

    Raises:
        ValueError: a checksum is wrong, or the file ends too soon.
    """
    view = memoryview(data)
    chunks: list[Chunk] = []
    place = len(START)
    try:
        while True:
            length, name = struct.unpack_from(">I4s", data, place)
            if name == b"IEND":
                return chunks
            end = place + 8 + length
            (stored,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(view[place + 4 : end]) != stored:
                raise ValueError(f"the checksum of a chunk {name!r} is wrong")
            chunks.append(Chunk(name, place, end + 4))
            place = end + 4
    except struct.error as error:
        raise ValueError("the file ends too soon") from error


def inflated(data: bytes, chunks: list[Chunk]) -> bytes:
    """The same PNG with its pixels stored instead of deflated, where that is quickly done.

    Intel's ISA-L inflates a radiograph in a third of the time that Pillow takes with zlib, row by
    row; Pillow is left to undo the filters. Its pixels stay the same: no difference on any of
    2,338 NIH images, and 1.3 times as many of them a second at 1024 x 1024, resized to 224.
    (`benchmarks/decoders.py` measures it again, beside other decoders.)

    Args:
        data: a file that `checked_chunks` has passed, and whose size has been looked at.

    Returns:
        The new file, or the one given: where ISA-L is missing, and for all that is out of the
        ordinary (interlaced, animated, huge, damaged), of which Pillow is the judge.
    """
    pixels = [chunk for chunk in chunks if chunk.name == b"IDAT"]
    names = {chunk.name for chunk in chunks}
    together = pixels and sum(chunk.end - chunk.start for chunk in pixels) == (
        pixels[-1].end - pixels[0].start
    )
    if isal_zlib is None or not together or b"acTL" in names:
        return data
    width, height, depth, colour, *_, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if interlace or colour not in CHANNELS:
        return data
    size = height * (1 + (width * CHANNELS[colour] * depth + 7) // 8)  # a filter byte to each row
    if size > MOST:
        return data
    view = memoryview(data)
    packed = b"".join([view[chunk.start + 8 : chunk.end - 4] for chunk in pixels])
    inflater = isal_zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, size + 1)
    except isal_zlib.error:
        return data
    if len(raw) != size or not inflater.eof:
        return data
    body = b"IDAT" + _stored(raw)
    return b"".join(
        [
            view[: pixels[0].start],
            struct.pack(">I", len(body) - 4),
            body,
            bytes(4),  # Pillow does not look at this checksum; the pixels' own one follows them
            view[pixels[-1].end :],
        ]
    )


def _stored(raw: bytes) -> bytes:
    """A zlib stream of stored blocks; zlib's own level 0 copies and sums at half the speed."""
    view = memoryview(raw)
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(raw), BLOCK):
        part = view[start : start + BLOCK]
        last = start + BLOCK >= len(raw)
        parts += [struct.pack("<BHH", last, len(part), BLOCK - len(part)), part]
    parts.append(struct.pack(">I", isal_zlib.adler32(raw)))
    return b"".join(parts)
