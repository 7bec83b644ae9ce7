"""Chunks of a PNG: their checksums verified, and the pixels inflated faster than by Pillow."""

import struct
import zlib
from importlib import import_module
from typing import Any, NamedTuple

try:
    inflate: Any = import_module("isal.isal_zlib")  # its stubs make `error` no exception type
except ImportError:  # no wheel for this platform; zlib gives the same result, more slowly
    inflate = zlib

START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type (PNG specification, section 11.2.1)
MOST = 64 * 2**20  # bytes; more are left to Pillow: three times a radiograph of 4,300 x 4,300
DENSEST = 1032  # most bytes that one byte of deflate may inflate to (zlib's technical details)
PASSES = (  # of Adam7: first column, first row, steps between them (section 8.2)
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
BLOCK = 65_535  # bytes in a stored block of deflate (RFC 1951, section 3.2.4)


FEWER = "it holds fewer pixels than it states"


class Chunk(NamedTuple):
    name: bytes
    start: int  # offset in the file of its first field, the length
    end: int  # offset after its last field, the checksum


def checked_chunks(data: bytes) -> list[Chunk]:
    """The chunks of a PNG before IEND, each checked against its CRC-32.

    Decoding does not verify them: decoders stop at the last pixel, and Pillow ignores IDAT's CRCs.

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
    """The same PNG with its pixels stored instead of deflated, unless it is out of the ordinary.

    Intel's ISA-L inflates a radiograph in a third of the time that Pillow takes with zlib, row by
    row; Pillow still undoes the filters. The pixels stay the same: no difference on any of 2,338
    NIH images. Decoding those at 1024 x 1024 and resizing them to 224 is 1.2 times as fast in one
    thread and 1.1 times in two (`benchmarks/decoders.json`, which compares other decoders, too).

    Args:
        data: a file whose chunks `checked_chunks` has verified, and whose width and height are
            within the decoder's limits.

    Returns:
        The new file; or `data` itself if it is interlaced, animated, huge or damaged, which is
        left to Pillow.

    Raises:
        ValueError: it holds fewer pixels than it states; Pillow would leave the rest black.
    """
    pixels = [chunk for chunk in chunks if chunk.name == b"IDAT"]
    names = {chunk.name for chunk in chunks}
    together = pixels and sum(chunk.end - chunk.start for chunk in pixels) == (
        pixels[-1].end - pixels[0].start
    )
    if not together or b"acTL" in names:
        return data
    width, height, depth, colour, *_, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if colour not in CHANNELS:
        return data
    size = _size(width, height, CHANNELS[colour] * depth, interlaced=bool(interlace))
    view = memoryview(data)
    packed = b"".join([view[chunk.start + 8 : chunk.end - 4] for chunk in pixels])
    if size > DENSEST * len(packed):
        raise ValueError(f"{len(packed)} bytes cannot hold {width} x {height} pixels")
    if interlace or size > MOST:
        _check_length(packed, size)
        return data
    inflater = inflate.decompressobj()
    try:
        raw = inflater.decompress(packed, size + 1)
    except inflate.error:
        return data
    if inflater.eof and len(raw) < size:
        raise ValueError(FEWER)
    if len(raw) != size or not inflater.eof:
        return data
    body = b"IDAT" + _stored(raw)
    return b"".join(
        [
            view[: pixels[0].start],
            struct.pack(">I", len(body) - 4),
            body,
            bytes(4),  # the chunk's CRC, which Pillow ignores; the zlib stream has its own checksum
            view[pixels[-1].end :],
        ]
    )


def _size(width: int, height: int, bits: int, *, interlaced: bool) -> int:
    """Bytes of an image's inflated rows, each with its filter byte."""
    size = 0
    for left, top, across, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * bits + 7) // 8)
    return size


def _check_length(packed: bytes, size: int) -> None:
    """Refuse a complete stream that inflates to fewer than `size` bytes, in constant memory."""
    inflater = zlib.decompressobj()
    held = 0
    try:
        while held < size and not inflater.eof:
            part = inflater.decompress(packed, 2**20)
            packed = inflater.unconsumed_tail
            held += len(part)
            if not part and not packed:
                return  # truncated, which Pillow reports
    except zlib.error:
        return
    if held < size:
        raise ValueError(FEWER)


def _stored(raw: bytes) -> bytes:
    """A zlib stream of stored blocks, made twice as fast as by zlib's level 0."""
    view = memoryview(raw)
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(raw), BLOCK):
        part = view[start : start + BLOCK]
        last = start + BLOCK >= len(raw)
        parts += [struct.pack("<BHH", last, len(part), BLOCK - len(part)), part]
    parts.append(struct.pack(">I", inflate.adler32(raw)))
    return b"".join(parts)
