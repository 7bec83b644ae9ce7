"""What a caller names - files, folders, patterns, a CSV - as a list of files."""

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.data.cells import read_text
from xray_lightning.data.files import find_files
from xray_lightning.errors import UserError

TABLE = ".csv"
# By which a CSV names its images, the first one found: NIH's table, AI for Medicine's and our own.
TITLES = ("path", "image", "imageindex")


@dataclass(frozen=True)
class Inputs:
    """The files that arguments name.

    Attributes:
        paths: each once, as the caller spells it; some may not be there.
        repeated: how many were named again.
        found: how many are there.
    """

    paths: list[str]
    repeated: int
    found: int


def find_inputs(
    arguments: Sequence[str], *, images: Path | None = None, leave_out: Path | None = None
) -> Inputs:
    """List the files that arguments name, in their order.

    A folder stands for every regular file below it, sorted; a pattern (`*`, `?`, `[`, `**`) for
    what it matches, sorted; a .csv for the images in its column `path`, `image` or `Image Index`.
    What is not there stays in the list, so that it can be told of.

    Args:
        images: folder of a CSV's images; None for the CSV's own.
        leave_out: a file that is no input: the output of an earlier call.

    Raises:
        UserError: a folder or CSV that cannot be read, or nothing that is there.
    """
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images} is not a folder; give the folder of the CSV's images")
    if images is not None and not any(map(is_table, arguments)):
        raise UserError("--images is of a CSV's images; give a CSV, or leave it out")
    kept: dict[str, str] = {}
    named = 0
    out = None if leave_out is None else os.path.realpath(leave_out)
    for path in _all(arguments, images):
        whole = os.path.abspath(path)
        if out is not None and os.path.realpath(path) == out:
            continue
        named += 1
        kept.setdefault(whole, path)
    found = sum(map(os.path.exists, kept.values()))
    if not found:
        what = ", ".join(arguments[:5]) + (", ..." if len(arguments) > 5 else "")
        raise UserError(f"{what}: no file to predict; give images, folders, patterns or a CSV")
    return Inputs(list(kept.values()), named - len(kept), found)


def is_table(argument: str) -> bool:
    """Whether an argument is a CSV that names images."""
    return argument.lower().endswith(TABLE) and not os.path.isdir(argument)


def _all(arguments: Iterable[str], images: Path | None) -> Iterator[str]:
    for argument in arguments:
        if os.path.isdir(argument):
            yield from _below(argument)
        elif is_table(argument) and os.path.exists(argument):
            yield from _listed(Path(argument), images)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if "**" in argument:  # which has found what is in the folders, too
                matches = [match for match in matches if not os.path.isdir(match)]
            for match in matches or [argument]:
                yield from _below(match) if os.path.isdir(match) else [match]
        else:
            yield argument


def _below(folder: str) -> Iterator[str]:
    """Every regular file below a folder, or link to one or to nothing; each folder visited once."""
    visited: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in visited:
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders.sort()
        for path in (os.path.join(here, name) for name in sorted(names)):
            if os.path.isfile(path) or not os.path.exists(path):
                yield path


def _listed(table: Path, images: Path | None) -> list[str]:
    """The paths of a CSV's images: in the folder of the images, or by their names below it."""
    root = table.parent if images is None else images
    names = _names(table)
    paths = [os.path.join(root, name) for name in names]
    bare = frozenset(
        name
        for name, path in zip(names, paths, strict=True)
        if os.path.basename(name) == name and not os.path.exists(path)
    )
    below = find_files(root, bare)[0] if bare else {}
    return [below.get(name, path) for name, path in zip(names, paths, strict=True)]


def _names(table: Path) -> list[str]:
    rows = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    try:
        header = [_plain(title) for title in next(rows, [])]
        titles = [title for title in TITLES if title in header]
        if not titles:
            raise UserError(
                f"{table}, line 1: no column that names images; expected path, image or Image Index"
            )
        column = header.index(titles[0])
        names = []
        for cells in rows:
            if not any(cells):
                continue
            name = cells[column].strip() if column < len(cells) else ""
            if not name:
                raise UserError(f"{table}, line {rows.line_num}: no image is named")
            names.append(name)
    except csv.Error as error:
        raise UserError(f"{table}, line {rows.line_num}: not readable as CSV: {error}") from error
    if not names:
        raise UserError(f"{table} has a header but no rows; give a CSV with images")
    return names


def _plain(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum())
