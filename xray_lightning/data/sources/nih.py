"""Reader of NIH ChestX-ray14: its table, the lists of its official split, and its boxes.

Wang et al., "ChestX-ray8", CVPR 2017. Phantoms come in the same layout.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.csv_table import (
    Titles,
    converted_once,
    fail_at,
    named,
    one_row_an_image,
    read_cells,
    read_text,
    readable,
    shown,
)
from xray_lightning.data.faults import CellFault, Faults, FirstFault
from xray_lightning.data.sources import Given, Listing, Release, Source
from xray_lightning.data.sources.phantom.dataset import MARK
from xray_lightning.errors import UserError
from xray_lightning.files import noted
from xray_lightning.findings import FINDINGS, NO_FINDING, canonical, encode

NIH_TABLES = "Data_Entry*.csv"
NIH_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
NIH_IMAGES = 112_120
# NIH names an image by its patient and a number: 00000001_000.png.
NIH_NAME = r"^(\d{8})_\d{3}\.png$"

# Patient ID of an image whose patient is unknown, as in ChestMNIST. An empty cell is a fault.
UNKNOWN_PATIENT = "unknown"

MAX_AGE = 100.0  # years; NIH's first release holds ages up to 414

# Years in one unit of a DICOM age string such as 058Y (PS3.5, value representation AS).
AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

TITLES: Titles = {
    "image": ("Image Index",),
    "labels": ("Finding Labels",),
    "patient_id": ("Patient ID",),
    "follow_up": ("Follow-up #",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
REQUIRED = ("image", "labels", "patient_id")


class Nih(Source):
    """NIH ChestX-ray14, or a data set in its layout."""

    dialect = "nih"
    split = "official"
    looked_for = f"{NIH_TABLES} (NIH)"
    rank = 1

    def tables(self, root: Path) -> Sequence[Path]:
        return sorted(path for path in root.glob(NIH_TABLES) if path.is_file())

    def read(
        self,
        root: Path,
        faults: Faults,
        *,
        findings: tuple[str, ...] | None = None,
        further: tuple[str, ...] = (),
    ) -> Listing:
        path, *others = self.tables(root)
        if others:
            both = " and ".join(path.name for path in (path, *others))
            faults.refuse(
                UserError(f"{root}: {both} are both there; keep the one to use and move the other")
            )
            faults.tell("several_tables", [other.name for other in others])
        return read_table(path, faults, further=further)

    def given_split(self, root: Path, listing: Listing, faults: Faults) -> Given:
        """The images of those official lists that exist."""
        given: dict[str, tuple[str, ...]] = {}
        for split, file in NIH_LISTS.items():
            if not (root / file).is_file():
                lacking = "without it there is no data.split=official"
                faults.tell("list_missing", {file: lacking})
                continue
            try:
                given[split] = read_list(root / file)
            except UserError as error:
                faults.refuse(error)
                faults.tell("table_unreadable", {file: str(error)})
        return given

    def describe(self, root: Path, listing: Listing, faults: Faults) -> Release:
        file = self.tables(root)[0].name
        mark = noted(root / MARK)
        if mark:
            name = f"phantoms, {mark.get('images')} of {mark.get('size')} x {mark.get('size')}"
            return Release(name, (MARK, file))
        if not listing.table["image"].astype(object).str.match(NIH_NAME).any():
            how = f"{file}, none of whose images has a name of NIH's"
            return Release("a table in the layout of NIH ChestX-ray14", (how,), one_size=False)
        release, how = _release(file, listing, faults)
        rows = f"{listing.rows + faults.count('short_row'):,} of NIH's {NIH_IMAGES:,} rows"
        return Release(f"NIH ChestX-ray14, {release}", (how, rows), original=True)

    def check(self, listing: Listing, faults: Faults) -> None:
        check_patients_in_names(listing.table, faults)
        check_sexes(listing.table, faults)


SOURCE = Nih()


def _release(file: str, listing: Listing, faults: Faults) -> tuple[str, str]:
    """The first release wrote ages as 058Y, or up to 414; that of 2020 does neither."""
    if "v2020" in file:
        return "release v2020", f"the name {file}"
    if any(text.upper().endswith("Y") for text in listing.ages):
        return "first release (2017)", f"ages such as 058Y in {file}"
    if faults.count("age_over_100"):
        return "first release (2017)", f"ages over {MAX_AGE:.0f} in {file}"
    return "release unknown", f"the name {file}, and no age as the first release had"


def read_table(path: Path, faults: Faults, *, further: tuple[str, ...] = ()) -> Listing:
    """Read a Data_Entry*.csv."""
    titles = {**TITLES, **{name: (name,) for name in further}}
    cells = read_cells(path, titles, required=REQUIRED, faults=faults)
    rows, images = len(cells), frozenset(cells["image"])
    ages = frozenset(cells["age"]) if "age" in cells else frozenset()
    lacking = {key: titles[0] for key, titles in TITLES.items() if key not in cells}
    nulled = {f"no column {title} (nulled)": rows for title in lacking.values()}
    faults.tell("column_missing", lacking.values(), dropped=nulled)
    cells, values = readable(cells.assign(**dict.fromkeys(lacking, "")), CELLS, faults)
    if cells.empty:
        return Listing(Listing.empty().table, rows=rows, named=images, ages=ages)
    labels = np.stack(values["labels"])  # (N, 14)
    table = pd.DataFrame(
        {
            **name_columns(cells, values, faults),
            **person_columns(cells, values, faults),
            **{finding: labels[:, column] for column, finding in enumerate(FINDINGS)},
            **{name: cells[name] for name in further if name in cells},
        }
    )
    return Listing(one_row_an_image(table, faults), rows=rows, named=images, ages=ages)


def name_columns(
    cells: pd.DataFrame, values: Mapping[str, list[Any]], faults: Faults | None
) -> dict[str, object]:
    """The columns `file`, `line`, `image` and `patient_id`.

    Args:
        cells, values: as `readable` gives them.
        faults: sink of unknown patients; None if "unknown" is an ordinary patient ID.
    """
    patients = pd.Series(values["patient_id"], index=cells.index)
    unknown = patients == UNKNOWN_PATIENT
    if faults is not None and unknown.any():
        reason = "patient unknown (each image as a patient of its own)"
        faults.tell(
            "patient_unknown", cells["image"][unknown], dropped={reason: int(unknown.sum())}
        )
        patients = patients.mask(unknown, UNKNOWN_PATIENT + ": " + cells["image"])
    return {
        "file": cells["file"],
        "line": cells["line"],
        "image": cells["image"],
        "patient_id": patients,
    }


def unknown_persons(images: int) -> dict[str, object]:
    """The columns of `person_columns`, all unknown, for a table that has none of them."""
    follow_up = pd.array([pd.NA] * images, dtype="Int64")
    return {"follow_up": follow_up, "age": np.nan, "sex": "", "view": ""}


def person_columns(
    cells: pd.DataFrame, values: Mapping[str, list[Any]], faults: Faults
) -> dict[str, object]:
    """The columns `follow_up`, `age`, `sex` and `view`; invalid ones are reported and unknown."""
    ages = np.array(values["age"], dtype=float)
    sex, view = cells["sex"].str.upper(), cells["view"].str.upper()
    for kind, reason, unknown in (
        ("age_over_100", f"age over {MAX_AGE:.0f}", ages > MAX_AGE),
        ("sex_unknown", "sex not M or F", ~sex.isin(["M", "F", ""])),
        ("view_unknown", "view not PA or AP", ~view.isin(["PA", "AP", ""])),
    ):
        hit = np.asarray(unknown, dtype=bool)
        faults.tell(kind, named(cells, hit), dropped={f"{reason} (nulled)": int(hit.sum())})
    return {
        "follow_up": pd.array(values["follow_up"], dtype="Int64"),
        "age": np.where(ages > MAX_AGE, np.nan, ages),
        "sex": sex.where(sex.isin(["M", "F"]), ""),
        "view": view.where(view.isin(["PA", "AP"]), ""),
    }


def _labels(text: str) -> npt.NDArray[np.uint8]:
    try:
        return encode(text)
    except KeyError as error:
        known = ", ".join((NO_FINDING, *FINDINGS))
        name = error.args[0]
        message = f"unknown label {shown(name)}; known are {known}"
        raise CellFault("unknown_label", message, detail=shown(str(name), limit=40)) from error
    except ValueError as error:
        if text.strip("| "):
            raise CellFault("contradictory_label", str(error), detail=shown(text)) from error
        raise CellFault("no_label", str(error)) from error


def image_name(text: str) -> str:
    if not text:
        raise CellFault("row_without_image", "no image name", quoted=False)
    return text


def patient(text: str) -> str:
    """The patient ID in one spelling: "1", "0001" and "1.0" would else count as three patients."""
    if not text:
        message = "no patient; every image needs one, so that a split can keep them apart"
        raise CellFault("row_without_patient", message)
    return re.sub(r"^0+(?=\d+$)", "", re.sub(r"^(\d+)\.0$", r"\1", text))


def follow_up(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}(\.0)?", text, re.ASCII):
        raise CellFault("follow_up_unreadable", "not a whole number")
    return int(float(text))


def age(text: str) -> float:
    """Years from `58` or from a DICOM age string such as `058Y`; NaN from an empty cell."""
    if not text:
        return float("nan")
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([YMWD]?)", text.upper(), re.ASCII)
    if match is None:
        raise CellFault("age_unreadable", "not an age such as 58 or 058Y")
    return float(match[1]) * AGE_UNITS[match[2] or "Y"]


# Converter of each column; the order is that in which faults are raised.
PERSON_CELLS: dict[str, Callable[[str], object]] = {
    "image": image_name,
    "patient_id": patient,
    "age": age,
    "follow_up": follow_up,
}
CELLS = PERSON_CELLS | {"labels": _labels}


def read_list(path: Path) -> tuple[str, ...]:
    """Image names, one a line; a name that is there twice counts once."""
    names = (name.strip() for name in read_text(path).splitlines())
    return tuple(dict.fromkeys(name for name in names if name))


def check_patients_in_names(table: pd.DataFrame, faults: Faults) -> None:
    """Report rows whose patient is not the one in the image's name, which NIH made from the ID."""
    ids = table["image"].astype(object).str.extract(NIH_NAME, expand=False)
    known = ids.notna() & table["patient_id"].map(lambda text: bool(re.fullmatch(r"\d+", text)))
    rows = table[known.to_numpy(dtype=bool)]
    differing = ids[rows.index].astype("int64") != rows["patient_id"].map(int)
    faults.tell("patient_not_as_named", named(rows, differing.to_numpy(dtype=bool)))


