"""The CSV dialects: cells turned into the manifest's columns, and what was dropped on the way."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.csv_table import (
    Titles,
    converted,
    count_in,
    fail_at,
    one_row_an_image,
    read_cells,
    shown,
)
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, NO_FINDING, canonical, encode

NIH_TABLES = "Data_Entry*.csv"

NIH_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}

AI4M_TABLES = {"train": "train-small.csv", "val": "valid-small.csv", "test": "test.csv"}


# Said of an image whose patient nobody knows, as in ChestMNIST. An empty cell is a fault instead.
UNKNOWN_PATIENT = "unknown"

MAX_AGE = 100.0  # years; NIH's first release holds ages up to 414

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

# Years in one unit of a DICOM age string such as 058Y (PS3.5, value representation AS).
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def nih_rows(path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    """The rows of a Data_Entry*.csv, one an image.

    Args:
        path: the CSV.
        dropped: counts, by reason, that rows dropped and values nulled are added to.

    Returns:
        `file`, `line`, and the manifest's columns but for `path`.

    Raises:
        UserError: the first fault, with its file and line.
    """
    cells = read_cells(path, NIH_TITLES, required=NIH_REQUIRED)
    return one_row_an_image(nih_table(cells, dropped), dropped, reason="duplicate row")


def nih_table(cells: pd.DataFrame, dropped: dict[str, int]) -> pd.DataFrame:
    """The cells of a Data_Entry*.csv as `nih_rows` returns them, but for rows that repeat."""
    cells = cells.copy(deep=False)
    for key in [key for key in NIH_TITLES if key not in cells]:
        dropped[f"no column {NIH_TITLES[key][0]} (nulled)"] = len(cells)
        cells[key] = ""
    return pd.DataFrame(
        {
            **names(cells, dropped),
            **persons(cells, dropped),
            **_finding_columns(np.stack(converted(cells, "labels", _labels))),
        }
    )


def ai4m_rows(path: Path, dropped: dict[str, int]) -> pd.DataFrame:
    """The rows of an AI-for-Medicine one-hot CSV, as `nih_rows` returns them."""
    cells = read_cells(path, AI4M_TITLES, required=tuple(AI4M_TITLES))
    return one_row_an_image(ai4m_table(cells), dropped, reason="duplicate row")


def ai4m_table(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of an AI-for-Medicine CSV as `ai4m_rows` returns them, but for rows that repeat."""
    labels = np.array([converted(cells, finding, _one_hot) for finding in FINDINGS]).T
    return pd.DataFrame(
        {
            **names(cells),
            "follow_up": pd.array([pd.NA] * len(cells), dtype="Int64"),
            "age": np.nan,
            "sex": "",
            "view": "",
            **_finding_columns(labels),
        }
    )


def persons(cells: pd.DataFrame, dropped: dict[str, int]) -> dict[str, object]:
    """The columns `follow_up`, `age`, `sex` and `view`; what is none of theirs is counted."""
    ages = np.array(converted(cells, "age", _age))
    count_in(dropped, f"age over {MAX_AGE:.0f} (nulled)", ages > MAX_AGE)
    sex, view = cells["sex"].str.upper(), cells["view"].str.upper()
    count_in(dropped, "sex not M or F (nulled)", ~sex.isin(["M", "F", ""]))
    count_in(dropped, "view not PA or AP (nulled)", ~view.isin(["PA", "AP", ""]))
    return {
        "follow_up": pd.array(converted(cells, "follow_up", _follow_up), dtype="Int64"),
        "age": np.where(ages > MAX_AGE, np.nan, ages),
        "sex": sex.where(sex.isin(["M", "F"]), ""),
        "view": view.where(view.isin(["PA", "AP"]), ""),
    }


def names(cells: pd.DataFrame, dropped: dict[str, int] | None = None) -> dict[str, object]:
    """The columns that say where a row stands, its image and its patient.

    Args:
        cells: as `read_cells` gives them.
        dropped: where unknown patients are counted; None where "unknown" is a patient's id.
    """
    if dropped is not None:
        unknown = cells["patient_id"] == UNKNOWN_PATIENT
        count_in(dropped, "patient unknown (each image as a patient of its own)", unknown)
        own = UNKNOWN_PATIENT + ": " + cells["image"]
        cells = cells.assign(patient_id=cells["patient_id"].mask(unknown, own))
    unnamed = np.flatnonzero(cells["image"] == "")
    if len(unnamed):
        raise fail_at(cells, int(unnamed[0]), "no image name")
    return {
        "file": cells["file"],
        "line": cells["line"],
        "image": cells["image"],
        "patient_id": converted(cells, "patient_id", _patient),
    }


def _finding_columns(labels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
    """Multi-hot labels (N, 14) by finding."""
    return {finding: labels[:, column] for column, finding in enumerate(FINDINGS)}


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


# What the cells of a row must be: functions that raise ValueError where one is not.
NIH_CELLS: dict[str, Callable[[str], object]] = {
    "patient_id": _patient,
    "labels": _labels,
    "follow_up": _follow_up,
    "age": _age,
}
AI4M_CELLS: dict[str, Callable[[str], object]] = {
    "patient_id": _patient,
    **dict.fromkeys(FINDINGS, _one_hot),
}


FILE = "BBox_List_2017.csv"
GRID = 1024  # NIH's boxes are on the grid of its images, whatever size a copy has

# The title `Bbox [x,y,w,h]` stands unquoted in the file, and so in four cells.
TITLES: Titles = {
    "image": ("Image Index",),
    "finding": ("Finding Label",),
    "x": ("Bbox [x",),
    "y": ("y",),
    "width": ("w",),
    "height": ("h]",),
}
PLACE = ("x", "y", "width", "height")


def read_boxes(path: Path) -> pd.DataFrame:
    """The boxes of a list, each once, in shares of their image's width and height.

    Returns:
        `image`, `finding`, and `left`, `top`, `right`, `bottom` from 0 to 1; what a box has
        outside of the image is cut off.

    Raises:
        UserError: it is not there, or the first fault with its line.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}, which says where findings are")
    cells = read_cells(path, TITLES, required=tuple(TITLES))
    numbers = np.array([converted(cells, key, _number) for key in PLACE]).T / GRID  # (N, 4)
    start = np.clip(numbers[:, :2], 0, 1)
    end = np.clip(numbers[:, :2] + numbers[:, 2:], 0, 1)
    empty = np.flatnonzero((end <= start).any(axis=1))
    if len(empty):
        raise fail_at(cells, int(empty[0]), "a box that covers nothing of its image")
    boxes = pd.DataFrame(
        {
            "image": cells["image"],
            "finding": converted(cells, "finding", _finding),
            "left": start[:, 0],
            "top": start[:, 1],
            "right": end[:, 0],
            "bottom": end[:, 1],
        }
    )
    return boxes.drop_duplicates(ignore_index=True)


def _number(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _finding(text: str) -> str:
    try:
        return canonical(text)
    except KeyError as error:
        raise ValueError(f"{shown(text, limit=40)} is no finding") from error
