"""Image files of a data set, found by their names at any depth of a folder."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xray_lightning.data.csv_table import shown
from xray_lightning.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def find_files(folder: Path, wanted: frozenset[str]) -> tuple[dict[str, str], int]:
    """The path of each wanted name under `folder`, and the number of other image files there.

    Raises:
        UserError: a folder that cannot be read, or two files of one name.
    """
    return _found(folder, wanted, below=False)


def find_named(folder: Path, names: frozenset[str]) -> tuple[dict[str, str], int]:
    """As `find_files`, where a name may be a path below `folder`, such as "p1/a.png".

    Args:
        folder: the images' folder.
        names: relative paths without "..". A name without a slash that is not in `folder` itself
            is looked for at any depth.
    """
    paths, unlisted = _found(folder, names, below=True)
    for name in names - paths.keys():
        # Not found by the search: no image suffix, or a path through a link to a searched folder.
        if "/" in name or not name.lower().endswith(IMAGE_SUFFIXES):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                paths[name] = path
    return paths, unlisted


def _found(folder: Path, wanted: frozenset[str], *, below: bool) -> tuple[dict[str, str], int]:
    """As `find_files`; with `below`, matches by relative path come before those by file name."""
    paths: dict[str, str] = {}
    unlisted, start = 0, len(os.path.join(folder, ""))
    found = search(folder)
    for here, reason in found.unreadable.items():
        raise UserError(f"{here} cannot be read: {reason}")
    for name, files in found.files.items():
        exact = {p[start:]: p for p in files if p[start:] in wanted} if below else {}
        others = [path for path in files if path[start:] not in exact] if exact else files
        if name not in wanted or name in exact:
            unlisted += len(others)
        elif others:
            if len(others) > 1 and len(two := distinct(others)) > 1:
                raise UserError(
                    f"two files are named {shown(name)}: {' and '.join(sorted(two[:2]))}; remove "
                    "one, or give the folder to use as data.images"
                )
            paths[name] = others[0]
        paths |= exact
    return paths, unlisted


def distinct(paths: list[str]) -> list[str]:
    """The first path, and those of the others that do not lead to the same file as the first."""
    return [paths[0], *(path for path in paths[1:] if not os.path.samefile(path, paths[0]))]


def count_images(folder: Path) -> int:
    """Image files at any depth."""
    return sum(
        path.name.lower().endswith(IMAGE_SUFFIXES)
        for path in (folder.rglob("*") if folder.is_dir() else ())
    )


_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass
class Folder:
    """What lies below a folder.

    Attributes:
        root: the folder.
        files: paths of the regular files named like an image, or links to one, by their names.
        odd: paths named like an image that are no regular file, with what they are.
        again: links to folders that had been searched already, as in a loop of links.
        unreadable: folders that cannot be listed, with the reason.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def path_of(self, name: str, *, by_path: bool) -> str:
        """The file of an image, or "".

        Args:
            name: as in the table.
            by_path: whether `name` may be a path relative to the folder, as in a custom CSV; the
                file at that path comes before files of that name at other depths.
        """
        if by_path and os.path.isfile(joined := os.path.join(self.root, name)):
            return joined
        return self.files.get(name, [""])[0]


def search(root: Path) -> Folder:
    """Look for images at any depth; errors are recorded in the result, not raised.

    Links to folders are followed, each folder visited once, so that a loop of links ends.
    """
    found = Folder(root)
    pending, visited = [os.fspath(root)], set()
    while pending:
        here = pending.pop()
        try:
            state = os.stat(here)
            if (state.st_dev, state.st_ino) in visited:
                found.again.append(here)
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(here) as entries:
                pending += sorted(_sorted_in(entries, found), reverse=True)
        except OSError as error:
            found.unreadable[here] = error.strerror or type(error).__name__
    return found


def _sorted_in(entries: Iterator["os.DirEntry[str]"], found: Folder) -> Iterator[str]:
    """Record the entries that are named like an image in `found`; yields the subfolders."""
    for entry in entries:
        try:
            if entry.is_dir():
                yield entry.path
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            elif entry.is_file():
                found.files.setdefault(entry.name, []).append(entry.path)
            else:
                found.odd[entry.path] = _what(entry)
        except OSError as error:
            found.odd[entry.path] = error.strerror or type(error).__name__


def _what(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    return next((what for test, what in _KINDS if test(mode)), "no regular file")
