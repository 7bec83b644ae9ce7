"""Pixels inflated ahead of Pillow: the same pixels, and the same refusals, as by Pillow alone."""

import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pngs import chunk, png_file

from xray_lightning.data import png
from xray_lightning.data.decode_resize import Gray, UnreadableImageError, decode_gray

# (colour type, bits): gray, colour, palette, gray and colour with alpha
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (3, 1), (3, 4), (3, 8), (4, 8), (6, 8)]
SIZES = [(1, 1), (1, 40), (40, 1), (33, 17), (9, 64)]


def rows(size: tuple[int, int], kind: tuple[int, int], draw: random.Random) -> bytes:
    """Random pixels, each row with a random filter before it."""
    width, height = size
    row = (width * png.CHANNELS[kind[0]] * kind[1] + 7) // 8
    return b"".join(bytes([draw.randrange(5)]) + draw.randbytes(row) for _ in range(height))


def outcome(path: Path, data: bytes) -> Gray | str:
    path.write_bytes(data)
    try:
        return decode_gray(path)
    except UnreadableImageError as error:
        return str(error)


def both_ways(path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Gray | str:
    """What comes of the file, which must be the same without ISA-L, and by Pillow alone."""
    fast = outcome(path, data)
    for name, other in (("inflate", zlib), ("inflated", lambda data, chunks: data)):
        with monkeypatch.context() as patch:
            patch.setattr(png, name, other)
            plain = outcome(path, data)
        if isinstance(plain, str):
            assert fast == plain
        else:
            np.testing.assert_array_equal(fast, plain)
    return fast


def is_inflated(data: bytes) -> bool:
    return png.inflated(data, png.checked_chunks(data)) is not data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_kind_of_png_has_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[int, int], size: tuple[int, int]
) -> None:
    draw = random.Random(0)
    for level, parts in [(0, 1), (6, 3), (9, 2)]:
        packed = zlib.compress(rows(size, kind, draw), level)
        data = png_file(packed, size=size, kind=kind, parts=parts)
        assert is_inflated(data)
        decoded = both_ways(tmp_path / "a.png", data, monkeypatch)
        assert isinstance(decoded, np.ndarray)
        assert decoded.shape == size[::-1]


def test_a_large_image_of_many_blocks_has_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    for side in (255, 256, 400):  # 65,280, 65,792 and 160,400 bytes: one block, and more
        noise = np.random.default_rng(side).integers(0, 40, (side, side), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        data = path.read_bytes()
        assert is_inflated(data)
        np.testing.assert_array_equal(both_ways(path, data, monkeypatch), noise)


def test_damage_under_right_checksums_is_refused_as_by_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(1)
    seen = {True: 0, False: 0}
    for _ in range(300):
        size = draw.choice(SIZES)
        raw = rows(size, (0, 8), draw)
        damage = draw.choice(["bits", "cut", "long", "sum", "tail"])
        if damage == "long":
            raw += draw.randbytes(2000)
        packed = bytearray(zlib.compress(raw))
        if damage == "bits":
            packed[draw.randrange(len(packed))] ^= 1 << draw.randrange(8)
        if damage == "cut":
            packed = packed[: draw.randrange(len(packed))]
        if damage == "sum":
            packed[-1] ^= 1
        if damage == "tail":
            packed += draw.randbytes(50)
        data = png_file(bytes(packed), size=size, parts=draw.choice([1, 3]))
        seen[isinstance(both_ways(tmp_path / "a.png", data, monkeypatch), str)] += 1
    assert min(seen.values()) > 50


def test_what_is_out_of_the_ordinary_is_left_to_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = zlib.compress(rows((8, 8), (0, 8), random.Random(2)))
    text = chunk(b"tEXt", b"key\0value")
    animation = chunk(b"acTL", struct.pack(">II", 1, 0))
    for data in (
        png_file(zlib.compress(bytes(79)), size=(8, 8), interlace=1),
        png_file(packed, size=(8, 8), before=animation),
        png_file(packed, size=(8, 8), parts=2, between=text),
        png_file(b"", size=(8, 8)),
    ):
        assert not is_inflated(data)
        both_ways(tmp_path / "a.png", data, monkeypatch)
    data = png_file(packed, size=(8, 8), before=text, after=text)
    assert is_inflated(data)
    assert isinstance(both_ways(tmp_path / "a.png", data, monkeypatch), np.ndarray)


def test_fault_34_pixels_that_inflate_without_end_are_not_inflated(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(200 * 2**20), 9)  # 200 MiB in 200 kB, for 64 pixels
    path = tmp_path / "a.png"
    tracemalloc.start()
    try:
        path.write_bytes(png_file(packed, size=(8, 8)))
        decode_gray(path)
        # Pillow goes by the last header, and Pillow's is the size that is looked at.
        header = png_file(packed, size=(60_000, 60_000))[8:33]
        path.write_bytes(png.START + header + png_file(packed, size=(8, 8))[8:])
        outcome(path, path.read_bytes())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 2**20


@pytest.mark.parametrize("most", [png.MOST, 0], ids=["ordinary", "huge"])
@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (33, 17), (1300, 900)], ids=str)
def test_fewer_pixels_than_stated_are_refused_rather_than_left_black(
    size: tuple[int, int],
    interlace: int,
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(png, "MOST", most)
    width, height = size
    raw = bytes(png._size(width, height, 8, interlaced=bool(interlace)))
    whole = png_file(zlib.compress(raw), size=size, interlace=interlace)
    decoded = both_ways(tmp_path / "a.png", whole, monkeypatch)
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == (height, width)
    short = png_file(zlib.compress(raw[:-1]), size=size, interlace=interlace)
    assert str(outcome(tmp_path / "a.png", short)).endswith("holds fewer pixels than it states")


def test_the_rows_of_an_interlaced_image_are_counted_as_it_is_specified() -> None:
    # By hand from the passes of 8 x 8: 1x1, 1x1, 2x1, 2x2, 4x2, 4x4, 8x4, and a byte a row.
    assert png._size(8, 8, 8, interlaced=True) == 64 + 1 + 1 + 1 + 2 + 2 + 4 + 4
    assert png._size(1, 1, 8, interlaced=True) == 2
    assert png._size(5, 1, 1, interlaced=True) == 2 + 2 + 2 + 2


def test_a_small_file_that_states_a_large_image_is_refused_at_once(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(70_000), 9)
    data = png_file(packed, size=(25, 1_310_744), kind=(0, 16))
    assert "bytes cannot hold 25 x 1310744 pixels" in str(outcome(tmp_path / "a.png", data))


def test_a_wrong_checksum_is_named_by_its_chunk() -> None:
    data = bytearray(png_file(zlib.compress(bytes(9 * 8)), size=(8, 8)))
    data[data.index(b"IDAT") + 6] ^= 1
    with pytest.raises(ValueError, match="checksum of a chunk b'IDAT'"):
        png.checked_chunks(bytes(data))
    with pytest.raises(ValueError, match="ends too soon"):
        png.checked_chunks(bytes(data[:30]))
