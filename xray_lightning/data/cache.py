"""Cache of decoded images: one uint8 array on disk, its checksums, and the key of its content.

<cache_dir>/<key>/pixels.npy is an ordinary npy file, uint8 (N, S, S); manifest.json beside it holds
the checksums, and sources.json the path, size and modification time of each image file."""

import hashlib
import io
import json
import os
import random
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from xray_lightning.data.decode_resize import DECODER_VERSION, read_gray
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import SIDES, Split
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import write_atomically
from xray_lightning.progress import Advance
from xray_lightning.workers import in_threads, threads

Rows = npt.NDArray[np.int64]

LAYOUT = 1  # version of the layout of a cache's files; part of every key


class ImageSet:
    """The images that a cache holds: distinct absolute paths, sorted.

    Which side of a split an image is on plays no part, so splits of the same images share a cache.
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
        """Size in bytes and modification time in ns of each file, read once and kept: (N, 2).

        Raises:
            UserError: a file is gone.
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
        """Digest of all that the pixels depend on: the files and their states, image size, decoder.

        An image that changes (in size or modification time), another image size or another
        decoder gives another key, and so do equal names in another folder.
        """
        return key_of(self.sources_sha256, image_size, DECODER_VERSION)


def images_of(manifest: Manifest, split: Split) -> ImageSet:
    """The images on all sides of a split; each of them must have a file."""
    path_of = dict(zip(manifest.table["image"], manifest.table["path"], strict=True))
    return ImageSet(path_of[image] for side in SIDES for image in split.sides[side])


def _absolute(paths: Iterable[str]) -> Iterator[str]:
    """`os.path.abspath` of each path; it is slow, and so called only once per folder."""
    folders: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.abspath(folder)
        yield os.path.join(folders[folder], name)


