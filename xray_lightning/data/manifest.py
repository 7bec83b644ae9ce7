"""One validated table of images, whatever CSV dialect it came in, and what was dropped and why."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, NO_FINDING, encode

T = TypeVar("T")
Titles = Mapping[str, tuple[str, ...]]  # our name of a column -> the titles it goes by in files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_CSV_BYTES = 64 * 2**20  # seven times NIH's own table; keeps memory bounded on a hostile file
MAX_LINE_BYTES = 2**20
MAX_ROWS = 1_000_000
MAX_AGE = 100.0  # years; NIH's first release holds ages up to 414

NIH_TABLES = "Data_Entry*.csv"
NIH_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
AI4M_TABLES = {"train": "train-small.csv", "val": "valid-small.csv", "test": "test.csv"}

NIH_TITLES: Titles = {
    "image": ("Image Index",),
    "labels": ("Finding Labels",),
    "patient_id": ("Patient ID",),
    "follow_up": ("Follow-up #",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
NIH_REQUIRED = ("image", "labels", "patient_id")
AI4M_TITLES: Titles = {
    "image": ("Image",),
    "patient_id": ("PatientId",),
    **{finding: (finding,) for finding in FINDINGS},
}
COLUMNS = ("image", "path", "patient_id", "follow_up", "age", "sex", "view", *FINDINGS)

# Years in one unit of a DICOM age string such as 058Y (PS3.5, value representation AS).
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Manifest:
    """Every image that the files of a data set list, one row each.

    Attributes:
        table: unique `image` (file name), `path` ("" without a file), `patient_id`, `follow_up`
            (Int64), `age` (years, NaN unknown), `sex` ("M", "F", ""), `view` ("PA", "AP", ""),
            then the 14 findings as uint8, 1 where present.
        dialect: "nih" (Data_Entry*.csv) or "ai4m" (the AI-for-Medicine one-hot CSVs).
        root: the folder of the CSVs.
        dropped: rows dropped and values nulled, by reason.
        given: the sides that the files themselves state, as image names: `train_val` and `test`
            of NIH's lists; `train`, `val` and `test` of the AI-for-Medicine CSVs.
        unlisted_files: image files that no row names.
        images: the folder that was searched for image files; None for `root`.
    """

    table: pd.DataFrame
    dialect: str
    root: Path
    dropped: dict[str, int]
    given: dict[str, tuple[str, ...]]
    unlisted_files: int
    images: Path | None = None


def read_manifest(root: Path, *, images: Path | None = None) -> Manifest:
    """Read and check the CSVs in `root`, and find their images by name at any depth of `images`.

    Args:
        root: folder that holds Data_Entry*.csv, or the AI-for-Medicine CSVs.
        images: folder of the image files; `root` when None.

    Raises:
        UserError: a missing folder or CSV, or the first fault of a CSV with its file and line.
    """
    _check_folder(root, key="data.root")
    if images is not None:
        _check_folder(images, key="data.images")
    dropped: dict[str, int] = {}
    nih = sorted(path for path in root.glob(NIH_TABLES) if path.is_file())
    ai4m = {side: root / name for side, name in AI4M_TABLES.items() if (root / name).is_file()}
    if len(nih) > 1:
        names = " and ".join(path.name for path in nih)
        raise UserError(f"{root}: {names} are both there; keep the one to use and move the other")
    if nih:
        dialect, table = "nih", _nih_rows(nih[0], dropped)
        lists = {side: root / name for side, name in NIH_LISTS.items()}
        given = {side: _read_list(path) for side, path in lists.items() if path.is_file()}
    elif ai4m:
        parts = {side: _ai4m_rows(path, dropped) for side, path in ai4m.items()}
        given = {side: tuple(part["image"]) for side, part in parts.items()}
        dialect, table = "ai4m", pd.concat(parts.values(), ignore_index=True)
        table = _one_row_an_image(table, dropped, reason="image in two files (kept once)")
    else:
        raise UserError(_no_table(root))
    paths, unlisted = _find_files(images or root, frozenset(table["image"]))
    table["path"] = pd.Series([paths.get(name, "") for name in table["image"]], dtype=object)
    table = table[list(COLUMNS)]
    return Manifest(table, dialect, root, dropped, given, unlisted, images)


def _check_folder(folder: Path, *, key: str) -> None:
    if not folder.exists():
        raise UserError(f"{key}={folder} does not exist; give the folder of the data set")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{key}={folder} is not a folder that can be read; give the data set's")


def _no_table(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    wanted = ", ".join(AI4M_TABLES.values())
    return (
        f"{root} holds no table of images: looked for {NIH_TABLES} (NIH) or {wanted} "
        f"(AI for Medicine), found {found or 'nothing'}; give the folder that holds the CSV as "
        "data.root"
    )


# -- cells: text files whose every fault has a line number -----------------------------------------


def read_cells(path: Path, titles: Titles, *, required: tuple[str, ...]) -> pd.DataFrame:
    """Read the named columns of a CSV as stripped text, by title and not by place.

    Titles are compared by their letters and digits alone ("Patient ID" is "PatientId"). Cells
    past the last needed column are ignored, since NIH's own header and rows disagree there.

    Returns:
        A column of text for each key of `titles` that the file has, in the order of `titles`,
        and `file` and `line`, which say where a row stands.

    Raises:
        UserError: undecodable or oversized file, missing or repeated column, short row, no row.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
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


def fail_at(rows: pd.DataFrame, position: int, fault: str) -> UserError:
    """An error that says in which file and line the row at this position stands."""
    return UserError(f"{_where(rows, position)}: {fault}")