def check_sexes(table: pd.DataFrame, faults: Faults) -> None:
    """Tell of images of patients who are M in one row and F in another."""
    known = table[table["sex"] != ""]
    several = known.groupby("patient_id", sort=False)["sex"].transform("nunique") > 1
    faults.tell("patient_of_two_sexes", known["image"][several])


FILE = "BBox_List_2017.csv"
GRID = 1024  # NIH's boxes are on the grid of its images, whatever size a copy has

# The title `Bbox [x,y,w,h]` stands unquoted in the file, and so in four cells.
BOX_TITLES: Titles = {
    "image": ("Image Index",),
    "finding": ("Finding Label",),
    "x": ("Bbox [x",),
    "y": ("y",),
    "width": ("w",),
    "height": ("h]",),
}
PLACE = ("x", "y", "width", "height")


def read_boxes(path: Path) -> pd.DataFrame:
    """The distinct boxes of a list, in fractions of the image's width and height.

    Returns:
        `image`, `finding`, and `left`, `top`, `right`, `bottom` from 0 to 1; boxes are clipped to
        the image.

    Raises:
        UserError: the file is missing, or the first fault with its line.
    """
    if not path.is_file():
        raise UserError(f"there is no {path}, which says where findings are")
    boxes = read_box_rows(path, FirstFault())
    start, end = _corners(boxes[list(PLACE)].to_numpy())
    places = dict(zip(("left", "top", "right", "bottom"), (*start.T, *end.T), strict=True))
    return boxes[["image", "finding"]].assign(**places).drop_duplicates(ignore_index=True)


