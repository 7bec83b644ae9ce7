"""Building a cache, and all that can end it halfway. The numbers are the fault matrix's.

Builders that are to die are real processes, forked from a server that has imported all they need.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from xray_lightning.data import cache, cache_build
from xray_lightning.data.cache import CHUNK, CacheManifest, ImageSet, open_cache
from xray_lightning.data.cache_build import Built, ensure_cache
from xray_lightning.data.decode_resize import read_gray
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.progress import Display

SIZE = 16
FILES = ["lock", "manifest.json", "pixels.npy", "sources.json"]

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["pytest", "filelock", "xray_lightning.data.cache", "xray_lightning.data.cache_build"]
)


def draw(folder: Path, images: int) -> list[str]:
    """Images of noise, in the order of their names."""
    folder.mkdir()
    generator = np.random.default_rng(images)
    paths = [str(folder / f"{number:04}.png") for number in range(images)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (24, 20), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three chunks, the last of them not full."""
    return draw(tmp_path / "images", 2 * CHUNK + 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def build(paths: list[str], folder: Path, **further: Any) -> Built:
    return ensure_cache(ImageSet(paths), image_size=SIZE, cache_dir=folder, **further)


def decoded(paths: list[str]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([read_gray(path, SIZE) for path in paths])


def served(paths: list[str], folder: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    images = ImageSet(paths)
    return open_cache(images, image_size=SIZE, cache_dir=folder).read(images.rows(paths))


def only(folder: Path) -> Path:
    (one,) = folder.iterdir()
    return one


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def overwrite(path: str, content: bytes | None = None) -> None:
    """Replace an image's bytes, by zeros unless others are given, without a trace in its state.

    Whoever decodes zeros will tell.
    """
    state = os.stat(path)
    with open(path, "r+b") as file:
        file.write(content or bytes(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


# -- building -------------------------------------------------------------------------------------


def test_a_cache_is_built_once(paths: list[str], folder: Path) -> None:
    built = build(paths, folder)
    assert (built.folder, built.decoded, built.copied) == (only(folder), len(paths), 0)
    assert (served(paths, folder) == decoded(paths)).all()
    assert (np.load(built.folder / "pixels.npy") == decoded(paths)).all()
    assert sorted(os.listdir(built.folder)) == FILES
    for path in paths:
        overwrite(path)
    assert build(paths, folder) == Built(built.folder)


def test_the_display_counts_the_images_that_are_decoded(paths: list[str], folder: Path) -> None:
    shown: list[list[Any]] = []

    @contextmanager
    def progress(title: str, images: int) -> Iterator[Callable[[int], None]]:
        work = [title, images, 0]
        shown.append(work)

        def advance(done: int) -> None:
            work[2] += done

        yield advance

    built = build(paths, folder, progress=progress)
    assert shown.pop() == ["decoding images", 138, 138]
    flip(built.folder / "pixels.npy", 5000)
    build(paths, folder, progress=progress)
    assert shown == [["checking decoded images", 138, 138], ["decoding images", 64, 64]]
    del shown[:]
    build(paths, folder, progress=progress, verify=True)
    assert shown == [["checking decoded images", 138, 138]]


def test_unreadable_images_are_counted_and_named_and_cost_their_chunk_alone(
    paths: list[str], folder: Path
) -> None:
    bad = [paths[row] for row in (70, 71, 72, 80, 90, 100)]
    good = [Path(path).read_bytes() for path in bad]
    for path in bad:
        Path(path).write_bytes(b"<html>")
    with pytest.raises(UserError) as told:
        build(paths, folder)
    assert "6 of 138 images cannot be read" in str(told.value)
    assert "and 1 more" in str(told.value)
    assert [Path(path).name in str(told.value) for path in bad] == [True] * 5 + [False]
    assert CacheManifest.read(only(folder)).finished == [0, 2]
    with pytest.raises(UserError, match=r"unfinished \(2 of 3 chunks\)"):
        served(paths, folder)
    for path, content in zip(bad, good, strict=True):
        Path(path).write_bytes(content)
    built = build(paths, folder)
    assert (built.decoded, built.copied) == (CHUNK, len(paths) - CHUNK)
    assert (served(paths, folder) == decoded(paths)).all()


def test_leaving_unreadable_images_out_keeps_what_is_decoded(
    paths: list[str], folder: Path
) -> None:
    Path(paths[70]).write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 138 images cannot be read.*0070\.png"):
        build(paths, folder)
    rest = paths[:70] + paths[71:]
    built = build(rest, folder)
    assert (built.decoded, built.copied) == (CHUNK - 1, len(paths) - CHUNK)
    assert (served(rest, folder) == decoded(rest)).all()


def test_an_image_that_changes_while_it_is_decoded_is_refused(
    paths: list[str], folder: Path
) -> None:
    @contextmanager
    def progress(title: str, images: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: os.utime(paths[3], ns=(1, 1))

    with pytest.raises(UserError, match=r"0003\.png changed while it was decoded"):
        build(paths, folder, progress=progress)
    assert CacheManifest.read(only(folder)).finished == []


@pytest.mark.parametrize("umask", [0o007, 0o022, 0o077])
def test_folders_and_pixels_have_the_permissions_of_the_umask(
    umask: int, paths: list[str], folder: Path
) -> None:
    before = os.umask(umask)
    try:
        built = build(paths[:5], folder)
    finally:
        os.umask(before)
    assert (built.folder.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (
        0o777 & ~umask,
        0o777 & ~umask,
    )
    assert (built.folder / "pixels.npy").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (built.folder / "lock").stat().st_mode & 0o777 == 0o666 & ~umask


# -- damage ---------------------------------------------------------------------------------------


def cut(file: Path, share: float = 0.6) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def flip_pixel(file: Path) -> None:
    flip(file, 128 + 100 * SIZE * SIZE)


@pytest.mark.parametrize(
    "damage, told, chunks",
    [
        (cut, "pixels.npy has 21,273 bytes instead of 35,456", 2),
        (lambda file: cut(file, 0), "pixels.npy has 0 bytes", 3),
        (lambda file: os.truncate(file, 35_457), "pixels.npy has 35,457 bytes", 0),
        (Path.unlink, "pixels.npy is gone", 3),
        (lambda file: flip(file, 9), "the head of pixels.npy is damaged", 0),
        (flip_pixel, "pixels.npy is damaged in 1 of 3 chunks looked at", 1),
    ],
)
def test_fault_45_a_damaged_map_is_named_never_served_and_rebuilt(
    damage: Callable[[Path], None],
    told: str,
    chunks: int,
    paths: list[str],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = decoded(paths)
    built = build(paths, folder)
    damage(built.folder / "pixels.npy")
    with pytest.raises(UserError, match=told):
        served(paths, folder)
    again = build(paths, folder)
    assert -(-again.decoded // CHUNK) == chunks  # no more than is damaged
    (line,) = caplog.messages
    assert line == f"{built.folder}: {line.split(': ')[1]}"
    assert told in line
    assert f"{chunks} of 3 chunks are decoded again" in line
    assert (served(paths, folder) == whole).all()


def test_fault_45_verifying_finds_what_a_sample_can_miss(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAMPLE", 0)
    built = build(paths, folder)
    flip_pixel(built.folder / "pixels.npy")
    assert build(paths, folder).decoded == 0
    assert build(paths, folder, verify=True).decoded == CHUNK
    assert (served(paths, folder) == decoded(paths)).all()


def test_fault_45_another_seed_looks_at_other_chunks(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAMPLE", 1)
    built = build(paths, folder)
    flip_pixel(built.folder / "pixels.npy")
    found = [cache.condition(built.folder, built.folder.name, seed=s) for s in range(20)]
    assert {one.damaged for one in found} == {True, False}


MANIFESTS = {
    "nothing": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "no json": lambda text: "\0" * 100,
    "a list": lambda text: "[]",
    "a field less": lambda text: json.dumps({**json.loads(text), "chunk": None}),
    "a chunk less": lambda text: json.dumps({**json.loads(text), "crc32": [1, 2]}),
    "another size": lambda text: json.dumps({**json.loads(text), "image_size": 17}),
    "another layout": lambda text: json.dumps({**json.loads(text), "layout": 0}),
    "no whole number": lambda text: json.dumps({**json.loads(text), "images": 138.0}),
    "nested without end": lambda text: "[" * 100_000,
    "not utf-8": lambda text: b"\xff\xfe{",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_fault_45_a_damaged_manifest_is_named_and_rebuilt(
    kind: str, paths: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = build(paths, folder).folder / "manifest.json"
    content = MANIFESTS[kind](manifest.read_text())
    manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        served(paths, folder)
    assert build(paths, folder).decoded == len(paths)
    (line,) = caplog.messages
    assert "manifest.json is damaged" in line
    assert (served(paths, folder) == decoded(paths)).all()


def test_fault_45_the_manifest_of_another_cache_is_refused(paths: list[str], folder: Path) -> None:
    one, two = build(paths, folder).folder, build(paths[:CHUNK], folder).folder
    shutil.copy(one / "manifest.json", two)
    with pytest.raises(UserError, match="that of another cache"):
        served(paths[:CHUNK], folder)
    build(paths[:CHUNK], folder)
    assert (served(paths[:CHUNK], folder) == decoded(paths[:CHUNK])).all()


# -- stale caches ---------------------------------------------------------------------------------


def test_fault_46_a_changed_image_makes_a_cache_stale_and_is_decoded_alone(
    paths: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = build(paths, folder).folder
    Image.fromarray(np.full((30, 30), 9, dtype=np.uint8)).save(paths[77])
    for path in paths[:77]:
        overwrite(path)
    built = build(paths, folder)
    assert (built.decoded, built.copied) == (1, len(paths) - 1)
    (line,) = caplog.messages
    assert line.startswith(f"{old} is stale (1 of 138 images changed, the first {paths[77]})")
    assert line.endswith(f"{built.folder.name} takes its place")
    assert only(folder) == built.folder
    assert (served(paths, folder)[77] == 9).all()


def test_fault_46_another_decoder_decodes_everything_again(
    paths: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache, "DECODER_VERSION", "older")
    build(paths, folder)
    monkeypatch.undo()
    assert build(paths, folder).decoded == len(paths)
    (line,) = caplog.messages
    assert "is stale (made by decoder older, not " in line
    assert len(list(folder.iterdir())) == 1


def test_fault_46_an_open_stale_cache_still_serves_its_reader(
    paths: list[str], folder: Path
) -> None:
    images, before = ImageSet(paths), decoded(paths)
    build(paths, folder)
    store = open_cache(images, image_size=SIZE, cache_dir=folder)
    Image.fromarray(np.zeros((30, 30), dtype=np.uint8)).save(paths[1])
    build(paths, folder)
    assert (store.read(images.rows(paths)) == before).all()


def test_fault_46_a_stale_cache_that_is_being_built_is_left_alone(
    paths: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = build(paths, folder).folder
    os.utime(paths[0], ns=(1, 1))
    with FileLock(old / "lock"):
        build(paths, folder)
    assert len(list(folder.iterdir())) == 2
    assert "could not be removed" in caplog.messages[-1]


def test_a_cache_of_other_images_lends_what_both_hold_and_stays(
    paths: list[str], folder: Path
) -> None:
    build(paths[:100], folder)
    for path in paths[50:100]:
        overwrite(path)
    built = build(paths[50:], folder)
    assert (built.decoded, built.copied) == (38, 50)
    assert len(list(folder.iterdir())) == 2
    assert (served(paths[50:], folder)[50:] == decoded(paths[100:])).all()
    assert (served(paths[50:], folder)[:50] == served(paths[:100], folder)[50:]).all()


def test_fault_45_damage_in_an_unfinished_map_is_named_and_decoded_again(
    paths: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = Path(paths[130]).read_bytes()
    overwrite(paths[130])
    with pytest.raises(UserError, match="1 of 138 images"):
        build(paths, folder)
    overwrite(paths[130], good)
    flip_pixel(only(folder) / "pixels.npy")
    (only(folder) / ".manifest.json.halfdone").touch()  # of a process that was killed as it wrote
    assert build(paths, folder).decoded == len(paths) - CHUNK
    assert sorted(os.listdir(only(folder))) == FILES
    (line,) = caplog.messages
    assert line.endswith(
        "pixels.npy is damaged in 1 finished chunks; 2 of 3 chunks are decoded again"
    )
    assert (served(paths, folder) == decoded(paths)).all()


def rewritten(lender: Path, sources: str) -> Path:
    """A cache with another list of sources, under the key and digest that belong to it."""
    manifest = CacheManifest.read(lender)
    manifest.sources_sha256 = hashlib.sha256(sources.encode()).hexdigest()
    manifest.key = cache.key_of(manifest.sources_sha256, SIZE, manifest.decoder)
    manifest.write(lender)
    (lender / "sources.json").write_text(sources)
    return lender.rename(lender.with_name(manifest.key))


@pytest.mark.parametrize("damage", ["pixels", "sources", "no list", "nested", "size"])
def test_fault_45_a_damaged_cache_lends_nothing(
    damage: str, paths: list[str], folder: Path
) -> None:
    lender = build(paths[:CHUNK], folder).folder
    if damage == "pixels":
        flip(lender / "pixels.npy", 5000)
    elif damage == "sources":
        flip(lender / "sources.json", 50)
    elif damage in ("no list", "nested"):
        lender = rewritten(lender, "[]" if damage == "no list" else "[" * 10**5)
    else:
        cut(lender / "pixels.npy")
    built = build(paths, folder)
    assert (built.decoded, built.copied) == (len(paths), 0)
    assert (served(paths, folder) == decoded(paths)).all()


# -- processes ------------------------------------------------------------------------------------


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = server.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def setting(building: Any) -> Display:
    """A display that sets an event when work begins."""

    @contextmanager
    def progress(title: str, images: int) -> Iterator[Callable[[int], None]]:
        building.set()
        yield lambda done: None

    return progress


def build_and_tell(paths: list[str], folder: Path, building: Any, told: Any) -> None:
    """A builder: sets `building` when it decodes; puts what it built and logged."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger().addHandler(Kept())

    try:
        told.put((build(paths, folder, progress=setting(building)).decoded, lines))
    except UserError as error:
        told.put((-1, [str(error)]))


def test_fault_47_of_two_builders_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    paths, folder = draw(tmp_path / "images", 20 * CHUNK), tmp_path / "cache"
    building, other_building, told = server.Event(), server.Event(), server.Queue()
    first = start(build_and_tell, paths, folder, building, told)
    assert building.wait(60)
    second = start(build_and_tell, paths, folder, other_building, told)
    (one, quiet), (other, waiting) = sorted((told.get(timeout=60) for _ in range(2)), reverse=True)
    for process in (first, second):
        process.join(60)
    assert (one, other) == (len(paths), 0)
    assert not other_building.is_set()
    assert quiet == []
    assert len(waiting) <= 1  # the first may have been done before the second began
    assert all("another process is building this cache; waiting" in line for line in waiting)
    assert (served(paths, folder) == decoded(paths)).all()
    assert sorted(os.listdir(only(folder))) == FILES


def test_fault_47_a_builder_that_must_wait_says_so_and_takes_what_the_other_has_built(
    paths: list[str], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = build(paths, tmp_path / "elsewhere").folder
    ours = folder / whole.name
    ours.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        with FileLock(ours / "lock"):
            built = pool.submit(build, paths, folder)
            while not caplog.messages and not built.done():
                sleep(0.01)
            for name in ("pixels.npy", "sources.json", "manifest.json"):
                shutil.copy(whole / name, ours)
        assert built.result(60) == Built(ours)
    (line,) = caplog.messages
    assert line == f"{ours}: another process is building this cache; waiting for it"


def test_fault_47_builders_without_a_lock_fail_rather_than_store_a_wrong_pixel(
    tmp_path: Path,
) -> None:
    """As on a shared folder whose file system does not pass the lock on."""
    paths, folder = draw(tmp_path / "images", 20 * CHUNK), tmp_path / "cache"
    told = server.Queue()
    builders = [start(build_unlocked, paths, folder, told) for _ in range(2)]
    assert {told.get(timeout=60) for _ in builders} <= {"built", "told in one line"}
    for process in builders:
        process.join(60)
    build(paths, folder)
    assert (served(paths, folder) == decoded(paths)).all()


def build_unlocked(paths: list[str], folder: Path, told: Any) -> None:
    @contextmanager
    def unlocked(folder: Path) -> Iterator[None]:
        yield

    cache_build._locked = unlocked
    try:
        build(paths, folder)
        told.put("built")
    except UserError:
        told.put("told in one line")


def build_slowly(paths: list[str], folder: Path, building: Any) -> None:
    """A builder that sets `building` when it decodes."""
    build(paths, folder, progress=setting(building))


def test_fault_47_killed_20_times_at_random_a_build_loses_no_chunk_and_no_pixel(
    tmp_path: Path,
) -> None:
    paths, folder = draw(tmp_path / "images", 24 * CHUNK), tmp_path / "cache"
    originals = {path: Path(path).read_bytes() for path in paths}
    expected = decoded(paths)
    moments = random.Random(47)
    kills = 0
    finished: set[int] = set()
    while kills < 20:
        building = server.Event()
        process = start(build_slowly, paths, folder, building)
        assert building.wait(60)
        process.join(moments.uniform(0, 0.12))
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        kills += process.exitcode == -9
        manifest = CacheManifest.read(only(folder))
        assert finished <= set(manifest.finished)  # nothing is lost
        pixels = np.load(only(folder) / "pixels.npy", mmap_mode="r")
        for chunk in manifest.finished:
            rows = manifest.rows(chunk)
            assert (pixels[rows] == expected[rows]).all()
            for row in rows if chunk not in finished else ():
                overwrite(paths[row])  # nor may it be decoded again
        finished = set(manifest.finished)
        if process.exitcode == 0:  # it was faster: start afresh
            assert (served(paths, folder) == expected).all()
            shutil.rmtree(folder)
            finished = set()
            for path, content in originals.items():
                overwrite(path, content)
    build(paths, folder)
    assert (served(paths, folder) == expected).all()
    assert sorted(os.listdir(only(folder))) == FILES


def build_until_call(paths: list[str], folder: Path, calls: int) -> None:
    """A builder that dies in its n-th call that changes the disk, half of a write done."""
    left = calls

    def deadly(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    file, content, place = arguments
                    real(file, content[: len(content) // 2], place)
                os._exit(9)
            return real(*arguments)

        setattr(os, name, call)

    for name in ("mkdir", "ftruncate", "pwrite", "fsync", "chmod", "replace"):
        deadly(name)
    build(paths, folder)


def test_fault_47_killed_at_any_call_a_build_is_finished_by_the_next(
    paths: list[str], folder: Path
) -> None:
    expected = decoded(paths)
    calls, exit_code = 0, 9
    while exit_code == 9:
        calls += 1
        shutil.rmtree(folder, ignore_errors=True)
        process = start(build_until_call, paths, folder, calls)
        process.join(60)
        exit_code = process.exitcode or 0
        recorded = 0
        if exit_code and (manifests := list(folder.glob("*/manifest.json"))):
            recorded = len(CacheManifest.read(manifests[0].parent).finished)
            if recorded < 3:
                with pytest.raises(UserError, match="unfinished"):
                    served(paths, folder)
        if exit_code:
            built = build(paths, folder)
            assert built.decoded == max(0, len(paths) - recorded * CHUNK)
        assert (served(paths, folder) == expected).all()
        assert sorted(os.listdir(only(folder))) == FILES
    assert exit_code == 0
    assert calls > 15


# -- storage --------------------------------------------------------------------------------------


def test_fault_15_a_file_size_limit_is_one_line_and_leaves_nothing_to_use(
    paths: list[str], folder: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunFailedError, match=r"data\.cache_dir=.*File too large; make room"):
            build(paths, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match="unfinished"):
        served(paths, folder)
    assert build(paths, folder).decoded == len(paths)


def in_own_mounts(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount; what it mounts is gone when it ends."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root, to mount")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    command = ["unshare", "-m", "sh", "-e", "-c", script, "sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


FILL_THE_DISK = """
import sys
from contextlib import contextmanager
from pathlib import Path
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.cache import CHUNK
from xray_lightning.data.cache import ImageSet
from xray_lightning.errors import RunFailedError

images, disk, done = ImageSet(map(str, Path(sys.argv[1]).iterdir())), Path(sys.argv[2]), 0

@contextmanager
def progress(title, number):
    def advance(count):  # another process fills the disk after the first chunk
        global done
        done += count
        if done == CHUNK + 1:
            with (disk / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
    yield advance

try:
    ensure_cache(images, image_size=224, cache_dir=disk / "cache", progress=progress)
except RunFailedError as error:
    print(error)
(disk / "filler").unlink()
print(ensure_cache(images, image_size=224, cache_dir=disk / "cache").decoded)
"""


def test_fault_14_a_disk_that_fills_is_one_line_and_what_is_finished_is_kept(
    paths: list[str], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    images = str(Path(paths[0]).parent)
    mounted = 'mount -t tmpfs -o size=12m tmpfs "$2"; exec "$3" -c "$4" "$1" "$2"'
    done = in_own_mounts(mounted, images, str(tmp_path / "disk"), sys.executable, FILL_THE_DISK)
    assert done.returncode == 0, done.stderr
    told, again = done.stdout.splitlines()
    assert "No space left on device; make room or choose another folder" in told
    assert int(again) == len(paths) - CHUNK


def test_fault_14_a_disk_that_is_too_small_is_told_before_anything_is_decoded(
    paths: list[str], folder: Path
) -> None:
    for path in paths:
        overwrite(path)
    with pytest.raises(
        RunFailedError, match=r"the cache needs 7696\.58 GB more, .* are free; make"
    ):
        ensure_cache(ImageSet(paths[:7]), image_size=2**20, cache_dir=folder)


def test_fault_16_a_folder_that_cannot_be_made_is_told(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cannot be written.*Not a directory"):
        build(paths, tmp_path / "file" / "cache")


READ_ONLY = """
import sys
from pathlib import Path
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.cache import ImageSet
from xray_lightning.errors import UserError

paths = sorted(map(str, Path(sys.argv[1]).iterdir()))
for images in (paths, paths[1:]):
    try:
        built = ensure_cache(ImageSet(images), image_size=16, cache_dir=Path(sys.argv[2]))
        print(built.decoded)
    except UserError as error:
        print(error)
"""


def test_fault_16_a_read_only_folder_serves_what_it_holds_and_refuses_the_rest(
    paths: list[str], folder: Path
) -> None:
    build(paths, folder)
    mounted = 'mount --bind "$2" "$2"; mount -o remount,ro,bind "$2"; exec "$3" -c "$4" "$1" "$2"'
    images = str(Path(paths[0]).parent)
    done = in_own_mounts(mounted, images, str(folder), sys.executable, READ_ONLY)
    assert done.returncode == 0, done.stderr
    there, refused = done.stdout.splitlines()
    assert there == "0"
    assert refused.startswith(f"data.cache_dir={folder} cannot be written (")
    assert refused.endswith("; choose another folder")
