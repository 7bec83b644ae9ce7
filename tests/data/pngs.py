"""PNG files put together by hand, right or wrong."""

import struct
import zlib

from xray_lightning.data import png


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_file(
    packed: bytes,
    *,
    size: tuple[int, int],
    kind: tuple[int, int] = (0, 8),
    parts: int = 1,
    interlace: int = 0,
    before: bytes = b"",
    between: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG put together by hand around these deflated pixels, its checksums right."""
    colour, depth = kind
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    step = max(1, -(-len(packed) // parts))
    pieces = [packed[start : start + step] for start in range(0, len(packed), step)]
    pixels = between.join(chunk(b"IDAT", piece) for piece in pieces)
    return b"".join(
        [png.START, chunk(b"IHDR", header), before, palette, pixels, after, chunk(b"IEND", b"")]
    )
