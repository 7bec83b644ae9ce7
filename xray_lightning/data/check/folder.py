"""Every image file below a folder, and whatever only looks like one."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xray_lightning.data.files import IMAGE_SUFFIXES

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
        files: paths of the regular files named like an image, by their names.
        odd: paths of what is named like an image and is no file, with what it is.
        again: links to folders that were searched already; a loop of links is one.
        unreadable: folders that cannot be looked into, with the reason.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def path_of(self, name: str, *, own: bool) -> str:
        """The file of an image, or "".

        Args:
            name: as in the table.
            own: whether that may be a path below the folder, as in a table of one's own, where a
                file of the folder itself comes before those further down.
        """
        if own and os.path.isfile(joined := os.path.join(self.root, name)):
            return joined
        return self.files.get(name, [""])[0]

    def odd_names(self) -> dict[str, str]:
        """What stands in the place of an image file, by its name."""
        return {os.path.basename(path): what for path, what in self.odd.items()}


def search(root: Path) -> Folder:
    """Look for images at any depth, as training does, but stop at nothing.

    Links to folders are followed, each folder visited once.
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
    """Put each entry where it belongs; yields the folders among them."""
    for entry in entries:
        try:
            if entry.is_dir():
                yield entry.path
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            elif entry.is_file():
                _add(found.files.setdefault(entry.name, []), entry.path)
            else:
                found.odd[entry.path] = _what(entry)
        except OSError as error:
            found.odd[entry.path] = error.strerror or type(error).__name__


def _add(paths: list[str], path: str) -> None:
    """Add a file, but not a link to the one that is there."""
    if not paths or not os.path.samefile(path, paths[0]):
        paths.append(path)


def _what(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    return next((what for test, what in _KINDS if test(mode)), "no regular file")
