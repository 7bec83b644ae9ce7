"""Grouping of images by the columns of their table: sex, age, view, visit, and any further one.

Text columns give a group per value, numeric columns with many values give bands. The bands of a
further column are cut at the quartiles of the scored images, independently of labels and scores.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, printable, shortened
from xray_lightning.findings import folded
from xray_lightning.runs.predictions import LABEL, PROBABILITY, Bools, Floats, Integers

log = logging.getLogger(__name__)

AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_EDGES = (18, 40, 60, 80)
_NAMED = {"sex": {"F": "female", "M": "male"}, "view": {"PA": "PA", "AP": "AP"}}
_VISITS = ("first image", "follow-up")
_COLUMN = {"sex": "sex", "age": "age", "view": "view", "visit": "follow_up"}
SUBGROUPS = tuple(_COLUMN)  # those that are looked for by default

MOST_GROUPS = 6  # of a column; with more values, the rarest share one
_LONGEST = 40  # characters of a group's name
# Columns that identify the image, patient, split or labels: never groups.
_TAKEN = {
    *("image", "patientid", "patient", "path", "file", "line", "split", "labels", "followup"),
}
_OF_FINDINGS = (PROBABILITY, LABEL)


@dataclass(frozen=True)
class Attribute:
    """What images are grouped by.

    Attributes:
        by: its name, such as "sex".
        groups: the names of its groups.
        codes: the group of each image, -1 where unknown, shape (N,).
    """

    by: str
    groups: tuple[str, ...]
    codes: Integers


def check_subgroups(names: object, *, what: str = "evaluation.subgroups") -> tuple[str, ...]:
    """Check a list of column titles and return it as a tuple; empty for no subgroups.

    Raises:
        UserError: not a list of titles, a title given twice, or a column that cannot be grouped by.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise UserError(f"{what}={names} must be a list of columns, as [sex,age,view,visit]")
    for place, name in enumerate(names):
        if not isinstance(name, str) or not folded(name):
            raise UserError(f"{what}: {printable(repr(name))} is not the title of a column")
        if folded(name) in set(map(folded, names[:place])):
            raise UserError(f"{what}: {printable(name)} is there twice")
        if folded(name) in _TAKEN or name.startswith(_OF_FINDINGS):
            hint = "; visit tells first images from others" if folded(name) == "followup" else ""
            raise UserError(f"{what}: {printable(name)} cannot be grouped by{hint}")
        if name not in SUBGROUPS and folded(name) in SUBGROUPS:
            raise UserError(f"{what}: write {printable(name)} as {folded(name)}")
    return tuple(names)


def further_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The names that are none of `SUBGROUPS`: a data set's own columns."""
    return tuple(name for name in names if name not in _COLUMN)


def subgroups_in(table: pd.DataFrame) -> tuple[str, ...]:
    """`SUBGROUPS`, then the further columns of this table that can be grouped by."""
    known = {*map(folded, (*_COLUMN, *_COLUMN.values())), *_TAKEN}
    further = [
        str(name)
        for name in table.columns
        if folded(str(name)) not in known and not str(name).startswith(_OF_FINDINGS)
    ]
    return (*SUBGROUPS, *further)


def attributes_of(table: pd.DataFrame, names: Sequence[str] = SUBGROUPS) -> list[Attribute]:
    """The groups of a table's images, by each of the names.

    If the column of `sex`, `age`, `view` or `visit` (`follow_up`) is missing, that name is left out
    with a log message.

    Raises:
        UserError: a further column is missing.
    """
    columns = {name: _COLUMN.get(name, name) for name in names}
    missing = [column for column in columns.values() if column not in table]
    if lacking := further_columns([name for name in names if columns[name] in missing]):
        raise UserError(
            f"evaluation.subgroups: the predictions have no column {printable(lacking[0])}"
        )
    if missing:
        log.info("the predictions have no %s: no subgroups by that", ", ".join(missing))
    return [
        _attribute(name, table[column]) for name, column in columns.items() if column not in missing
    ]


def _attribute(by: str, column: pd.Series) -> Attribute:
    if by in _NAMED:
        names = _NAMED[by]
        codes = pd.Index(list(names)).get_indexer(pd.Index(column.astype(object)))
        return Attribute(by, tuple(names.values()), codes.astype(np.int64))
    if by not in _COLUMN:
        return _of_further(by, column)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = numbers >= 0  # NaN is not
    if by == "age":
        codes = np.searchsorted(_AGE_EDGES, numbers, side="right")
        return Attribute(by, AGE_BANDS, np.where(known, codes, -1))
    return Attribute(by, _VISITS, np.where(known, (numbers > 0).astype(np.int64), -1))


def _of_further(by: str, column: pd.Series) -> Attribute:
    """Groups of any column: one per value, or quartiles of more than `MOST_GROUPS` numbers."""
    texts = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    texts = texts.where(~texts.str.lower().isin(("unknown", "nan", "<na>")), "")
    known = (texts != "").to_numpy(dtype=bool)
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    if known.any() and np.isfinite(numbers[known]).all():
        if len(np.unique(numbers[known])) > MOST_GROUPS:
            return _quartiles(by, numbers, known=known)
        texts = pd.Series([f"{number:.15g}" if np.isfinite(number) else "" for number in numbers])
    counts = texts[known].value_counts()
    ranked = sorted(counts.index, key=lambda text: (-counts[text], text))
    kept = ranked if len(ranked) <= MOST_GROUPS else ranked[: MOST_GROUPS - 1]
    places = {text: place for place, text in enumerate(sorted(kept, key=_in_order))}
    names = [shortened(printable(text), _LONGEST) for text in places]
    if len(kept) < len(ranked):
        names.append(f"other ({len(ranked) - len(kept)} values)")
    codes = [places.get(text, len(places)) if text else -1 for text in texts]
    return Attribute(by, tuple(names) or ("none",), np.array(codes, dtype=np.int64))


def _in_order(text: str) -> tuple[float, str]:
    """Numbers by size, then text by letters."""
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _quartiles(by: str, numbers: Floats, *, known: Bools) -> Attribute:
    """Bands cut at the quartiles of the known numbers; a number on a cut is in the lower band."""
    values = numbers[known]
    cuts = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="lower"))
    cuts = cuts[cuts < values.max()]
    if not len(cuts):  # over three quarters of the values equal the largest
        cuts = np.array([values[values < values.max()].max()])
    codes = np.where(known, np.searchsorted(cuts, numbers, side="left"), -1)
    ends = [f"{cut:.15g}" for cut in cuts]
    names = [f"up to {ends[0]}", *(f"over {low} to {high}" for low, high in pairwise(ends))]
    return Attribute(by, (*names, f"over {ends[-1]}"), codes.astype(np.int64))
