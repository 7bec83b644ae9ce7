"""Cells of a CSV as text, and errors that name the file and line of each fault."""

import csv
import io
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.errors import UserError

T = TypeVar("T")


Titles = Mapping[str, tuple[str, ...]]  # our name of a column -> the titles it goes by in files

MAX_CSV_BYTES = 64 * 2**20  # seven times NIH's own table; keeps memory bounded on a hostile file
MAX_LINE_BYTES = 2**20
MAX_ROWS = 1_000_000


def read_cells(
    path: Path, titles: Titles, *, required: tuple[str, ...], short: list[int] | None = None
) -> pd.DataFrame:
    """Read the named columns of a CSV as stripped text, by title and not by place.

    Titles are compared by their letters and digits alone ("Patient ID" is "PatientId"). Cells
    past the last needed column are ignored, since NIH's own header and rows disagree there.

    Args:
        path: the CSV.
        titles: the columns to look for.
        required: those that the header must have.
        short: where the lines of rows that lack cells are put, rather than raised.

    Returns:
        A column of text for each key of `titles` that the file has, in the order of `titles`,
        and `file` and `line`, which say where a row stands.

    Raises:
        UserError: undecodable or oversized file, missing or repeated column, short row, no row.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    end = 1
    try:
        header = next(reader, [])
        places = _places(path, header, titles, required)
        pick, width = itemgetter(*places.values()), max(places.values()) + 1
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) < width:
                if short is not None:
                    short.append(start)
                    continue
                raise UserError(
                    f"{path}, line {start}: {len(cells)} cells where the header needs {width}"
                )
            if len(rows) == MAX_ROWS:
                raise UserError(f"{path}, line {start}: more than {MAX_ROWS:,} rows are not read")
            lines.append(start)
            rows.append(pick(cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {end + 1}: not readable as CSV: {error}") from error
    if not rows:
        raise UserError(f"{path} has a header but no rows; give a CSV with images")
    columns = zip(*rows, strict=True)
    table = pd.DataFrame(
        {key: [cell.strip() for cell in c] for key, c in zip(places, columns, strict=True)}
    )
    # dtype=object: a path need not be valid Unicode, which Arrow strings must be.
    return table.assign(file=pd.Series([str(path)] * len(rows), dtype=object), line=lines)


def header_of(path: Path) -> list[str]:
    """The stripped titles in the first line of a CSV.

    Raises:
        UserError: the file cannot be read, or its first line is no CSV.
    """
    try:
        cells = next(csv.reader(io.StringIO(read_text(path), newline=""), strict=True), [])
    except csv.Error as error:
        raise UserError(f"{path}, line 1: not readable as CSV: {error}") from error
    return [cell.strip() for cell in cells]


def fail_at(rows: pd.DataFrame, position: int, fault: str) -> UserError:
    """An error that says in which file and line the row at this position stands."""
    return UserError(f"{where(rows, position)}: {fault}")


def shown(text: str, *, limit: int = 80) -> str:
    """A quoted value for a message, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def where(rows: pd.DataFrame, position: int) -> str:
    """The file and line of the row at this position."""
    return f"{rows['file'].iloc[position]}, line {rows['line'].iloc[position]}"


def _places(
    path: Path, header: list[str], titles: Titles, required: tuple[str, ...]
) -> dict[str, int]:
    """The place of each column that the header has; raises on one missing or there twice."""
    if not any(header):
        raise UserError(f"{path} is empty or starts with an empty line; its header is expected")
    plain = [_plain(title) for title in header]
    places = {}
    for key, names in titles.items():
        found = [place for place, title in enumerate(plain) if title in map(_plain, names)]
        if len(found) > 1:
            raise UserError(f"{path}, line 1: column {names[0]!r} is there {len(found)} times")
        if found:
            places[key] = found[0]
    missing = [titles[key][0] for key in required if key not in places]
    if missing:
        expected = ", ".join(titles[key][0] for key in required)
        raise UserError(
            f"{path}, line 1: no column {', '.join(map(repr, missing))}; expected {expected}; "
            f"found {shown(', '.join(header), limit=400)}"
        )
    return places


def _plain(title: str) -> str:
    return "".join(letter for letter in title.lower() if letter.isalnum())


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark."""
    try:
        size = path.stat().st_size
        if size > MAX_CSV_BYTES:
            limit = MAX_CSV_BYTES // 2**20
            raise UserError(f"{path} has {size / 2**20:,.0f} MiB; at most {limit} MiB are read")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: NUL byte; the file is damaged or not UTF-8 text")
    for line, content in enumerate(data.splitlines(), start=1):
        if len(content) > MAX_LINE_BYTES:
            raise UserError(f"{path}, line {line}: {len(content):,} bytes in one line; not a table")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def one_row_an_image(rows: pd.DataFrame, dropped: dict[str, int], *, reason: str) -> pd.DataFrame:
    """Drop and count the rows that repeat another; raise where two disagree about an image."""
    facts = [column for column in rows.columns if column not in ("file", "line")]
    repeated = rows.duplicated(facts)
    count_in(dropped, reason, repeated)
    rows = rows[~repeated].reset_index(drop=True)
    conflicts = np.flatnonzero(rows["image"].duplicated())
    if len(conflicts):
        second = int(conflicts[0])
        image = rows["image"].iloc[second]
        first = int(np.flatnonzero(rows["image"] == image)[0])
        both = rows[facts].iloc[[first, second]]
        differing = both.columns[both.nunique(dropna=False) > 1]
        raise fail_at(
            rows,
            second,
            f"{shown(image)} is already at {where(rows, first)}, with another "
            f"{', '.join(differing)}; keep the right row",
        )
    return rows


def count_in(dropped: dict[str, int], reason: str, hit: npt.ArrayLike) -> None:
    """Add the number of rows hit to a reason's, if there are any."""
    if count := int(np.count_nonzero(hit)):
        dropped[reason] = dropped.get(reason, 0) + count


def converted(cells: pd.DataFrame, key: str, convert: Callable[[str], T]) -> list[T]:
    """A column's cells as values, each distinct text converted once."""
    codes, outcomes = converted_once(cells, key, convert)
    values: list[T] = []
    for code, (text, outcome) in enumerate(outcomes):
        if isinstance(outcome, ValueError):
            position = int(np.argmax(codes == code))
            raise fail_at(cells, position, f"{key} {shown(text)}: {outcome}") from outcome
        values.append(outcome)
    return [values[code] for code in codes]


def converted_once(
    cells: pd.DataFrame, key: str, convert: Callable[[str], T]
) -> tuple[npt.NDArray[np.intp], list[tuple[str, T | ValueError]]]:
    """Each distinct text of a column with its value, or with why it has none.

    Returns:
        For each row (N,), the place of its text in the list of texts, in the order of their first
        rows.
    """
    codes, texts = pd.factorize(cells[key])
    outcomes: list[tuple[str, T | ValueError]] = []
    for text in texts.tolist():
        try:
            outcomes.append((text, convert(text)))
        except ValueError as error:
            outcomes.append((text, error))
    return codes, outcomes
