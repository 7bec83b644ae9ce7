"""The tables of a data set read to their end: what can be read, and what is wrong with the rest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.cells import read_cells, shown
from xray_lightning.data.check.remarks import Remark, remark
from xray_lightning.data.check.rows import (
    line_of,
    named,
    one_row_an_image,
    patients_named,
    sexes,
)
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

_KIND_OF_CELL = {
    "patient_id": "row_without_patient",
    "age": "age_unreadable",
    "follow_up": "follow_up_unreadable",
}
# Reading quotes the cell that it stops at; those of persons are not repeated here.
_QUOTED = re.compile(r"(: (?:age|follow_up|patient_id)) (['\"]).*\2: ")
_UNQUOTED = r"\1: "


@dataclass
class Tables:
    """What the tables of a data set say.

    Attributes:
        table: one row an image: `image`, `patient_id`, `sex`, the findings, `file` and `line`.
        findings: those of its columns that are findings.
        rows: rows read, with those that are repeated or wrong.
        given: the images of each file, by the side that it stands for.
        named: images that any row names, whole or not.
        ages: the texts in the column of ages, each once.
        remarks: what is wrong.
    """

    table: pd.DataFrame
    findings: tuple[str, ...] = FINDINGS
    rows: int = 0
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    ages: frozenset[str] = frozenset()
    remarks: list[Remark] = field(default_factory=list)

    @classmethod
    def empty(cls) -> "Tables":
        return cls(pd.DataFrame({key: [] for key in ("image", "patient_id", "sex", *FINDINGS)}))

    def keep(self, rows: pd.DataFrame, *, repeats: bool = True) -> pd.DataFrame:
        """Make the first row of each image the table, and remark on the others."""
        self.table, remarks = one_row_an_image(rows, repeats=repeats)
        self.remarks += remarks
        return self.table


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
        tables.keep(nih_table(good, {}))
        tables.remarks += patients_named(tables.table) + sexes(tables.table)
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
            parts.append(tables.keep(ai4m_table(good)))
            tables.given[side] = tuple(parts[-1]["image"])
    if parts:
        # An image in two files is told of with the sides; here only what the files disagree about.
        table = tables.keep(pd.concat(parts, ignore_index=True), repeats=False)
        tables.remarks += patients_named(table)
    return tables


def read_own(path: Path, own: OwnTable, findings: tuple[str, ...] | None) -> Tables:
    """Read a table of one's own, up to its first fault if it has one."""
    dropped: dict[str, int] = {}
    try:
        rows = own.read(path, findings=findings, dropped=dropped)
    except UserError as error:
        tables = Tables.empty()
        told = f"{_QUOTED.sub(_UNQUOTED, str(error))} (read to here only)"
        tables.remarks += remark("table_unreadable", {path.name: told})
        return tables
    tables = Tables(rows.table, rows.findings, given=rows.given)
    tables.rows = len(rows.table) + dropped.get("duplicate row", 0)
    for reason, count in dropped.items():
        tables.remarks += remark("changed_in_reading", [reason], count=count, text=reason)
    tables.remarks += sexes(rows.table)
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
    tables.named.update(cells["image"])
    tables.remarks += remark("short_row", [line_of(path, line) for line in short])
    return cells


def _without_faults(
    cells: pd.DataFrame, known: Mapping[str, Callable[[str], object]], tables: Tables
) -> pd.DataFrame:
    """The rows of which every cell can be read; the others are told of."""
    wrong = (cells["image"] == "").to_numpy(dtype=bool, copy=True)
    found: dict[str, dict[str, str]] = {"row_without_image": named(cells, wrong)}
    for key, convert in known.items():
        codes, outcomes = converted_once(cells, key, convert)
        for code, (text, outcome) in enumerate(outcomes):
            if isinstance(outcome, ValueError):
                hit = codes == code
                wrong |= hit
                kind, detail = _fault(key, text, outcome)
                found.setdefault(kind, {}).update(named(cells, hit, detail))
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


def _oddities(cells: pd.DataFrame) -> list[Remark]:
    """Values that reading takes as unknown."""
    remarks = []
    if "age" in cells:
        codes, outcomes = converted_once(cells, "age", NIH_CELLS["age"])
        over = [isinstance(age, float) and age > MAX_AGE for _, age in outcomes]
        hit = np.array(over, dtype=bool)[codes]
        remarks += remark("age_over_100", named(cells, hit))
    for key, kind, values in (
        ("sex", "sex_unknown", ("M", "F", "")),
        ("view", "view_unknown", ("PA", "AP", "")),
    ):
        if key in cells:
            hit = ~cells[key].str.upper().isin(values).to_numpy(dtype=bool)
            remarks += remark(kind, named(cells, hit))
    unknown = cells["image"][cells["patient_id"] == UNKNOWN_PATIENT]
    return remarks + remark("patient_unknown", unknown)
