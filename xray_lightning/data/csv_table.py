"""Reader of CSV tables: cells as text and as values, and the file and line of each fault."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.faults import CellFault, Faults, FirstFault
from xray_lightning.errors import UserError, shortened
from xray_lightning.findings import folded

Bools = npt.NDArray[np.bool_]
Titles = Mapping[str, tuple[str, ...]]  # our name of a column -> the titles it goes by in files

MAX_CSV_BYTES = 64 * 2**20  # seven times NIH's own table; keeps memory bounded on a hostile file
MAX_LINE_BYTES = 2**20
MAX_ROWS = 1_000_000


def read_cells(
    path: Path, titles: Titles, *, required: tuple[str, ...], faults: Faults | None = None
) -> pd.DataFrame:
    """Read columns of a CSV as stripped text, found by their titles, not by their positions.

    Titles are compared by their letters and digits alone ("Patient ID" is "PatientId"). Cells
    past the last needed column are ignored, since NIH's own header and rows disagree there.

    Args:
        path: the CSV.
        titles: the columns to look for.
        required: those that the header must have.
        faults: sink of the faults; None to raise the first.

    Returns:
        A column of text for each key of `titles` that the file has, in the order of `titles`,
        and `file` and `line`, where the row stands. Rows that lack cells are left out; a file that
        is no such table gives an empty table with all columns.

    Raises:
        UserError: undecodable or oversized file, missing or repeated column, short row, no row;
            only if the sink raises faults.
    """
    faults = FirstFault() if faults is None else faults
    short: list[int] = []
    try:
        cells = _whole_rows(path, titles, required, faults, short)
    except UserError as error:
        faults.refuse(error)
        faults.tell("table_unreadable", {path.name: str(error)})
        return pd.DataFrame({key: [] for key in (*titles, "file", "line")}, dtype=object)
    faults.tell("short_row", [line_of(path, line) for line in short])
    return cells


def _whole_rows(
    path: Path, titles: Titles, required: tuple[str, ...], faults: Faults, short: list[int]
) -> pd.DataFrame:
    """The complete rows, as `read_cells` returns them; appends the lines of others to `short`."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    lines: list[int] = []
    rows: list[tuple[str, ...]] = []
    end = 1
    try:
        header = next(reader, [])
        places = _places(path, header, titles, required)
        # With a single index, itemgetter returns the bare cell; with a slice, a list of one.
        first, *others = places.values()
        pick = itemgetter(first, *others) if others else itemgetter(slice(first, first + 1))
        width = max(places.values()) + 1
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) < width:
                fault = f"{len(cells)} cells where the header needs {width}"
                faults.refuse(UserError(f"{path}, line {start}: {fault}"))
                short.append(start)
                continue
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
    return repr(shortened(text, limit))


def where(rows: pd.DataFrame, position: int) -> str:
    """The file and line of the row at this position."""
    return f"{rows['file'].iloc[position]}, line {rows['line'].iloc[position]}"


