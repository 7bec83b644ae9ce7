"""Pixels by row: what the cache serves is what the decoder gives, and its key says of what."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xray_lightning.data import cache as image_set
from xray_lightning.data.cache import DecodingStore, ImageSet, MappedStore, npy_header, open_cache
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.decode_resize import decode_gray, resize_gray
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


@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=7),
    size=st.integers(1, 24),
    further=st.data(),
)
def test_what_the_cache_serves_is_what_the_decoder_gives(
    shapes: list[tuple[int, int]],
    size: int,
    further: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, draw = tmp_path_factory.mktemp("drawn"), np.random.default_rng(len(shapes))
    paths = [str(folder / f"{place}.png") for place in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
    rows = np.array(further.draw(st.lists(st.integers(0, len(paths) - 1), min_size=1)))
    ensure_cache(ImageSet(paths), image_size=size, cache_dir=folder / "cache")
    mapped = open_cache(ImageSet(paths), image_size=size, cache_dir=folder / "cache")
    direct = DecodingStore(paths, image_size=size)
    expected = np.stack([resize_gray(decode_gray(paths[row]), size) for row in rows])
    assert (mapped.read(rows) == expected).all()
    assert (direct.read(rows) == expected).all()
    assert len(mapped) == len(direct) == len(paths)


def test_a_row_that_is_not_there_is_an_error_and_no_other_image(
    paths: list[str], tmp_path: Path
) -> None:
    mapped = opened(paths, tmp_path / "cache")
    for row in (-1, 7):
        with pytest.raises(IndexError):
            mapped.read(np.array([0, row]))
    assert mapped.read(np.array([], dtype=np.int64)).shape == (0, SIZE, SIZE)


Paths = list[str]

SAME: dict[str, Callable[[Paths], Paths]] = {
    "another order": lambda paths: paths[::-1],
    "repeats": lambda paths: [*paths, *paths[2:4]],
    "relative": lambda paths: [os.path.relpath(path) for path in paths],
    "by another way": lambda paths: [
        path.replace("/images/", "/images/../images/") for path in paths
    ],
    "read": lambda paths: [Path(path).read_bytes() and path for path in paths],
    "permissions": lambda paths: [os.chmod(path, 0o600) or path for path in paths],
}


def longer(path: str) -> None:
    """One byte more, in a file that claims to be as old as before."""
    times = os.stat(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def renamed(paths: Paths) -> Paths:
    other = str(Path(paths[1]).with_name("x.png"))
    os.rename(paths[1], other)
    return [paths[0], other, *paths[2:]]


OTHER: dict[str, Callable[[Paths], Paths]] = {
    "one less": lambda paths: paths[1:],
    "newer": lambda paths: [os.utime(path, ns=(5, 5)) or path for path in paths],
    "longer": lambda paths: [longer(paths[0]) or path for path in paths],
    "renamed": renamed,
}


@given(
    same=st.lists(st.sampled_from(sorted(SAME))),
    other=st.sampled_from(sorted(OTHER)),
    size=st.integers(1, 2000),
)
def test_the_key_changes_with_all_that_the_pixels_depend_on_and_with_nothing_else(
    same: list[str], other: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("key") / "images"
    folder.mkdir()
    before = paths = [str(folder / f"{number}.png") for number in range(5)]
    for path in paths:
        Path(path).write_bytes(b"an image")
    first = key(paths, size)
    for name in same:
        paths = SAME[name](paths)
    assert key(paths, size) == first
    assert [ImageSet(before).paths[row] for row in ImageSet(before).rows(before[::-1])] == before[
        ::-1
    ]
    assert key(paths, size + 1) != first
    assert key(OTHER[other](before), size) != first


def test_another_decoder_or_layout_gives_another_key(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key(paths)]
    for name, value in (("DECODER_VERSION", "another"), ("LAYOUT", 1000)):
        monkeypatch.setattr(image_set, name, value)
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
