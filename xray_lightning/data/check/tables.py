"""The tables of a data set read to their end: what can be read, and what is wrong with the rest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.cells import read_cells, shown
from xray_lightning.data.check.remarks import Remark, remark
from xray_lightning.data.dialects import (
    AI4M_CELLS,
    AI4M_TITLES,
    MAX_AGE,
    NIH_CELLS,
    NIH_REQUIRED,
    NIH_TITLES,
    UNKNOWN_PATIENT,
    ai4m_table,
    converted_once,
    nih_table,
)
from xray_lightning.data.own_table import OwnTable
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

Bools = npt.NDArray[np.bool_]

_KIND_OF_CELL = {
    "patient_id": "row_without_patient",
    "age": "age_unreadable",
    "follow_up": "follow_up_unreadable",
}
# NIH names an image by its patient and a number: 00000001_000.png.
_NIH_NAME = r"^(\d{8})_\d{3}\.png$"


@dataclass
class Tables:
    """What the tables of a data set say.

    Attributes:
        table: one row an image: `image`, `patient_id`, `sex`, the findings, `file` and `line`.
        findings: those of its columns that are findings.
        rows: rows read, with those that are repeated or wrong.
        given: the images of each file, by the side that it stands for.
        ages: the texts in the column of ages, each once.
        remarks: what is wrong.
    """

    table: pd.DataFrame
    findings: tuple[str, ...] = FINDINGS
    rows: int = 0
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ages: frozenset[str] = frozenset()
    remarks: list[Remark] = field(default_factory=list)

    @classmethod
    def empty(cls) -> "Tables":
        return cls(pd.DataFrame({key: [] for key in ("image", "patient_id", "sex", *FINDINGS)}))


def read_nih(path: Path) -> Tables:
    """Read a Data_Entry*.csv to its end."""
    tables = Tables.empty()
    cells = _cells(path, NIH_TITLES, NIH_REQUIRED, tables)
    if cells is None:
        return tables
    tables.ages = frozenset(cells.get("age", ()))
    lacking = [titles[0] for key, titles in NIH_TITLES.items() if key not in cells]
    tables.remarks += remark("column_missing", lacking)
    known = {key: convert for key, convert in NIH_CELLS.items() if key in cells}
    good = _without_faults(cells, known, tables)
    tables.remarks += _oddities(good)
    if len(good):
        tables.table = _one_row_an_image(nih_table(good, {}), tables)
        tables.remarks += _patients_named(tables.table) + _sexes(tables.table)
    return tables


def read_ai4m(paths: Mapping[str, Path]) -> Tables:
    """Read the AI-for-Medicine CSVs, by the side that each is for."""
    tables = Tables.empty()
    parts = []
    for side, path in paths.items():
        cells = _cells(path, AI4M_TITLES, tuple(AI4M_TITLES), tables)
        if cells is None:
            continue
        good = _without_faults(cells, AI4M_CELLS, tables)
        if len(good):
            parts.append(_one_row_an_image(ai4m_table(good), tables))
            tables.given[side] = tuple(parts[-1]["image"])
    if parts:
        # An image in two files is told of with the sides; here only what the files disagree about.
        table = _one_row_an_image(pd.concat(parts, ignore_index=True), tables, repeats=False)
        tables.table = table
        tables.remarks += _patients_named(table)
    return tables


def read_own(path: Path, own: OwnTable, findings: tuple[str, ...] | None) -> Tables:
    """Read a table of one's own, up to its first fault if it has one."""
    dropped: dict[str, int] = {}
    try:
        rows = own.read(path, findings=findings, dropped=dropped)
    except UserError as error:
        tables = Tables.empty()
        tables.remarks += remark("table_unreadable", {path.name: f"{error} (read to here only)"})
        return tables
    tables = Tables(rows.table, rows.findings, given=rows.given)
    tables.rows = len(rows.table) + dropped.get("duplicate row", 0)
    for reason, count in dropped.items():
        tables.remarks += remark("changed_in_reading", [reason], count=count, text=reason)
    tables.remarks += _sexes(rows.table)
    return tables


def _cells(
    path: Path,
    titles: Mapping[str, tuple[str, ...]],
    required: tuple[str, ...],
    tables: Tables,
) -> pd.DataFrame | None:
    """The cells of all whole rows; None of a file that is no such table."""
    short: list[int] = []
    try:
        cells = read_cells(path, titles, required=required, short=short)
    except UserError as error:
        tables.remarks += remark("table_unreadable", {path.name: str(error)})
        return None
    tables.rows += len(cells) + len(short)
    tables.remarks += remark("short_row", [_line(path, line) for line in short])
    return cells


def _line(file: str | Path, line: object) -> str:
    return f"{Path(file).name}, line {line}"