def state_of(path: str) -> tuple[int, int]:
    """A file's size in bytes and modification time in ns, by which a changed file is recognised."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def key_of(sources_sha256: str, image_size: int, decoder: str) -> str:
    """The key of a cache of these sources: a SHA-256 digest, 64 hexadecimal digits."""
    return hashlib.sha256(
        json.dumps([LAYOUT, decoder, image_size, sources_sha256]).encode()
    ).hexdigest()


Pixels = npt.NDArray[np.uint8]

CHUNK = 64  # images in a chunk, which has one checksum: 3.2 MB at 224 pixels
SAMPLE = 16  # chunks whose checksums are verified at every opening: 51 MB at 224 pixels


@dataclass
class CacheManifest:
    """What a cache holds, and which of its chunks are finished.

    Attributes:
        paths_sha256: digest of the paths alone, to find stale caches of the same paths.
        crc32: CRC-32 of each chunk's pixels; None until the chunk is written.
    """

    key: str
    image_size: int
    decoder: str
    images: int
    sources_sha256: str
    paths_sha256: str
    layout: int = LAYOUT
    chunk: int = CHUNK
    crc32: list[int | None] = field(default_factory=list)

    @classmethod
    def new(cls, images: ImageSet, image_size: int) -> Self:
        """The manifest of a new cache, without a finished chunk."""
        return cls(
            key=images.key(image_size),
            image_size=image_size,
            decoder=DECODER_VERSION,
            images=len(images),
            sources_sha256=images.sources_sha256,
            paths_sha256=hashlib.sha256(json.dumps(images.paths).encode()).hexdigest(),
            crc32=[None] * -(-len(images) // CHUNK),
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version of the layout.
        """
        try:
            manifest = cls(**json.loads((folder / "manifest.json").read_bytes()))
            key = key_of(manifest.sources_sha256, manifest.image_size, manifest.decoder)
            whole = (
                (manifest.layout, manifest.chunk, manifest.key) == (LAYOUT, CHUNK, key)
                and type(manifest.images) is int
                and len(manifest.crc32) == -(-manifest.images // CHUNK)
                and all(crc is None or isinstance(crc, int) for crc in manifest.crc32)
            )
        except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(str(error)) from error
        except RecursionError as error:
            raise ValueError("it is nested without end") from error
        if not whole:
            raise ValueError("its entries contradict each other")
        return manifest

    def write(self, folder: Path) -> None:
        write_atomically(folder / "manifest.json", json.dumps(asdict(self)))

    @property
    def finished(self) -> list[int]:
        """The numbers of the chunks whose checksum is recorded."""
        return [number for number, crc in enumerate(self.crc32) if crc is not None]

    def rows(self, chunk: int) -> range:
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.images))


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The head of the .npy file of a uint8 array of this shape; the pixels follow."""
    head = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, description)
    return head.getvalue()


class PixelFile:
    """The file `pixels.npy`, accessed by chunk or by image with `pread` and `pwrite`.

    With a memory map, a full disk or a truncated file would raise SIGBUS; here it is an exception.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, *, writable: bool = False) -> None:
        self._manifest = manifest
        self._image_bytes = manifest.image_size**2
        self._head = npy_header((manifest.images, manifest.image_size, manifest.image_size))
        self.size = len(self._head) + manifest.images * self._image_bytes
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._file = os.open(folder / "pixels.npy", flags, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def fault(self) -> str | None:
        """What is wrong with the file's size or head, or None."""
        if (size := os.fstat(self._file).st_size) != self.size:
            return f"pixels.npy has {size:,} bytes instead of {self.size:,}"
        if os.pread(self._file, len(self._head), 0) != self._head:
            return "the head of pixels.npy is damaged"
        return None

    def lay_out(self) -> int:
        """Set the file's size and head if they are wrong; returns the bytes not yet allocated."""
        if self.fault() is not None:
            os.ftruncate(self._file, self.size)
            self._write(self._head, 0)
        return max(0, self.size - os.fstat(self._file).st_blocks * 512)

    def matches(self, chunk: int) -> bool:
        """Whether the chunk's pixels match its recorded checksum."""
        rows = self._manifest.rows(chunk)
        content = os.pread(self._file, len(rows) * self._image_bytes, self._place(rows.start))
        return zlib.crc32(content) == self._manifest.crc32[chunk]

    def damaged(self, chunks: Sequence[int], *, advance: Advance | None = None) -> list[int]:
        """Those of these finished chunks whose pixels do not match their checksum."""
        wrong = []
        for chunk, right in zip(chunks, in_threads(self.matches, chunks), strict=True):
            if advance is not None:
                advance(len(self._manifest.rows(chunk)))
            if not right:
                wrong.append(chunk)
        return wrong

    def image(self, row: int) -> Pixels:
        """uint8 (S, S)."""
        content = os.pread(self._file, self._image_bytes, self._place(row))
        side = self._manifest.image_size
        return np.frombuffer(content, dtype=np.uint8).reshape(side, side)

    def write(self, chunk: int, pixels: Pixels) -> int:
        """Write a chunk's pixels and fsync the file; returns their checksum."""
        content = pixels.data.cast("B")
        self._write(content, self._place(chunk * CHUNK))
        os.fsync(self._file)
        return zlib.crc32(content)

    def _place(self, row: int) -> int:
        return len(self._head) + row * self._image_bytes

    def _write(self, content: bytes | memoryview, place: int) -> None:
        while content:  # pwrite may write only a part, as on a nearly full disk
            written = os.pwrite(self._file, content, place)
            content, place = content[written:], place + written


@dataclass(frozen=True)
class Condition:
    """Result of checking a cache: `fault` is None if it can be used, else what is wrong.

    `damaged` is True if files are wrong, and False if the cache is absent or unfinished.
    """

    fault: str | None
    damaged: bool = False


def condition(
    folder: Path, key: str, *, seed: int = 0, every: bool = False, advance: Advance | None = None
) -> Condition:
    """Check a cache: its key, that it is finished, its size, and the checksums of some chunks.

    Args:
        seed: seed of the random choice of 16 chunks (all, if there are fewer) to verify.
        every: verify all chunks.
        advance: told how many images were verified.

    Raises:
        OSError: it cannot be read.
    """
    try:
        manifest = CacheManifest.read(folder)
    except (FileNotFoundError, NotADirectoryError):
        return Condition("not built")
    except ValueError as error:
        return Condition(f"manifest.json is damaged ({error})", damaged=True)
    if manifest.key != key:
        return Condition("manifest.json is that of another cache", damaged=True)
    chunks = manifest.finished
    if len(chunks) < len(manifest.crc32):
        return Condition(f"unfinished ({len(chunks)} of {len(manifest.crc32)} chunks)")
    if not every:
        chunks = random.Random(f"{seed} {key}").sample(chunks, min(SAMPLE, len(chunks)))
    try:
        with PixelFile(folder, manifest) as pixels:
            fault = pixels.fault()
            wrong = [] if fault else pixels.damaged(sorted(chunks), advance=advance)
    except FileNotFoundError:
        return Condition("pixels.npy is gone", damaged=True)
    if wrong:
        fault = f"pixels.npy is damaged in {len(wrong)} of {len(chunks)} chunks looked at"
    return Condition(fault, damaged=fault is not None)


class PixelStore(Protocol):
    """Square gray images of one size, by row."""

    def __len__(self) -> int: ...

    def read(self, rows: Rows) -> Pixels:
        """The images of these rows: uint8 (len(rows), S, S)."""
        ...


class DecodingStore:
    """Decodes images on every read (`data.cache=off`) and keeps none for the next epoch."""

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
    """The pixels of a finished cache, which processes share through the machine's page cache.

    Rows are read with `preadv`, not through a memory map. Measured against fancy indexing of a map
    (50 kB rows in random order): 9 to 13 us a row in the page cache against 12 to 13, and 60 us
    against 600 on a cold disk that reads 8 MB ahead of each touched page. No page is mapped into
    this process, and a file truncated meanwhile raises an error, where a map would raise SIGBUS.

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
    """Check and open a cache built by `ensure_cache`; any number of processes may do so at once.

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
