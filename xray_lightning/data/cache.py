"""Pixels by row: each image decoded once into one uint8 memory map, or decoded again every time."""

import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from xray_lightning.data.cache_folder import Pixels, condition, npy_header, threads
from xray_lightning.data.image_set import ImageSet, Rows
from xray_lightning.data.images import read_gray
from xray_lightning.errors import RunFailedError, UserError


class PixelStore(Protocol):
    """Square gray images of one size, by row."""

    def __len__(self) -> int: ...

    def read(self, rows: Rows) -> Pixels:
        """The images of these rows: uint8 (len(rows), S, S)."""
        ...


class DecodingStore:
    """Decodes on every read (`data.cache=off`): nothing kept, every epoch paid again."""

    def __init__(self, paths: Sequence[str], *, image_size: int) -> None:
        self._paths = list(paths)
        self._image_size = image_size
        self._pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._paths)

    def _decode(self, row: np.int64) -> Pixels:
        return read_gray(self._paths[row], self._image_size)

    def read(self, rows: Rows) -> Pixels:
        return np.stack(list(self._pool.map(self._decode, rows)))


class MappedStore:
    """A memory map of pixels that every process on the machine shares through the page cache.

    Rows are read through the file, which was measured against fancy indexing of the map (50 kB
    rows in random order): 9 to 13 us a row in the page cache against 12 to 13, and 60 us against
    600 on a cold disk that reads 8 MB ahead of each touched page. It adds no page to this
    process, and a file that is cut meanwhile is an error, where a mapped page would be SIGBUS.

    Args:
        path: a .npy file of uint8 (images, image_size, image_size).
    """

    def __init__(self, path: Path, *, images: int, image_size: int) -> None:
        self._path = path
        self._shape = (images, image_size, image_size)
        self._head = len(npy_header(self._shape))
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._shape[0]

    @cached_property
    def pixels(self) -> Pixels:
        """All of them, mapped and read-only: uint8 (images, image_size, image_size)."""
        mapped: Pixels = np.load(self._path, mmap_mode="r")
        return mapped

    def read(self, rows: Rows) -> Pixels:
        """The images of these rows: uint8 (len(rows), S, S).

        Raises:
            RunFailedError: the file cannot be read any more, or was cut.
        """
        images, side, _ = self._shape
        if len(rows) and not 0 <= rows.min() <= rows.max() < images:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {images}")
        places = (self._head + rows * side**2).tolist()
        for place in places if hasattr(os, "posix_fadvise") else ():
            os.posix_fadvise(self._file, place, side**2, os.POSIX_FADV_WILLNEED)  # all at once
        batch = np.empty((len(rows), side, side), dtype=np.uint8)
        try:
            for image, place in zip(batch, places, strict=True):
                if os.preadv(self._file, [image.data], place) != side**2:
                    raise RunFailedError(f"{self._path}: the file was cut while it was read")
        except OSError as error:
            raise RunFailedError(f"{self._path}: {error.strerror}") from error
        return batch


def open_cache(images: ImageSet, *, image_size: int, cache_dir: Path, seed: int = 0) -> MappedStore:
    """Open what `ensure_cache` has built, after its checks; for any number of processes at once.

    Raises:
        UserError: there is no cache of these images in their present state, or it is damaged.
    """
    key = images.key(image_size)
    try:
        fault = condition(cache_dir / key, key, seed=seed).fault
        if fault is None:
            path = cache_dir / key / "pixels.npy"
            return MappedStore(path, images=len(images), image_size=image_size)
    except OSError as error:
        fault = f"it cannot be read ({error})"
    raise UserError(
        f"data.cache_dir={cache_dir}: the cache {key[:16]} of these {len(images):,} images: "
        f"{fault}; build it with `xray data cache`, in a folder that every node of the run sees"
    )
