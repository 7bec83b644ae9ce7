"""Files that are whole at every moment, a folder's lock and free space, and closed streams."""

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

# What ends a write and is no mistake of the caller's: no room, a quota, a limit, a failing disk.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def check_writable(folder: Path, *, key: str) -> None:
    """Refuse a folder, there or not yet, that could not be written to when the work is done.

    Raises:
        UserError: naming the option `key`.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"{key} {folder}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):  # a read-only disk, too, even for root
        raise UserError(f"{key} {folder}: {there} may not be written to; give another folder")


def check_file(path: Path, *, key: str) -> None:
    """Refuse, before the work, a FILE that could not be written after it.

    Raises:
        UserError: naming the option `key`: a folder, or a place that is not there or read-only.
    """
    if path.is_dir():
        raise UserError(f"{key} {path} is a folder; give a file")
    if not path.parent.exists():
        raise UserError(f"{key} {path}: there is no folder {path.parent}")
    check_writable(path.parent, key=key)


@contextmanager
def told_if_unwritable(what: str, *, advice: str) -> Iterator[None]:
    """Turn the OSError of a place that cannot be written into one line.

    Args:
        what: the line's beginning, such as `--out a.csv cannot be written`.
        advice: what the caller can do, such as `give another file`.

    Raises:
        RunFailedError: the disk is full, or fails.
        UserError: it is anything else.
        BrokenPipeError: as it is: whoever reads has seen enough.
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
    """Send a standard stream to nowhere from now on: its reader has gone, or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def go_on_without(stream: TextIO, error: OSError) -> None:
    """Let a standard stream go that takes no more, and say so in the log."""
    let_go(stream)
    log.warning("%s takes no more (%s); the run goes on", stream.name, one_line(error))


def reader_has_gone(stream: TextIO) -> bool:
    """Whether nobody reads a standard stream any more, as below `| head`; it is let go then."""
    pipe = select.poll()
    pipe.register(stream.fileno(), 0)  # errors are told without asking
    gone = any(event & select.POLLERR for _, event in pipe.poll(0))
    if gone:
        let_go(stream)
    return gone


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream beside the file that takes its place at the end: a kill leaves the old or the new.

    Args:
        path: in a folder that exists.

    Raises:
        OSError: it cannot be written; the old file is untouched, and nothing is left beside it,
            as after any other exception in the block.
    """
    # A part of the name says whose leftover it is, and stays below the 255 bytes of a file name.
    # It has no ending: what a kill leaves must not be taken for a checkpoint or a table.
    prefix = f".{path.name[:40]}."
    remove_leftovers(path.parent, prefix)
    handle, partial = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    held = os.dup(handle)  # beyond the stream's end, until the file has its name
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
    """Remove the temporary files of killed processes; those that live hold a lock on theirs.

    Args:
        prefix: of the names; by default those of any file.
    """
    pattern = re.compile(rf"{re.escape(prefix)}{'' if len(prefix) > 1 else '.+[.]'}[a-z0-9_]{{8}}")
    for name in os.listdir(folder):
        if pattern.fullmatch(name):
            with suppress(OSError):  # another has removed it, or it is not ours to remove
                file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    if _lock(file):
                        os.unlink(folder / name)
                finally:
                    os.close(file)


def _lock(file: int) -> bool:
    """Lock a file for as long as this process lives; False where another has, or nobody can."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # no POSIX, or a file system without locks
        return False
    return True


_held: dict[Path, int] = {}  # open files


def hold(path: Path, *, seconds: float = 5.0) -> bool:
    """Hold a file that is there for as long as this process lives; see `is_held`.

    Args:
        seconds: in which another process may let go of it: one that dies, or only looks.

    Returns:
        False where another process holds it; True, too, where no file can be locked.
    """
    path = path.resolve()
    if path in _held:
        return True
    deadline = monotonic() + seconds
    with suppress(OSError):
        file = os.open(path, os.O_RDWR)  # NFS locks nothing that is open to read alone
        while not _lock(file):
            held = is_held(path)
            if held is None or monotonic() > deadline:
                os.close(file)
                return not held
            sleep(0.05)
        _held[path] = file
    return True


def is_held(path: Path) -> bool | None:
    """Whether a process of this machine holds a file; None where that cannot be told."""
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


STATE = ".download"  # beside the data: what is on its way, and notes of what is finished

Free = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written into the folder."""
    return shutil.disk_usage(folder).free


@contextmanager
def working_in(root: Path, *, state: str = STATE, work: str = "download") -> Iterator[Path]:
    """Make the folder and hold it: yields the folder below it for what is on its way.

    Args:
        state: name of that folder.
        work: what is done there, to tell another of its kind.

    Raises:
        UserError: it cannot be written, or another one works in it.
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
    """Refuse to start what cannot be finished.

    Raises:
        UserError: with what is needed and what is there.
    """
    there = free(root)
    if needed > there:
        raise UserError(
            f"{root}: {_gb(needed)} are needed and {_gb(there)} are free; make room, or give "
            "another folder or fewer images"
        )


def note(path: Path, content: Mapping[str, object]) -> None:
    """Write down that something is finished."""
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise RunFailedError(f"{path} cannot be written: {error.strerror or error}") from error


def noted(path: Path) -> dict[str, object]:
    """What was written down there, or {}."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # nested without end
        return {}
    return content if isinstance(content, dict) else {}


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
