"""Image files, found by their names at any depth of a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from xray_lightning.data.cells import shown
from xray_lightning.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def find_files(folder: Path, wanted: frozenset[str]) -> tuple[dict[str, str], int]:
    """The path of each wanted name under `folder`, and how many image files nobody wanted."""
    paths: dict[str, str] = {}
    unlisted = 0
    try:
        for name, path in _image_files(folder):
            if name not in wanted:
                unlisted += 1
            elif name in paths and not os.path.samefile(path, paths[name]):
                first, second = sorted([path, paths[name]])
                raise UserError(
                    f"two files are named {shown(name)}: {first} and {second}; remove one, or "
                    "give the folder to use as data.images"
                )
            else:
                paths.setdefault(name, path)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    return paths, unlisted


def _image_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and path of each regular file, or link to one, that is named like an image.

    Links to folders are followed, each folder visited once, so that a loop of links ends.
    """
    pending, visited = [os.fspath(folder)], set()
    while pending:
        state = os.stat(here := pending.pop())
        if (state.st_dev, state.st_ino) in visited:
            continue
        visited.add((state.st_dev, state.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                if _is(entry.is_dir):
                    pending.append(entry.path)
                elif entry.name.lower().endswith(IMAGE_SUFFIXES) and _is(entry.is_file):
                    yield entry.name, entry.path


def _is(kind: Callable[[], bool]) -> bool:
    """Whether a directory entry is of a kind; False for a link that only leads to itself."""
    try:
        return kind()
    except OSError:
        return False
