"""Pixels by row: what the cache serves is what the decoder gives, and its key says of what."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_lightning.data import cache as image_set
from xray_lightning.data.cache import DecodingStore, ImageSet, MappedStore, npy_header, open_cache
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.images import decode_gray, resize_gray
from xray_lightning.errors import RunFailedError, UserError

SIZE = 16


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    generator = np.random.default_rng(0)
    names = []
    for number in range(7):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 30), dtype=np.uint8)).save(path)
        names.append(str(path))
    return names


def opened(paths: list[str], folder: Path) -> MappedStore:
    ensure_cache(ImageSet(paths), image_size=SIZE, cache_dir=folder)
    return open_cache(ImageSet(paths), image_size=SIZE, cache_dir=folder)


def key(paths: list[str], size: int = SIZE) -> str:
    return ImageSet(paths).key(size)


def test_the_map_holds_what_the_decoder_gives(paths: list[str], tmp_path: Path) -> None:
    mapped = opened(paths, tmp_path / "cache")
    direct = DecodingStore(paths, image_size=SIZE)
    rows = np.array([3, 0, 6, 3])
    expected = np.stack([resize_gray(decode_gray(paths[row]), SIZE) for row in rows])
    assert (mapped.read(rows) == expected).all()
    assert (direct.read(rows) == expected).all()
    assert len(mapped) == len(direct) == 7


def test_a_row_that_is_not_there_is_an_error_and_no_other_image(
    paths: list[str], tmp_path: Path
) -> None:
    mapped = opened(paths, tmp_path / "cache")
    for row in (-1, 7):
        with pytest.raises(IndexError):
            mapped.read(np.array([0, row]))
    assert mapped.read(np.array([], dtype=np.int64)).shape == (0, SIZE, SIZE)


def test_the_order_and_repeats_of_the_images_do_not_matter(paths: list[str]) -> None:
    shuffled = [paths[row] for row in (4, 2, 2, 0, 6, 1, 5, 3, 0)]
    assert key(shuffled) == key(paths)
    images = ImageSet(shuffled)
    assert len(images) == 7
    assert [images.paths[row] for row in images.rows(shuffled)] == shuffled


def test_a_path_may_be_relative(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = key(paths)
    monkeypatch.chdir(Path(paths[0]).parent.parent)
    relative = [f"images/{Path(path).name}" for path in paths]
    assert key(relative) == absolute
    assert ImageSet(paths).rows(relative).tolist() == list(range(7))


def test_a_changed_image_or_size_or_decoder_or_layout_gives_another_key(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key(paths), key(paths, SIZE + 1), key(paths[1:])]
    os.utime(paths[2], ns=(1, 1))
    keys.append(key(paths))
    Path(paths[3]).write_bytes(Path(paths[3]).read_bytes() + b"\0")
    os.utime(paths[3], ns=(1, 1))
    keys.append(key(paths))
    monkeypatch.setattr(image_set, "DECODER_VERSION", "another")
    keys.append(key(paths))
    monkeypatch.setattr(image_set, "LAYOUT", 1000)
    keys.append(key(paths))
    assert len(set(keys)) == len(keys)
    assert {len(one) for one in keys} == {64}


def test_fault_48_equal_names_under_two_roots_have_two_caches(
    paths: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    copies = []
    for path in paths:  # as alike as two files can be, except for their pixels
        copy = other / Path(path).name
        copy.write_bytes(Path(path).read_bytes())
        copies.append(str(copy))
    Image.fromarray(255 - decode_gray(paths[0])).save(copies[0])
    for path, copy in zip(paths, copies, strict=True):
        for file in (path, copy):
            os.utime(file, ns=(1, 1))
    assert key(copies) != key(paths)
    one, two = opened(paths, tmp_path / "cache"), opened(copies, tmp_path / "cache")
    rows = np.arange(7)
    for store, files in ((one, paths), (two, copies)):
        expected = np.stack([resize_gray(decode_gray(file), SIZE) for file in files])
        assert (store.read(rows) == expected).all()
    assert (one.read(rows[:1]) != two.read(rows[:1])).any()


def test_a_cache_that_is_not_built_is_refused_by_its_folder(
    paths: list[str], tmp_path: Path
) -> None:
    images = ImageSet(paths)
    with pytest.raises(UserError, match=r"data\.cache_dir=.*of these 7 images: not built"):
        open_cache(images, image_size=SIZE, cache_dir=tmp_path)
    (tmp_path / images.key(SIZE) / "manifest.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"it cannot be read \(.*Is a directory"):
        open_cache(images, image_size=SIZE, cache_dir=tmp_path)


def test_an_image_that_is_gone_is_named(paths: list[str]) -> None:
    images = ImageSet(paths)
    Path(paths[4]).unlink()
    with pytest.raises(UserError, match=r"4\.png: No such file"):
        images.key(SIZE)


def test_fault_45_a_file_that_is_cut_while_it_is_read_is_an_error(
    paths: list[str], tmp_path: Path
) -> None:
    mapped = opened(paths, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*/pixels.npy")
    os.truncate(file, file.stat().st_size - 1)
    assert mapped.read(np.arange(6)).shape[0] == 6
    with pytest.raises(RunFailedError, match=r"pixels\.npy: the file was cut"):
        mapped.read(np.array([6]))
    with pytest.raises(RunFailedError, match=f"{tmp_path}: Is a directory"):
        MappedStore(tmp_path, images=7, image_size=SIZE).read(np.array([6]))


def test_the_head_is_that_of_a_npy_file(tmp_path: Path) -> None:
    shape = (112_120, 224, 224)
    path = tmp_path / "pixels.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)  # sparse
    with path.open("rb") as file:
        assert file.read(len(npy_header(shape))) == npy_header(shape)
    assert path.stat().st_size == len(npy_header(shape)) + 112_120 * 224 * 224


READ_A_LOT = """
import sys, zlib
from functools import cache
from pathlib import Path
import numpy as np
from xray_lightning.data.cache import CacheManifest, ImageSet, PixelFile, open_cache

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) // 1024

