"""Pixels by row: each image decoded once into one uint8 memory map, or decoded again every time."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from xray_lightning.data.images import (
    DECODER_VERSION,
    UnreadableImageError,
    decode_gray,
    resize_gray,
)
from xray_lightning.errors import UserError

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
CHUNK = 256  # images in flight while a map is built: bounds the memory at any number of images


class PixelStore(Protocol):
    """Square gray images of one size, by row."""

    def __len__(self) -> int: ...

    def read(self, rows: Rows) -> Pixels:
        """The images of these rows: uint8 (len(rows), S, S)."""
        ...


def threads() -> int:
    """CPU threads that this process may use for decoding."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


class DecodingStore:
    """Decodes on every read (`data.cache=off`): nothing kept, every epoch paid again."""

    def __init__(self, paths: Sequence[str], *, image_size: int) -> None:
        self._paths = list(paths)
        self._image_size = image_size
        self._pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._paths)

    def _decode(self, row: np.int64) -> Pixels:
        return resize_gray(decode_gray(self._paths[row]), self._image_size)

    def read(self, rows: Rows) -> Pixels:
        return np.stack(list(self._pool.map(self._decode, rows)))


class MappedStore:
    """Rows of a memory map that every process on the machine shares through the page cache."""

    def __init__(self, path: Path) -> None:
        self._map: Pixels = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._map)

    def read(self, rows: Rows) -> Pixels:
        return self._map[rows]  # fancy indexing copies: the batch is ordinary memory


def cache_key(paths: Sequence[str], *, image_size: int) -> str:
    """Digest of everything that the pixels depend on: files, their state, size, decoder.

    An image that changes (size or modification time), another image size or another decoder
    gives another key, so that a stale map is never opened.
    """
    digest = hashlib.sha256(json.dumps([DECODER_VERSION, image_size]).encode())
    for path in paths:
        stat = os.stat(path)
        entry = [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
        digest.update(json.dumps(entry).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def map_path(cache_dir: Path, key: str) -> Path:
    """Where the map of this key lies once it is whole."""
    return cache_dir / key / "pixels.npy"


def build_map(
    paths: Sequence[str],
    *,
    image_size: int,
    cache_dir: Path,
    key: str,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Decode every image into the map of `key`, unless it is there; return the map's path.

    The map is written in a folder of its own that is renamed into place at the end, so that
    neither a kill nor a second builder leaves half a map under the final name.

    Raises:
        UserError: images that cannot be read, all of them counted, the first five named.
    """
    final = map_path(cache_dir, key)
    if final.exists():
        return final
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{key[:16]}.partial-", dir=cache_dir))
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir} cannot be written ({error}); choose another folder"
        ) from error
    try:
        _write_map(partial / "pixels.npy", paths, image_size=image_size, progress=progress)
        try:
            partial.rename(final.parent)
        except OSError:
            if not final.exists():  # anything but another builder that was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _write_map(
    path: Path,
    paths: Sequence[str],
    *,
    image_size: int,
    progress: Callable[[int], None] | None,
) -> None:
    shape = (len(paths), image_size, image_size)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    unreadable: list[str] = []
    for row, image in enumerate(_decoded(paths, image_size)):
        if isinstance(image, UnreadableImageError):
            unreadable.append(str(image))
        else:
            pixels[row] = image
        if progress is not None:
            progress(1)
    if unreadable:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise UserError(
            f"{len(unreadable)} of {len(paths)} images cannot be read: "
            f"{'; '.join(unreadable[:5])}{more}. Replace the files, or leave their rows out"
        )
    pixels.flush()


def _decoded(paths: Sequence[str], image_size: int) -> Iterator[Pixels | UnreadableImageError]:
    """The images in order, decoded by all cores; an unreadable one comes as its error."""

    def decode(path: str) -> Pixels | UnreadableImageError:
        try:
            return resize_gray(decode_gray(path), image_size)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(threads(), thread_name_prefix="decode") as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(decode, paths[start : start + CHUNK])
