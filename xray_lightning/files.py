"""Atomic file writes, advisory locks, free disk space, and standard streams that fail."""

import errno
import json
import logging
import os
import re
import select
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO, TextIO

from xray_lightning.errors import RunFailedError, UserError, one_line

log = logging.getLogger(__name__)

# Failed writes that are not the caller's mistake: disk full, quota, file size limit, I/O error.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def check_writable(folder: Path, *, key: str) -> None:
    """Refuse an output folder, existing or not, that cannot be written to.

    Raises:
        UserError: naming the option `key`.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"{key} {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):  # a read-only disk, too, even for root
        raise UserError(f"{key} {folder}: {there} may not be written to; give another folder")


def check_file(path: Path, *, key: str) -> None:
    """Refuse, before the work starts, an output file that could not be written at its end.

    Raises:
        UserError: naming the option `key`: the path is a folder, or its parent is missing or
            read-only.
    """
    if path.is_dir():
        raise UserError(f"{key} {path} is a folder; give a file")
    if not path.parent.exists():
        raise UserError(f"{key} {path}: there is no folder {path.parent}")
    check_writable(path.parent, key=key)


@contextmanager
def told_if_unwritable(what: str, *, advice: str) -> Iterator[None]:
    """Turn an OSError of writing, raised in the block, into an error of one line.

    Args:
        what: the line's beginning, such as `--out a.csv cannot be written`.
        advice: what the caller can do, such as `give another file`.

    Raises:
        RunFailedError: the disk is full or fails (`DISK_FULL`).
        UserError: any other OSError.
        BrokenPipeError: passed on: the reader of the pipe has closed it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"{what}: {error.strerror or one_line(error)}"
        if error.errno in DISK_FULL:
            raise RunFailedError(message) from error
        raise UserError(f"{message}; {advice}") from error


def let_go(stream: TextIO) -> None:
    """Redirect a standard stream to /dev/null: its pipe has no reader, or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def go_on_without(stream: TextIO, error: OSError) -> None:
    """Redirect a standard stream that cannot be written to /dev/null, and log a warning."""
    let_go(stream)
    log.warning("%s takes no more (%s); the run goes on", stream.name, one_line(error))


def reader_has_gone(stream: TextIO) -> bool:
    """Whether the reader of a stream's pipe has exited, as `| head` does; redirects it then."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)  # POLLERR is reported without being asked for
    gone = any(event & select.POLLERR for _, event in pipe.poll(0))
    if gone:
        let_go(stream)
    return gone


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Atomic write: yields a stream to a temporary file, which replaces `path` at the end.

    Args:
        path: its folder must exist.

    Raises:
        OSError: it cannot be written. The old file is untouched and the temporary one removed, as
            after any other exception in the block.
    """
    # The temporary name begins with that of the file, cut to fit in the 255 bytes of a file name.
    # It has no suffix, so that a leftover is not taken for a checkpoint or a table.
    prefix = f".{path.name[:40]}."
    remove_leftovers(path.parent, prefix)
    handle, partial = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    held = os.dup(handle)  # keeps the lock when the stream is closed, until the rename
    _lock(held)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)  # mkstemp gives a file that only its owner may read
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    finally:
        os.close(held)


def remove_leftovers(folder: Path, prefix: str = ".") -> None:
    """Remove temporary files of `replacing` that killed processes left; running ones lock theirs.

    Args:
        prefix: start of the temporary files' names; the default matches those of any file.
    """
    pattern = re.compile(rf"{re.escape(prefix)}{'' if len(prefix) > 1 else '.+[.]'}[a-z0-9_]{{8}}")
    for name in os.listdir(folder):
        if pattern.fullmatch(name):
            with suppress(OSError):  # removed by another process, or not permitted
                file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    if _lock(file):
                        os.unlink(folder / name)
                finally:
                    os.close(file)


def _lock(file: int) -> bool:
    """Take an exclusive lock without waiting; False if it is taken or locking is unsupported."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # taken; or no POSIX, or a file system without locks
        return False
    return True


_held: dict[Path, int] = {}  # descriptors of the files that `hold` has locked


def hold(path: Path, *, seconds: float = 5.0) -> bool:
    """Lock an existing file until this process ends; other processes see it by `is_held`.

    Args:
        seconds: how long to wait for another's lock: of a process that is ending, or of `is_held`.

    Returns:
        False if another process holds the file; True otherwise, also if it cannot be locked.
    """
    path = path.resolve()
    if path in _held:
        return True
    deadline = monotonic() + seconds
    with suppress(OSError):
        file = os.open(path, os.O_RDWR)  # NFS locks exclusively only what is open for writing
        while not _lock(file):
            held = is_held(path)
            if held is None or monotonic() > deadline:
                if held is False and _lock(file):  # released between the two looks
                    break
                os.close(file)
                return not held
            sleep(0.05)
        _held[path] = file
    return True


def is_held(path: Path) -> bool | None:
    """Whether a process of this machine has locked a file by `hold`; None if it cannot be told."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no POSIX, no such file, or a file system without locks
        return None
    return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file by `replacing` it; text is written as UTF-8."""
    with replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


STATE = ".download"  # folder in that of the data: partial files, and records of finished work

Free = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written into the folder."""
    return shutil.disk_usage(folder).free


@contextmanager
def working_in(root: Path, *, state: str = STATE, work: str = "download") -> Iterator[Path]:
    """Create and lock `root`; yields its subfolder for partial files and records.

    Args:
        state: name of the subfolder.
        work: what is done in `root`, for the message that another process is doing it.

    Raises:
        UserError: `root` cannot be written, or another process works in it.
    """
    from filelock import FileLock, Timeout  # `--help` should not wait for it

    folder = root / state
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{root}: another {work} works in it; wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{root} cannot be written: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        lock.release()


def check_room(root: Path, needed: int, *, free: Free) -> None:
    """Refuse to start if fewer than `needed` bytes are free.

    Raises:
        UserError: with both numbers.
    """
    there = free(root)
    if needed > there:
        raise UserError(
            f"{root}: {_gb(needed)} are needed and {_gb(there)} are free; make room, or give "
            "another folder or fewer images"
        )


def note(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON record of work begun or finished, atomically."""
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise RunFailedError(f"{path} cannot be written: {error.strerror or error}") from error


def noted(path: Path) -> dict[str, object]:
    """The record that `note` wrote; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # too deeply nested
        return {}
    return content if isinstance(content, dict) else {}


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
