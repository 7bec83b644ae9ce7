"""The folder that a data set is fetched into: its lock, its room, and what is finished in it."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from xray_lightning.atomic import write_atomically
from xray_lightning.data.files import IMAGE_SUFFIXES
from xray_lightning.errors import RunFailedError, UserError

STATE = ".download"  # beside the data: what is on its way, and notes of what is finished

Free = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written into the folder."""
    return shutil.disk_usage(folder).free


@contextmanager
def working_in(root: Path) -> Iterator[Path]:
    """Make the folder and hold it: yields where to keep what is on its way.

    Raises:
        UserError: it cannot be written, or another download works in it.
    """
    state = root / STATE
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(state / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{root}: another download works in it; wait for it, or give another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{root} cannot be written: {error.strerror or error}") from error
    try:
        yield state
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
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def count_images(folder: Path) -> int:
    """Image files at any depth."""
    return sum(
        path.name.lower().endswith(IMAGE_SUFFIXES)
        for path in (folder.rglob("*") if folder.is_dir() else ())
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