def _without_faults(
    cells: pd.DataFrame, known: Mapping[str, Callable[[str], object]], tables: Tables
) -> pd.DataFrame:
    """The rows of which every cell can be read; the others are told of."""
    wrong = (cells["image"] == "").to_numpy(dtype=bool, copy=True)
    found: dict[str, dict[str, str]] = {"row_without_image": _named(cells, wrong)}
    for key, convert in known.items():
        codes, outcomes = converted_once(cells, key, convert)
        for code, (text, outcome) in enumerate(outcomes):
            if isinstance(outcome, ValueError):
                hit = codes == code
                wrong |= hit
                kind, detail = _fault(key, text, outcome)
                found.setdefault(kind, {}).update(_named(cells, hit, detail))
    for kind, names in found.items():
        tables.remarks += remark(kind, names)
    return cells[~wrong].reset_index(drop=True)


def _fault(key: str, text: str, error: ValueError) -> tuple[str, str]:
    """The kind of a fault, and what to show of it: a label, but never a person's values."""
    if key in _KIND_OF_CELL:
        return _KIND_OF_CELL[key], ""
    if key in FINDINGS:
        return "label_not_0_or_1", f"{key} is {shown(text, limit=20)}"
    if isinstance(error.__cause__, KeyError):
        return "unknown_label", shown(str(error.__cause__.args[0]), limit=40)
    return ("contradictory_label", shown(text)) if text.strip("| ") else ("no_label", "")


def _named(cells: pd.DataFrame, hit: Bools, detail: str = "") -> dict[str, str]:
    """What to call these rows, and where they stand."""
    rows = cells[hit]
    named = {}
    for image, file, line in zip(rows["image"], rows["file"], rows["line"], strict=True):
        where = _line(file, line)
        # An image may have several rows, each with its fault.
        name = image if image and image not in named else where
        named[name] = "; ".join(filter(None, [detail, where if name != where else ""]))
    return named


def _oddities(cells: pd.DataFrame) -> list[Remark]:
    """Values that reading takes as unknown."""
    remarks = []
    if "age" in cells:
        codes, outcomes = converted_once(cells, "age", NIH_CELLS["age"])
        over = [isinstance(age, float) and age > MAX_AGE for _, age in outcomes]
        hit = np.array(over, dtype=bool)[codes]
        remarks += remark("age_over_100", _named(cells, hit))
    for key, kind, values in (
        ("sex", "sex_unknown", ("M", "F", "")),
        ("view", "view_unknown", ("PA", "AP", "")),
    ):
        if key in cells:
            hit = ~cells[key].str.upper().isin(values).to_numpy(dtype=bool)
            remarks += remark(kind, _named(cells, hit))
    unknown = cells["image"][cells["patient_id"] == UNKNOWN_PATIENT]
    return remarks + remark("patient_unknown", unknown)


def _one_row_an_image(rows: pd.DataFrame, tables: Tables, *, repeats: bool = True) -> pd.DataFrame:
    """The first row of each image; those that repeat or contradict it are told of."""
    facts = [column for column in rows.columns if column not in ("file", "line")]
    repeated = rows.duplicated(facts).to_numpy(dtype=bool)
    if repeats:
        tables.remarks += remark("duplicate_row", _lines(rows[repeated]))
    rows = rows[~repeated].reset_index(drop=True)
    second = rows["image"].duplicated().to_numpy(dtype=bool)
    if second.any():
        first = rows[~second].set_index("image").loc[rows["image"][second]].reset_index()
        told = {}
        for place, (_, row) in enumerate(rows[second].iterrows()):
            other = first.iloc[place]
            differing = [key for key in facts if not _same(row[key], other[key])]
            where = _line(other["file"], other["line"])
            told[_line(row["file"], row["line"])] = (
                f"{shown(row['image'])}: {', '.join(differing)} not as in {where}"
            )
        tables.remarks += remark("conflicting_row", told)
        rows = rows[~second].reset_index(drop=True)
    return rows


def _same(one: object, other: object) -> bool:
    return bool(pd.isna(one) and pd.isna(other)) or (  # type: ignore[call-overload]
        not pd.isna(one) and not pd.isna(other) and one == other  # type: ignore[call-overload]
    )


def _lines(rows: pd.DataFrame) -> dict[str, str]:
    """Rows by where they stand, with their images."""
    return {
        _line(file, line): shown(image)
        for image, file, line in zip(rows["image"], rows["file"], rows["line"], strict=True)
    }


def _patients_named(table: pd.DataFrame) -> list[Remark]:
    """Rows whose patient is not the one that NIH named the image after."""
    named = table["image"].astype(object).str.extract(_NIH_NAME, expand=False)
    known = named.notna() & table["patient_id"].map(lambda text: bool(re.fullmatch(r"\d+", text)))
    rows = table[known]
    differing = named[known].astype("int64") != rows["patient_id"].map(int)
    return remark("patient_not_as_named", _named(rows, differing.to_numpy(dtype=bool)))


def _sexes(table: pd.DataFrame) -> list[Remark]:
    """Images of patients who are M in one row and F in another."""
    known = table[table["sex"] != ""]
    several = known.groupby("patient_id", sort=False)["sex"].transform("nunique") > 1
    return remark("patient_of_two_sexes", known["image"][several])
