"""The images that a cache holds, and the key that says what its pixels depend on."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xray_lightning.data.images import DECODER_VERSION
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import SIDES, Split
from xray_lightning.errors import UserError

Rows = npt.NDArray[np.int64]

LAYOUT = 1  # of a cache's files: part of every key


class ImageSet:
    """The images that a cache holds: each once, sorted, whatever side of a split they are on.

    So splits of the same images share a cache. `rows` says where it has each of them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths: list[str] = sorted(set(_absolute(paths)))

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, paths: Iterable[str]) -> Rows:
        """The row of each of these images: int64 (len(paths),)."""
        row_of = {path: row for row, path in enumerate(self.paths)}
        return np.array([row_of[path] for path in _absolute(paths)], dtype=np.int64)

    @cached_property
    def states(self) -> Rows:
        """Size in bytes and modification time in ns of each file, as first looked at: (N, 2).

        Raises:
            UserError: a file that is gone.
        """
        try:
            return np.array([state_of(path) for path in self.paths], dtype=np.int64)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; it was there before") from error

    @property
    def sources(self) -> bytes:
        """The content of `sources.json`."""
        sizes, times = self.states.T.tolist()
        return json.dumps({"paths": self.paths, "sizes": sizes, "mtimes_ns": times}).encode()

    @cached_property
    def sources_sha256(self) -> str:
        return hashlib.sha256(self.sources).hexdigest()

    def key(self, image_size: int) -> str:
        """Digest of all that the pixels depend on: the files and their state, size, decoder.

        An image that changes (in size or modification time), another image size or another
        decoder gives another key, and so do equal names in another folder.
        """
        return key_of(self.sources_sha256, image_size, DECODER_VERSION)


def images_of(manifest: Manifest, split: Split) -> ImageSet:
    """Every image of a split, whose rows all have a file."""
    path_of = dict(zip(manifest.table["image"], manifest.table["path"], strict=True))
    return ImageSet(path_of[image] for side in SIDES for image in split.sides[side])


def _absolute(paths: Iterable[str]) -> Iterator[str]:
    """`os.path.abspath` of each; that is slow, and a data set has few folders."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.abspath(folder)
        yield os.path.join(folders[folder], name)


def state_of(path: str) -> tuple[int, int]:
    """What tells a changed file: its size in bytes and its modification time in ns."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def key_of(sources_sha256: str, image_size: int, decoder: str) -> str:
    """The key of a cache of these sources: in hex, 64 digits."""
    return hashlib.sha256(
        json.dumps([LAYOUT, decoder, image_size, sources_sha256]).encode()
    ).hexdigest()
