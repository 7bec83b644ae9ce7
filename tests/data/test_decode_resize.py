"""The decoder gives the same gray for every mode, and refuses what is damaged or too large."""

import io
import os
import random
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL, real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pngs import chunk, png_file

from xray_lightning.data.decode_resize import (
    Gray,
    UnreadableImageError,
    decode_gray,
    read_gray,
    resize_gray,
)
from xray_lightning.errors import EXIT_USER_ERROR


@pytest.fixture
def gray() -> Gray:
    """A smooth ramp with some noise, 48 x 64, that uses the whole range."""
    ramp = np.add.outer(np.linspace(0, 140, 48), np.linspace(0, 115, 64))
    noise = np.random.default_rng(0).integers(-3, 4, ramp.shape)
    image = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    image[0, 0], image[-1, -1] = 0, 255
    return image


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode_gray(path)
    assert caught.value.exit_code == EXIT_USER_ERROR
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def with_alpha(image: Image.Image, mode: str) -> Image.Image:
    converted = image.convert(mode)
    converted.putalpha(77)
    return converted


def palette(image: Image.Image) -> Image.Image:
    """The gray image through a palette that is upside down, with one transparent entry."""
    result = Image.fromarray(255 - np.asarray(image)).convert("P")
    result.putpalette([value for level in range(256) for value in (255 - level,) * 3])
    return result


COLOURS = {
    "RGB": lambda image: image.convert("RGB"),
    "RGBA": lambda image: with_alpha(image, "RGB"),
    "LA": lambda image: with_alpha(image, "L"),
    "palette": palette,
}


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**32)


@given(shape=SHAPES, seed=SEEDS, levels=st.integers(1, 256))
def test_fault_31_32_the_same_gray_comes_out_of_every_mode(
    shape: tuple[int, int], seed: int, levels: int, tmp_path: Path
) -> None:
    noise = np.random.default_rng(seed).integers(0, levels, shape, dtype=np.uint8)
    sixteen = {"16 bit": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257)}
    for draw in ({"gray": lambda image: image} | sixteen | COLOURS).values():
        decoded = decode_gray(save(tmp_path / "a.png", draw(Image.fromarray(noise))))
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, noise)


@given(shape=SHAPES, seed=SEEDS)
def test_fault_31_sixteen_bits_are_scaled_over_their_full_range(
    shape: tuple[int, int], seed: int, tmp_path: Path
) -> None:
    wide = np.random.default_rng(seed).integers(0, 65536, shape, dtype=np.uint16)
    wide[0, 0] = 65535
    decoded = decode_gray(save(tmp_path / "a.png", Image.fromarray(wide)))
    np.testing.assert_array_equal(decoded, np.rint(wide / 257))


@pytest.mark.parametrize("transparency", [3, b"\x00\x80\xff"], ids=["index", "bytes"])
def test_fault_32_palette_transparency_is_dropped_without_a_warning(
    tmp_path: Path, gray: Gray, transparency: int | bytes
) -> None:
    image = palette(Image.fromarray(gray))
    decoded = decode_gray(save(tmp_path / "a.png", image, transparency=transparency))
    assert np.abs(decoded.astype(int) - gray).max() <= 1


def test_fault_32_one_bit_is_black_and_white(tmp_path: Path) -> None:
    pattern = np.array([[True, False, True], [False, True, False]])
    decoded = decode_gray(save(tmp_path / "a.png", Image.fromarray(pattern)))
    np.testing.assert_array_equal(decoded, np.where(pattern, 255, 0))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_fault_32_jpegs_of_every_mode_are_near_the_gray(
    tmp_path: Path, gray: Gray, mode: str
) -> None:
    smooth = np.add.outer(np.linspace(0, 140, 48), np.linspace(0, 115, 64)).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    decoded = decode_gray(save(tmp_path / "a.jpg", image, quality=100, subsampling=0))
    assert np.abs(decoded.astype(int) - smooth).max() <= 3  # JPEG's own loss


def test_the_name_does_not_decide_the_format(tmp_path: Path, gray: Gray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(gray), format="JPEG", quality=100)
    assert decode_gray(path).shape == gray.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (3, 2)])
def test_fault_33_odd_shapes_decode_and_resize(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.full(shape, 200, dtype=np.uint8)))
    resized = resize_gray(decode_gray(path), 32)
    assert resized.shape == (32, 32)
    assert (resized == 200).all()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"\n <HTML>", "web page"),
        (b"GIF89a" + bytes(100), "neither PNG, JPEG nor DICOM"),
        (bytes(100), "neither PNG, JPEG nor DICOM"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "damaged"),
    ],
)
def test_fault_30_a_file_that_is_no_image_is_refused(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert cause in refused(path)


def test_other_formats_are_not_opened(tmp_path: Path, gray: Gray) -> None:
    assert "neither" in refused(save(tmp_path / "a.png", Image.fromarray(gray), format="TIFF"))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_fault_29_a_truncated_image_is_refused(
    tmp_path: Path, gray: Gray, suffix: str, share: float
) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(gray))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


def test_fault_29_no_flipped_bit_of_a_png_changes_a_pixel(tmp_path: Path, gray: Gray) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(gray))
    good = path.read_bytes()
    draw = random.Random(0)
    refusals = 0
    for _ in range(400):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            np.testing.assert_array_equal(decode_gray(path), gray)
        except UnreadableImageError:
            refusals += 1
    assert refusals > 390


