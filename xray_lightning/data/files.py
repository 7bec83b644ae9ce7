"""Image files, found by their names at any depth of a folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from xray_lightning.data.cells import shown
from xray_lightning.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def find_files(folder: Path, wanted: frozenset[str]) -> tuple[dict[str, str], int]:
    """The path of each wanted name under `folder`, and how many image files nobody wanted."""
    return _found(folder, wanted, taken=frozenset())


def find_named(folder: Path, names: frozenset[str]) -> tuple[dict[str, str], int]:
    """As `find_files`, where a name may be a path below `folder`, such as "p1/a.png".

    Args:
        folder: the images' folder.
        names: without "..", and none that starts with "/". One without a slash that is not in
            `folder` itself is looked for at any depth.
    """
    joined = {name: os.path.join(folder, name) for name in names}
    there = {name: path for name, path in joined.items() if os.path.isfile(path)}
    loose = frozenset(name for name in names if name not in there and "/" not in name)
    paths, unlisted = _found(folder, loose, taken=frozenset(there.values()))
    return there | paths, unlisted


def _found(
    folder: Path, wanted: frozenset[str], *, taken: frozenset[str]
) -> tuple[dict[str, str], int]:
    paths: dict[str, str] = {}
    unlisted = 0
    try:
        for name, path in _image_files(folder):
            if path in taken:
                continue
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
