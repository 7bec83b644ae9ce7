"""Files put into another folder: copied or linked, each whole or not there at all."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from xray_lightning.atomic import DISK_FULL
from xray_lightning.errors import RunFailedError, UserError

MODES = ("copy", "hardlink", "symlink")
_NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


class Placing:
    """Puts files to their places.

    Args:
        mode: one of `MODES`.
        part: where a file is made before it is renamed; on the file system of its place.

    Attributes:
        new: how many were not there already.
    """

    def __init__(self, mode: str, part: Path) -> None:
        self.new = 0
        self._mode = mode
        self._part = part
        self._copies: dict[Path, Path] = {}

    def place(self, source: Path, target: Path) -> None:
        """Put a file to its place, unless it is there.

        Args:
            source: absolute, and no link.
            target: what is there and differs is replaced.

        Raises:
            UserError: it cannot be read, written or linked.
            RunFailedError: the disk is full or fails.
        """
        try:
            if not self._is_there(source, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._part.unlink(missing_ok=True)
                self._make(source)
                os.replace(self._part, target)
                # Two names of one file: a rename does nothing then, and the other name stays.
                self._part.unlink(missing_ok=True)
                self.new += 1
        except OSError as error:
            raise _told(error, source, target, self._mode) from error
        self._copies.setdefault(source, target)

    def _is_there(self, source: Path, target: Path) -> bool:
        if self._mode == "symlink":
            return target.is_symlink() and os.readlink(target) == str(source)
        if target.is_symlink() or not target.is_file():
            return False
        if self._mode == "hardlink":
            return target.samefile(source)
        if source in self._copies:
            return target.samefile(self._copies[source])
        return _same_copy(source, target)

    def _make(self, source: Path) -> None:
        if self._mode == "symlink":
            os.symlink(source, self._part)
        elif self._mode == "hardlink":
            os.link(source, self._part)
        elif source in self._copies:
            # An image on two sides stays one file, as the search for images by name demands.
            os.link(self._copies[source], self._part)
        else:
            shutil.copy2(source, self._part)


def remaining_bytes(files: Mapping[Path, Path]) -> int:
    """What copying still takes, of files by their places.

    Raises:
        UserError: a file that is gone.
    """
    try:
        return sum(
            source.stat().st_size
            for source, target in {source: target for target, source in files.items()}.items()
            if not (target.is_file() and _same_copy(source, target))
        )
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; it was there before") from error


def _same_copy(source: Path, target: Path) -> bool:
    """By size and time of modification, which a copy keeps."""
    one, other = source.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _told(error: OSError, source: Path, target: Path, mode: str) -> UserError | RunFailedError:
    if error.errno in DISK_FULL:
        return RunFailedError(
            f"{target} cannot be written: {error.strerror}; what is finished is kept: make room, "
            "and start it again"
        )
    if mode == "hardlink" and error.errno in _NO_HARD_LINKS:
        return UserError(
            f"--mode hardlink: {source} cannot be linked as {target} ({error.strerror}); use "
            "--mode copy or --mode symlink"
        )
    return UserError(f"{target} cannot be made of {source}: {error.strerror or error}")