def test_fault_29_damage_never_raises_anything_else(tmp_path: Path, gray: Gray) -> None:
    draw = random.Random(1)
    for suffix in ("png", "jpg"):
        path = save(tmp_path / f"a.{suffix}", Image.fromarray(gray))
        good = path.read_bytes()
        for _ in range(200):
            data = bytearray(good[: draw.randrange(1, len(good) + 1)])
            for _ in range(draw.randrange(1, 6)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data)
            try:
                assert decode_gray(path).dtype == np.uint8
            except UnreadableImageError as error:
                assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("side", [65_000, 12_000, 9_000, 8_001, 2**31 - 1])
def test_fault_34_pixel_bombs_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_file(zlib.compress(b"\0"), size=(side, side)))
    assert f"{side} x {side} pixels; at most 64,000,000 are decoded" in refused(path)


def test_fault_34_a_jpeg_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("L", (8, 8)))
    data = path.read_bytes()
    place = data.index(b"\xff\xc0") + 5
    path.write_bytes(data[:place] + struct.pack(">HH", 65_000, 65_000) + data[place + 4 :])
    assert "65000 x 65000 pixels; at most 64,000,000" in refused(path)


def test_a_large_honest_image_is_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (4300, 4300), 9), compress_level=1)
    assert decode_gray(path).shape == (4300, 4300)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_fault_35_a_text_chunk_bomb_is_refused_or_left_packed(
    tmp_path: Path, kind: bytes, place: str
) -> None:
    import tracemalloc

    packed = zlib.compress(bytes(200 * 2**20), 9)  # 200 MiB in 200 kB
    head = b"key\0\1\0\0\0" if kind == b"iTXt" else b"key\0\0"
    bomb = chunk(kind, head + packed)
    path = tmp_path / "a.png"
    path.write_bytes(png_file(zlib.compress(b"\0\7"), size=(1, 1), **{place: bomb}))
    tracemalloc.start()
    try:
        pixels = decode_gray(path)
        assert pixels.tolist() == [[7]]
    except UnreadableImageError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * 2**20


def test_ordinary_text_chunks_are_no_bomb(tmp_path: Path, gray: Gray) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "chest " * 1000, zip=True)
    path = save(tmp_path / "a.png", Image.fromarray(gray), pnginfo=text)
    np.testing.assert_array_equal(decode_gray(path), gray)


def test_fault_36_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "a.png"
    os.mkfifo(fifo)
    assert "not a regular file" in refused(fifo)
    assert "not a regular file" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "absent.png")
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert "symbolic links" in refused(loop)


def test_a_file_of_many_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(100 * 2**30)  # sparse
    assert "at most" in refused(path)


@pytest.mark.parametrize("name", [b"-x.png", b"a\nb.png", b"\xff\xfe.png", b"=cmd.png"])
def test_fault_37_hostile_names_are_read(tmp_path: Path, gray: Gray, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(decode_gray(path), gray)


def test_bombs_in_threads_leak_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_file(zlib.compress(b"\0"), size=(12_000, 12_000)))
    caught: list[BaseException] = []

    def decode() -> None:
        try:
            decode_gray(path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test judges it
            caught.append(error)

    workers = [threading.Thread(target=decode) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [type(error) for error in caught] == [UnreadableImageError] * 8


# -- resizing --------------------------------------------------------------------------------------


def test_resizing_down_is_antialiased() -> None:
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    inner = resize_gray(stripes, 32)[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 2


def test_resizing_does_not_keep_the_aspect(gray: Gray) -> None:
    resized = resize_gray(gray, 24)
    assert resized.shape == (24, 24)
    assert resized.dtype == np.uint8
    assert abs(float(resized.mean()) - float(gray.mean())) < 1


def test_resizing_to_the_same_size_changes_nothing(gray: Gray) -> None:
    square = gray[:48, :48]
    np.testing.assert_array_equal(resize_gray(square, 48), square)


MODES = {
    "gray": lambda image: image,
    "16 bit": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 200),
    "1 bit": lambda image: image.convert("1"),
    **COLOURS,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [7, 32, 100])
def test_reading_at_a_size_equals_decoding_then_resizing(
    tmp_path: Path, gray: Gray, mode: str, size: int
) -> None:
    path = save(tmp_path / "a.png", MODES[mode](Image.fromarray(gray)))
    read = read_gray(str(path), size)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, resize_gray(decode_gray(path), size))


def test_reading_at_a_size_refuses_what_decoding_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_file(zlib.compress(b"\0"), size=(9_000, 9_000)))
    with pytest.raises(UnreadableImageError, match="9000 x 9000 pixels"):
        read_gray(path, 32)


# -- real data -------------------------------------------------------------------------------------


@real_data
def test_the_rgba_files_of_nih_are_opaque_and_gray() -> None:
    found = 0
    for path in sorted((REAL / "nih1024").rglob("*.png")):
        with Image.open(path) as image:
            if image.mode != "RGBA":
                continue
            found += 1
            bands = np.asarray(image)
        assert (bands[..., 3] == 255).all()
        np.testing.assert_array_equal(decode_gray(path), bands[..., 0])
        np.testing.assert_array_equal(bands[..., 1], bands[..., 2])
    assert found == 9