def read_box_rows(path: Path, faults: Faults) -> pd.DataFrame:
    """The rows of a list of boxes.

    Returns:
        `name` (of the box, for messages), `image`, `finding` ("" if unknown), and `x`, `y`,
        `width`, `height` in pixels of the grid (NaN if the cell is no number).
    """
    cells = read_cells(path, BOX_TITLES, required=tuple(BOX_TITLES), faults=faults)
    rows = zip(cells["image"], cells["finding"], cells["line"], strict=True)
    told = [f"{image} ({finding}, line {line})" for image, finding, line in rows]
    names = pd.Series(told, dtype=object)
    numbers = np.array([_column(cells, key, _number, faults) for key in PLACE], dtype=float).T
    unreadable = np.isnan(numbers).any(axis=1)
    faults.tell("box_unreadable", names[unreadable])
    start, end = _corners(numbers)
    empty = np.flatnonzero((end <= start).any(axis=1))
    if len(empty):
        faults.refuse(fail_at(cells, int(empty[0]), "a box that covers nothing of its image"))
    outside = (numbers[:, :2] < 0).any(axis=1) | (numbers[:, 2:] <= 0).any(axis=1)
    outside |= (numbers[:, :2] + numbers[:, 2:] > GRID).any(axis=1)
    faults.tell("box_outside", names[outside & ~unreadable])
    faults.tell("box_repeated", names[cells.duplicated(["image", "finding", *PLACE])])
    findings = [finding or "" for finding in _column(cells, "finding", _finding, faults)]
    unknown = {
        name: shown(text, limit=40)
        for name, text, finding in zip(names, cells["finding"], findings, strict=True)
        if not finding
    }
    faults.tell("box_of_unknown_finding", unknown)
    places = {key: numbers[:, column] for column, key in enumerate(PLACE)}
    return pd.DataFrame({"name": names, "image": cells["image"], "finding": findings} | places)


def _corners(
    numbers: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Upper left and lower right corners (N, 2) of boxes (N, 4), in shares of the image."""
    start = np.clip(numbers[:, :2] / GRID, 0, 1)
    return start, np.clip(numbers[:, :2] / GRID + numbers[:, 2:] / GRID, 0, 1)


def _column(
    cells: pd.DataFrame, key: str, convert: Callable[[str], object], faults: Faults
) -> list[Any]:
    """The converted values of a column; None for a cell that cannot be read."""
    codes, outcomes = converted_once(cells, key, convert, faults)
    values = [None if isinstance(value, CellFault) else value for _, value in outcomes]
    return [values[code] for code in codes]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise CellFault("box_unreadable", str(error)) from error
    if not np.isfinite(value):
        raise CellFault("box_unreadable", "not a finite number")
    return value


def _finding(text: str) -> str:
    try:
        return canonical(text)
    except KeyError as error:
        message = f"{shown(text, limit=40)} is no finding"
        raise CellFault("box_of_unknown_finding", message) from error
