import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_lightning.data import cache
from xray_lightning.data.cache import DecodingStore, MappedStore, build_map, cache_key, map_path
from xray_lightning.data.images import decode_gray, resize_gray
from xray_lightning.errors import UserError

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


def build(paths: list[str], folder: Path) -> Path:
    key = cache_key(paths, image_size=SIZE)
    return build_map(paths, image_size=SIZE, cache_dir=folder, key=key)


def test_the_map_holds_what_the_decoder_gives(paths: list[str], tmp_path: Path) -> None:
    mapped = MappedStore(build(paths, tmp_path / "cache"))
    direct = DecodingStore(paths, image_size=SIZE)
    rows = np.array([3, 0, 6, 3])
    expected = np.stack([resize_gray(decode_gray(paths[row]), SIZE) for row in rows])
    assert (mapped.read(rows) == expected).all()
    assert (direct.read(rows) == expected).all()
    assert len(mapped) == len(direct) == 7


def test_a_map_that_is_there_is_not_built_again(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(paths, tmp_path / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode_gray", refuse)
    assert build(paths, tmp_path / "cache") == first


def test_a_changed_image_or_size_or_decoder_gives_another_key(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache_key(paths, image_size=SIZE)
    assert cache_key(paths, image_size=SIZE + 1) != before
    assert cache_key(paths[::-1], image_size=SIZE) != before
    os.utime(paths[2], ns=(1, 1))
    after = cache_key(paths, image_size=SIZE)
    assert after != before
    monkeypatch.setattr(cache, "DECODER_VERSION", "another")
    assert cache_key(paths, image_size=SIZE) != after


def test_equal_names_under_two_roots_have_two_keys(paths: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    copies = []
    for path in paths:
        copy = other / Path(path).name
        copy.write_bytes(Path(path).read_bytes())
        os.utime(copy, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns))
        copies.append(str(copy))
    assert cache_key(copies, image_size=SIZE) != cache_key(paths, image_size=SIZE)


def test_unreadable_images_are_counted_and_named_and_leave_no_map(
    paths: list[str], tmp_path: Path
) -> None:
    Path(paths[1]).write_bytes(b"")
    Path(paths[4]).write_bytes(Path(paths[4]).read_bytes()[:100])
    with pytest.raises(UserError, match=r"2 of 7 images cannot be read.*1\.png.*4\.png"):
        build(paths, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_builder_that_dies_leaves_nothing_under_the_final_name(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "resize_gray", die)
    with pytest.raises(KeyboardInterrupt):
        build(paths, tmp_path / "cache")
    key = cache_key(paths, image_size=SIZE)
    assert not map_path(tmp_path / "cache", key).exists()


def test_of_two_builders_the_second_takes_what_the_first_has_built(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = cache_key(paths, image_size=SIZE)
    write = cache._write_map

    def be_overtaken(path: Path, *args: object, **kwargs: object) -> None:
        write(path, *args, **kwargs)  # type: ignore[arg-type]
        monkeypatch.setattr(cache, "_write_map", write)
        build(paths, tmp_path / "cache")

    monkeypatch.setattr(cache, "_write_map", be_overtaken)
    path = build(paths, tmp_path / "cache")
    assert path == map_path(tmp_path / "cache", key)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [key]
