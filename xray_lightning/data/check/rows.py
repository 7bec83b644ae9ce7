"""Rows that can be read, beside each other and beside the names of their images."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.cells import shown
from xray_lightning.data.check.remarks import Remark, remark

Bools = npt.NDArray[np.bool_]

# NIH names an image by its patient and a number: 00000001_000.png.
NIH_NAME = r"^(\d{8})_\d{3}\.png$"


def one_row_an_image(
    rows: pd.DataFrame, *, repeats: bool = True
) -> tuple[pd.DataFrame, list[Remark]]:
    """The first row of each image, and remarks on those that repeat (if asked) or contradict it."""
    remarks: list[Remark] = []
    facts = [column for column in rows.columns if column not in ("file", "line")]
    repeated = rows.duplicated(facts).to_numpy(dtype=bool)
    if repeats:
        remarks += remark("duplicate_row", _lines(rows[repeated]))
    rows = rows[~repeated].reset_index(drop=True)
    second = rows["image"].duplicated().to_numpy(dtype=bool)
    if second.any():
        first = rows[~second].set_index("image").loc[rows["image"][second]].reset_index()
        remarks += remark("conflicting_row", _conflicts(rows[second], first, facts))
        rows = rows[~second].reset_index(drop=True)
    return rows, remarks


def _conflicts(rows: pd.DataFrame, first: pd.DataFrame, facts: list[str]) -> dict[str, str]:
    """What each row has otherwise than the first row of its image, by where it stands."""
    differing: list[list[str]] = [[] for _ in range(len(rows))]
    for key in facts:
        one, other = rows[key].to_numpy(dtype=object), first[key].to_numpy(dtype=object)
        known = ~pd.isna(one) & ~pd.isna(other)
        unlike = pd.isna(one) != pd.isna(other)
        unlike[known] = one[known] != other[known]
        for place in np.flatnonzero(unlike):
            differing[place].append(key)
    places = zip(*(frame[key] for frame in (rows, first) for key in ("file", "line")), strict=True)
    return {
        line_of(file, line): f"{shown(image)}: {', '.join(keys)} not as in {line_of(*before)}"
        for image, keys, (file, line, *before) in zip(rows["image"], differing, places, strict=True)
    }


def _lines(rows: pd.DataFrame) -> dict[str, str]:
    """Rows by where they stand, with their images."""
    return {
        line_of(file, line): shown(image)
        for image, file, line in zip(rows["image"], rows["file"], rows["line"], strict=True)
    }


def patients_named(table: pd.DataFrame) -> list[Remark]:
    """Rows whose patient is not the one that NIH named the image after."""
    ids = table["image"].astype(object).str.extract(NIH_NAME, expand=False)
    known = ids.notna() & table["patient_id"].map(lambda text: bool(re.fullmatch(r"\d+", text)))
    rows = table[known]
    differing = ids[known].astype("int64") != rows["patient_id"].map(int)
    return remark("patient_not_as_named", named(rows, differing.to_numpy(dtype=bool)))


def sexes(table: pd.DataFrame) -> list[Remark]:
    """Images of patients who are M in one row and F in another."""
    known = table[table["sex"] != ""]
    several = known.groupby("patient_id", sort=False)["sex"].transform("nunique") > 1
    return remark("patient_of_two_sexes", known["image"][several])


def named(cells: pd.DataFrame, hit: Bools, detail: str = "") -> dict[str, str]:
    """What to call these rows, and where they stand."""
    rows = cells[hit]
    told = {}
    for image, file, line in zip(rows["image"], rows["file"], rows["line"], strict=True):
        where = line_of(file, line)
        # An image may have several rows, each with its fault.
        name = image if image and image not in told else where
        told[name] = "; ".join(filter(None, [detail, where if name != where else ""]))
    return told


def line_of(file: str | Path, line: object) -> str:
    return f"{Path(file).name}, line {line}"
