"""One cache on disk: a memory map of pixels, checksums of its chunks, and what it was made from.

    <cache_dir>/<key>/pixels.npy     uint8 (N, S, S), an ordinary .npy file
                      manifest.json  what it holds, and the CRC-32 of every finished chunk
                      sources.json   path, size and modification time of every image
                      lock           held by the one process that builds

A chunk is written first and recorded after, so that what is recorded is whole at every moment.
"""

import hashlib
import io
import json
import os
import random
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from xray_lightning.atomic import write_atomically
from xray_lightning.data.image_set import LAYOUT, ImageSet, key_of
from xray_lightning.data.images import DECODER_VERSION
from xray_lightning.progress import Advance

Pixels = npt.NDArray[np.uint8]

CHUNK = 64  # images that are finished, checked and lost together: 3.2 MB at 224 pixels
SAMPLE = 16  # chunks whose checksums every opening looks at: 51 MB at 224 pixels


def threads() -> int:
    """CPU threads that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


@dataclass
class CacheManifest:
    """What a cache holds, and which of its chunks are finished.

    Attributes:
        paths_sha256: digest of the paths alone, by which a stale cache of them is found.
        crc32: of each chunk's pixels, None until it is finished.
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
        """That of a cache of which nothing is finished yet."""
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
            ValueError: it is damaged, or another version's.
        """
        try:
            manifest = cls(**json.loads((folder / "manifest.json").read_bytes()))
            key = key_of(manifest.sources_sha256, manifest.image_size, manifest.decoder)
            whole = (
                (manifest.layout, manifest.chunk, manifest.key) == (LAYOUT, CHUNK, key)
                and len(manifest.crc32) == -(-manifest.images // CHUNK)
                and all(crc is None or isinstance(crc, int) for crc in manifest.crc32)
            )
        except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(str(error)) from error
        if not whole:
            raise ValueError("its entries contradict each other")
        return manifest

    def write(self, folder: Path) -> None:
        write_atomically(folder / "manifest.json", json.dumps(asdict(self)))

    @property
    def finished(self) -> list[int]:
        """The chunks that are recorded."""
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
    """The map's bytes by chunk, through plain reads and writes.

    Unlike through a mapping, a full disk or a file that was cut is an error here, and no SIGBUS.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def fault(self) -> str | None:
        """What is wrong with the file's size or head, or None."""
        if (size := os.fstat(self._file).st_size) != self.size:
            return f"pixels.npy has {size:,} bytes instead of {self.size:,}"
        if os.pread(self._file, len(self._head), 0) != self._head:
            return "the head of pixels.npy is damaged"
        return None

    def lay_out(self) -> int:
        """Give the file its size and head; returns the bytes of disk that it still lacks."""
        if self.fault() is not None:
            os.ftruncate(self._file, self.size)
            self._write(self._head, 0)
        return max(0, self.size - os.fstat(self._file).st_blocks * 512)

    def matches(self, chunk: int) -> bool:
        """Whether the chunk's pixels are those of its checksum."""
        rows = self._manifest.rows(chunk)
        content = os.pread(self._file, len(rows) * self._image_bytes, self._place(rows.start))
        return zlib.crc32(content) == self._manifest.crc32[chunk]

    def damaged(self, chunks: Sequence[int], *, advance: Advance | None = None) -> list[int]:
        """Those of the recorded chunks whose pixels are not what was written."""
        wrong = []
        with ThreadPoolExecutor(threads()) as pool:
            for chunk, right in zip(chunks, pool.map(self.matches, chunks), strict=True):
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
        """Put a chunk's pixels onto the disk, for good; returns their checksum."""
        content = pixels.data.cast("B")
        self._write(content, self._place(chunk * CHUNK))
        os.fsync(self._file)
        return zlib.crc32(content)

    def _place(self, row: int) -> int:
        return len(self._head) + row * self._image_bytes

    def _write(self, content: bytes | memoryview, place: int) -> None:
        while content:  # a nearly full disk may take a part
            written = os.pwrite(self._file, content, place)
            content, place = content[written:], place + written


@dataclass(frozen=True)
class Condition:
    """How a cache was found: `fault` is None if it can be used, else what is wrong.

    `damaged` tells what once was whole from what is not yet there.
    """

    fault: str | None
    damaged: bool = False


def condition(
    folder: Path, key: str, *, seed: int = 0, every: bool = False, advance: Advance | None = None
) -> Condition:
    """Check a cache: its key, that it is finished, its size, and the checksums of some chunks.

    Args:
        seed: draws the 16 chunks (of fewer: all) that are looked at.
        every: look at all of them.
        advance: told how many images were looked at.

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
