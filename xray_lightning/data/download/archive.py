"""A tar.gz of images, unpacked file by file: only regular files, and only inside the folder."""

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from xray_lightning.data.csv_table import shown
from xray_lightning.data.image_files import IMAGE_SUFFIXES
from xray_lightning.errors import RunFailedError

CHUNK = 2**20
# What tarfile and gzip raise on damaged files; RecursionError on deeply nested headers.
DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    RecursionError,
)
MAX_FILE_BYTES = 64 * 2**20  # NIH's largest image has about 1 MB
MAX_FILES = 200_000  # NIH's largest archive has 10,000


@dataclass(frozen=True)
class Unpacked:
    """What came out of an archive."""

    images: int
    bytes: int


def unpack_images(
    archive: Path, folder: Path, *, most: int, advance: Callable[[int], None]
) -> Unpacked:
    """Unpack a tar.gz into `folder`, each file atomically.

    Every file is written under a temporary name and renamed, so a kill leaves no partial image; a
    rerun writes all of them again. The files of a damaged archive are removed: gzip's checksum
    comes last, so any of them may be wrong. Owners, modes and times of the archive are ignored.

    Args:
        archive: the tar.gz.
        folder: made if missing; nothing is written outside of it.
        most: limit on the unpacked bytes, including the tar's headers.
        advance: called with the number of bytes of the archive read since its last call.

    Raises:
        RunFailedError: a member that is no plain file or folder, or has an absolute path or `..`;
            more than `most` bytes; a damaged archive; no image; a full disk.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unpacked = _unpack(archive, folder, written, most=most, advance=advance)
    except _RefusedError as error:
        raise RunFailedError(f"{archive}: {error}; not unpacked any further") from error
    except DAMAGE as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise RunFailedError(f"{archive}: damaged archive: {error}") from error
    except OSError as error:
        where = error.filename or folder
        raise RunFailedError(f"{where}: cannot be unpacked: {error.strerror or error}") from error
    if not unpacked.images:
        raise RunFailedError(f"{archive}: holds no image")
    os.sync()  # before a record says that the files are there; cheaper than one fsync per file
    return unpacked


def _unpack(
    archive: Path,
    folder: Path,
    written: list[Path],
    *,
    most: int,
    advance: Callable[[int], None],
) -> Unpacked:
    names: set[str] = set()
    images = size = read = 0
    with archive.open("rb") as packed, gzip.open(packed) as unzipped:
        content = _Forward(unzipped, most=most)
        with tarfile.open(fileobj=cast(IO[bytes], content), mode="r:") as tar:
            for member in tar:
                if (path := _place(member, folder, names)) is not None:
                    _write(tar, member, path, written)
                    images += path.name.lower().endswith(IMAGE_SUFFIXES)
                    size += member.size
                advance(packed.tell() - read)
                read = packed.tell()
        # tarfile takes a truncated or invalid header for the end of the archive. A real end is
        # at least one block of zeros, with nothing else after it.
        while data := content.read(CHUNK):
            if data.strip(b"\0"):
                raise tarfile.ReadError("a header in the middle makes no sense")
        if content.tail != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it ends too soon")
    return Unpacked(images, size)


class _RefusedError(Exception):
    """The archive holds something that an archive of images must not."""


class _Forward:
    """A forward-only stream for tarfile, with limits on each read and on the total.

    tarfile reads a member's extended header into memory in one piece, whatever size it claims;
    and seeking back in a gzip stream would decompress everything again from the start.
    """

    def __init__(self, stream: gzip.GzipFile, *, most: int) -> None:
        self._stream = stream
        self._place = 0
        self._most = most
        self.tail = b""  # the last block that was read

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_FILE_BYTES:
            raise _RefusedError(f"a header that claims {count:,} bytes")
        data = self._stream.read(count)
        self._place += len(data)
        self.tail = (self.tail + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        if self._place > self._most:
            raise _RefusedError(f"unpacks to more than {self._most:,} bytes")
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        while self.read(min(CHUNK, place - self._place)):  # refuses to go back
            pass


def _place(member: tarfile.TarInfo, folder: Path, names: set[str]) -> Path | None:
    """Where a file is written; None for a folder, which is created with the first file in it."""
    name = member.name
    parts = PurePosixPath(name).parts
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
        raise _RefusedError(f"the path {shown(name)} leads outside")
    if not name.isprintable() or len(parts) > 8 or any(len(part) > 200 for part in parts):
        raise _RefusedError(f"the odd path {shown(name)}")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse() or not parts:
        raise _RefusedError(f"{shown(name)} is no plain file but {_kind(member)}")
    if not 0 <= member.size <= MAX_FILE_BYTES:
        raise _RefusedError(f"{shown(name)} claims {member.size:,} bytes")
    if name in names:
        raise _RefusedError(f"{shown(name)} is there twice")
    names.add(name)
    if len(names) > MAX_FILES:
        raise _RefusedError(f"more than {MAX_FILES:,} files")
    path = folder.joinpath(*parts)
    # A symbolic link that is already in the folder could lead outside, too.
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise _RefusedError(f"the path {shown(name)} leads outside by a link in {folder}")
    return path


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {shown(member.linkname)}"
    if member.ischr() or member.isblk():
        return "a device"
    return "a FIFO" if member.isfifo() else "something else"


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, written: list[Path]) -> None:
    source = cast(IO[bytes], tar.extractfile(member))  # `_place` accepts only regular files
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # left by a killed run; a link is removed, not followed
    try:
        with source, partial.open("xb") as stream:
            shutil.copyfileobj(source, stream, CHUNK)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    written.append(path)