before = private()
images = ImageSet(f"/images/{number:08}_000.png" for number in range(112_120))
images.states = np.ones((112_120, 2), dtype=np.int64)  # those of files that are not there
folder = Path(sys.argv[1]) / images.key(224)
folder.mkdir()
manifest = CacheManifest.new(images, 224)
black = cache(lambda rows: zlib.crc32(bytes(224 * 224 * rows)))
manifest.crc32 = [black(len(manifest.rows(chunk))) for chunk in range(len(manifest.crc32))]
with PixelFile(folder, manifest, writable=True) as pixels:
    pixels.lay_out()
manifest.write(folder)
store = open_cache(images, image_size=224, cache_dir=folder.parent)
rows = np.random.default_rng(0).permutation(112_120)[:6400]
for start in range(0, len(rows), 32):
    assert not store.read(rows[start : start + 32]).any()
print(pixels.size, len(store), private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps")
def test_reading_a_map_of_6_gb_takes_under_100_mb_of_private_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_A_LOT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    size, images, megabytes = map(int, done.stdout.split())
    assert (images, size) == (112_120, 128 + 112_120 * 224 * 224)
    assert 0 < megabytes < 100  # of 321 MB that were read


def test_fault_37_hostile_names_are_names_like_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = []
    for number, name in enumerate((b"-x.png", b"a\nb.png", b"\xff\xfe.png", b" .png", b'"\\.png')):
        path = os.path.join(os.fsencode(tmp_path), name)
        Image.fromarray(np.full((20, 20), number, dtype=np.uint8)).save(os.fsdecode(path), "PNG")
        paths.append(os.fsdecode(path))
    store = opened(paths, tmp_path / "cache")
    read = store.read(ImageSet(paths).rows(paths))
    assert read[:, 0, 0].tolist() == list(range(5))
    os.utime(paths[2], ns=(1, 1))
    built = ensure_cache(ImageSet(paths), image_size=SIZE, cache_dir=tmp_path / "cache")
    assert (built.decoded, built.copied) == (1, 4)
    assert "udcff\\udcfe.png" in caplog.text  # spelled out: a log is UTF-8
    caplog.text.encode()