def shown(text: str, *, limit: int = 80) -> str:
    """A quoted value for a message, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _where(rows: pd.DataFrame, position: int) -> str:
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


def _read_text(path: Path) -> str:
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


def _read_list(path: Path) -> tuple[str, ...]:
    """Image names, one a line; a name that is there twice counts once."""
    names = (name.strip() for name in _read_text(path).splitlines())
    return tuple(dict.fromkeys(name for name in names if name))


# -- rows: cells turned into values ----------------------------------------------------------------


def _nih_rows(path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    cells = read_cells(path, NIH_TITLES, required=NIH_REQUIRED)
    for key in [key for key in NIH_TITLES if key not in cells]:
        dropped[f"no column {NIH_TITLES[key][0]} (nulled)"] = len(cells)
        cells[key] = ""
    ages = np.array(_converted(cells, "age", _age))
    _count(dropped, f"age over {MAX_AGE:.0f} (nulled)", ages > MAX_AGE)
    sex, view = cells["sex"].str.upper(), cells["view"].str.upper()
    _count(dropped, "sex not M or F (nulled)", ~sex.isin(["M", "F", ""]))
    _count(dropped, "view not PA or AP (nulled)", ~view.isin(["PA", "AP", ""]))
    rows = pd.DataFrame(
        {
            **_names(cells),
            "follow_up": pd.array(_converted(cells, "follow_up", _follow_up), dtype="Int64"),
            "age": np.where(ages > MAX_AGE, np.nan, ages),
            "sex": sex.where(sex.isin(["M", "F"]), ""),
            "view": view.where(view.isin(["PA", "AP"]), ""),
            **_finding_columns(np.stack(_converted(cells, "labels", _labels))),
        }
    )
    return _one_row_an_image(rows, dropped, reason="duplicate row")


def _ai4m_rows(path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    cells = read_cells(path, AI4M_TITLES, required=tuple(AI4M_TITLES))
    labels = np.array([_converted(cells, finding, _one_hot) for finding in FINDINGS]).T
    rows = pd.DataFrame(
        {
            **_names(cells),
            "follow_up": pd.array([pd.NA] * len(cells), dtype="Int64"),
            "age": np.nan,
            "sex": "",
            "view": "",
            **_finding_columns(labels),
        }
    )
    return _one_row_an_image(rows, dropped, reason="duplicate row")


def _names(cells: pd.DataFrame) -> dict[str, object]:
    unnamed = np.flatnonzero(cells["image"] == "")
    if len(unnamed):
        raise fail_at(cells, int(unnamed[0]), "no image name")
    return {
        "file": cells["file"],
        "line": cells["line"],
        "image": cells["image"],
        "patient_id": _converted(cells, "patient_id", _patient),
    }


def _finding_columns(labels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
    """Multi-hot labels (N, 14) by finding."""
    return {finding: labels[:, column] for column, finding in enumerate(FINDINGS)}


def _one_row_an_image(rows: pd.DataFrame, dropped: dict[str, int], *, reason: str) -> pd.DataFrame:
    """Drop and count the rows that repeat another; raise where two disagree about an image."""
    facts = [column for column in rows.columns if column not in ("file", "line")]
    repeated = rows.duplicated(facts)
    _count(dropped, reason, repeated)
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
            f"{shown(image)} is already at {_where(rows, first)}, with another "
            f"{', '.join(differing)}; keep the right row",
        )
    return rows


def _count(dropped: dict[str, int], reason: str, hit: npt.ArrayLike) -> None:
    if count := int(np.count_nonzero(hit)):
        dropped[reason] = dropped.get(reason, 0) + count


def _converted(cells: pd.DataFrame, key: str, convert: Callable[[str], T]) -> list[T]:
    """A column's cells as values, each distinct text converted once."""
    codes, texts = pd.factorize(cells[key])
    values = []
    for code, text in enumerate(texts):
        try:
            values.append(convert(text))
        except ValueError as error:
            position = int(np.argmax(codes == code))
            raise fail_at(cells, position, f"{key} {shown(text)}: {error}") from error
    return [values[code] for code in codes]


def _labels(text: str) -> npt.NDArray[np.uint8]:
    try:
        return encode(text)
    except KeyError as error:
        known = ", ".join((NO_FINDING, *FINDINGS))
        raise ValueError(f"unknown label {shown(error.args[0])}; known are {known}") from error


def _one_hot(text: str) -> np.uint8:
    if text not in ("0", "1", "0.0", "1.0"):
        raise ValueError("a finding is 0 or 1 here")
    return np.uint8(text[0] == "1")


def _patient(text: str) -> str:
    """One spelling an id: "1", "0001" and "1.0" are one patient, who else could be on two sides."""
    if not text:
        raise ValueError("no patient; every image needs one, so that a split can keep them apart")
    return re.sub(r"^0+(?=\d+$)", "", re.sub(r"^(\d+)\.0$", r"\1", text))


def _follow_up(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}(\.0)?", text, re.ASCII):
        raise ValueError("not a whole number")
    return int(float(text))


def _age(text: str) -> float:
    """Years from `58` or from a DICOM age string such as `058Y`; NaN from an empty cell."""
    if not text:
        return float("nan")
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([YMWD]?)", text.upper(), re.ASCII)
    if match is None:
        raise ValueError("not an age such as 58 or 058Y")
    return float(match[1]) * AGE_UNITS[match[2] or "Y"]


# -- files -----------------------------------------------------------------------------------------


def _find_files(folder: Path, wanted: frozenset[str]) -> tuple[dict[str, str], int]:
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