def _places(
    path: Path, header: list[str], titles: Titles, required: tuple[str, ...]
) -> dict[str, int]:
    """The index of each column found; raises if a required one is missing, or any is repeated."""
    if not any(header):
        raise UserError(f"{path} is empty or starts with an empty line; its header is expected")
    plain = [folded(title) for title in header]
    places = {}
    for key, names in titles.items():
        wanted = {folded(name) for name in names}
        found = [place for place, title in enumerate(plain) if title in wanted]
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


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark; a .gz file is unpacked."""
    limit = f"at most {MAX_CSV_BYTES // 2**20} MiB are read"
    try:
        size = path.stat().st_size
        if size > MAX_CSV_BYTES:
            raise UserError(f"{path} has {size / 2**20:,.0f} MiB; {limit}")
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(MAX_CSV_BYTES + 1)
            if len(data) > MAX_CSV_BYTES:
                raise UserError(f"{path} has more, once unpacked; {limit}")
        else:
            data = path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from error
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


def readable(
    cells: pd.DataFrame, converters: Mapping[str, Callable[[str], object]], faults: Faults
) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """The rows whose cells can all be converted, and the values of their cells.

    Args:
        cells: as `read_cells` gives them.
        converters: for a column's key, the function from its text to its value, which may raise
            `CellFault`. Each distinct text is converted once.
        faults: sink of the cells that cannot be read, in the order of the columns.

    Returns:
        The rows that are left, still as text, and their values by the keys of `converters`.
    """
    wrong = np.zeros(len(cells), dtype=bool)
    values: dict[str, list[Any]] = {}
    found: dict[str, dict[str, str]] = {}
    for key, convert in converters.items():
        codes, outcomes = converted_once(cells, key, convert, faults)
        for code, (_, outcome) in enumerate(outcomes):
            if isinstance(outcome, CellFault):
                hit = codes == code
                wrong |= hit
                found.setdefault(outcome.kind, {}).update(named(cells, hit, outcome.detail))
        values[key] = [outcomes[code][1] for code in codes]
    for kind, names in found.items():
        faults.tell(kind, names)
    if wrong.any():
        cells = cells[~wrong].reset_index(drop=True)
        values = {
            key: [value for value, bad in zip(column, wrong, strict=True) if not bad]
            for key, column in values.items()
        }
    return cells, values


def converted_once(
    cells: pd.DataFrame, key: str, convert: Callable[[str], object], faults: Faults
) -> tuple[npt.NDArray[np.intp], list[tuple[str, Any]]]:
    """Convert each distinct text of a column to its value, or to the `CellFault` that it raises.

    Returns:
        For each row (N,), the index of its text in the list that follows: (text, value or fault),
        in the order of first occurrence.
    """
    codes, texts = pd.factorize(cells[key])
    outcomes: list[tuple[str, Any]] = []
    for code, text in enumerate(texts.tolist()):
        try:
            outcomes.append((text, convert(text)))
        except CellFault as fault:
            told = f"{key} {shown(text)}: {fault}" if fault.quoted else str(fault)
            faults.refuse(fail_at(cells, int(np.argmax(codes == code)), told))
            outcomes.append((text, fault))
    return codes, outcomes


def one_row_an_image(
    rows: pd.DataFrame,
    faults: Faults,
    *,
    kind: str = "duplicate_row",
    reason: str = "duplicate row",
) -> pd.DataFrame:
    """The first row of each image.

    Args:
        rows: with `image`, `file`, `line` and columns of facts.
        faults: sink of the rows that repeat or contradict an earlier row.
        kind, reason: kind of fault, and reason of dropping, under which repeated rows are told.
    """
    facts = [column for column in rows.columns if column not in ("file", "line")]
    repeated = rows.duplicated(facts).to_numpy(dtype=bool)
    if repeated.any():
        again = rows[repeated]
        named_lines = zip(again["file"], again["line"], again["image"], strict=True)
        lines = {line_of(file, line): shown(image) for file, line, image in named_lines}
        faults.tell(kind, lines, dropped={reason: len(again)})
        rows = rows[~repeated].reset_index(drop=True)
    second = rows["image"].duplicated().to_numpy(dtype=bool)
    if second.any():
        others = rows[second].reset_index(drop=True)
        first = rows[~second].set_index("image").loc[others["image"]].reset_index()
        differing = _differing(others, first, facts)
        faults.refuse(
            fail_at(
                others,
                0,
                f"{shown(others['image'].iloc[0])} is already at {where(first, 0)}, with another "
                f"{', '.join(differing[0])}; keep the right row",
            )
        )
        places = zip(others["file"], others["line"], first["file"], first["line"], strict=True)
        conflicts = {
            line_of(file, line): f"{shown(image)}: {', '.join(keys)} not as in {line_of(*before)}"
            for image, keys, (file, line, *before) in zip(
                others["image"], differing, places, strict=True
            )
        }
        faults.tell("conflicting_row", conflicts)
        rows = rows[~second].reset_index(drop=True)
    return rows


def _differing(rows: pd.DataFrame, first: pd.DataFrame, facts: list[str]) -> list[list[str]]:
    """The columns in which each row differs from the first row of its image."""
    one, other = (
        part[facts].astype(object).where(part[facts].notna(), None).to_numpy()
        for part in (rows, first)
    )
    return [[key for key, unlike in zip(facts, row, strict=True) if unlike] for row in one != other]


def named(cells: pd.DataFrame, hit: Bools, detail: str = "") -> dict[str, str]:
    """Details of the rows `hit`, by image, or by file and line if that name is taken or empty."""
    rows = cells[hit]
    told: dict[str, str] = {}
    for image, file, line in zip(rows["image"], rows["file"], rows["line"], strict=True):
        place = line_of(file, line)
        # An image may have several rows, each with its fault.
        name = image if image and image not in told else place
        told[name] = "; ".join(filter(None, [detail, place if name != place else ""]))
    return told


def line_of(file: str | Path, line: object) -> str:
    """File and line for a message, without the file's folder."""
    return f"{Path(file).name}, line {line}"
