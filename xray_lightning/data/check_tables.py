"""Reader of the tables, lists and image files of a data set that collects every fault."""

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.csv_table import converted_once, read_cells, shown
from xray_lightning.data.download.chestmnist import TABLE as CHESTMNIST
from xray_lightning.data.faults import Remark, remark
from xray_lightning.data.image_files import IMAGE_SUFFIXES
from xray_lightning.data.manifest import read_list
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.nih import (
    AI4M_CELLS,
    AI4M_TABLES,
    AI4M_TITLES,
    FILE,
    GRID,
    MAX_AGE,
    NIH_CELLS,
    NIH_LISTS,
    NIH_REQUIRED,
    NIH_TABLES,
    NIH_TITLES,
    PLACE,
    TITLES,
    UNKNOWN_PATIENT,
    ai4m_table,
    nih_table,
)
from xray_lightning.data.sources.phantom.dataset import read_mark
from xray_lightning.data.splits import SIDES, SPELLINGS, SPLIT_TITLES
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, canonical

Bools = npt.NDArray[np.bool_]

# NIH names an image by its patient and a number: 00000001_000.png.
NIH_NAME = r"^(\d{8})_\d{3}\.png$"


def checked_one_row_an_image(
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
        self.table, remarks = checked_one_row_an_image(rows, repeats=repeats)
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


NIH_IMAGES = 112_120
# Rows of the AI-for-Medicine CSVs, by the releases that are known.
AI4M_RELEASES: dict[tuple[int, ...], str] = {
    (1000, 200, 420): "1000/200/420",
    (875, 109, 420): "875/109/420",
}


@dataclass(frozen=True)
class Source:
    """A data set's kind.

    Attributes:
        dialect: `nih`, `ai4m` or `csv`, as in the manifest.
        release: in words.
        told_by: what that was told by.
        tables: what its tables say.
        nih: whether its images are NIH's own, whose size is known.
        one_size: whether all images must have one size.
    """

    dialect: str
    release: str
    told_by: tuple[str, ...]
    tables: Tables
    nih: bool = False
    one_size: bool = True


def read_source(
    root: Path, *, own: OwnTable | None = None, findings: tuple[str, ...] | None = None
) -> Source:
    """Find and read the tables of a data set.

    Args:
        root: its folder.
        own: how to read a table of one's own, rather than NIH's or AI for Medicine's; where
            there are neither, any single CSV is taken for one.
        findings: those of one's own table; None for all of NIH's 14 that it has.

    Raises:
        UserError: no table, or several to choose from.
    """
    nih = sorted(path for path in root.glob(NIH_TABLES) if path.is_file())
    ai4m = {side: root / name for side, name in AI4M_TABLES.items() if (root / name).is_file()}
    if own is None and nih:
        return _nih(root, nih)
    if own is None and ai4m:
        return _ai4m(ai4m)
    if own is None and not any(path.suffix.lower() == ".csv" for path in root.iterdir()):
        raise UserError(_no_table_remark(root))
    # -1 and empty cells are counted, not refused: what they mean is said by the configuration.
    path = (own or OwnTable(uncertain="negative", empty="negative")).find(root)
    own = own or OwnTable(file=path.name, uncertain="negative", empty="negative")
    told_by = (f"{path.name} is neither NIH's table nor AI for Medicine's",)
    tables = read_own(path, own, findings)
    return Source("csv", "a table of one's own", told_by, tables, one_size=False)


def _nih(root: Path, paths: list[Path]) -> Source:
    path = paths[0]
    tables = read_nih(path)
    tables.remarks += remark("several_tables", [other.name for other in paths[1:]])
    mark = read_mark(root)
    if mark:
        release = f"phantoms, {mark.get('images')} of {mark.get('size')} x {mark.get('size')}"
        return Source("nih", release, ("phantom.json", path.name), tables)
    if path.name == CHESTMNIST:
        return Source("nih", "ChestMNIST (MedMNIST v2)", (path.name,), tables)
    if not tables.table["image"].astype(object).str.match(NIH_NAME).any():
        how = f"{path.name}, none of whose images has a name of NIH's"
        release = "a table in the layout of NIH ChestX-ray14"
        return Source("nih", release, (how,), tables, one_size=False)
    release, how = _nih_release(path, tables)
    told_by = (how, f"{tables.rows:,} of NIH's {NIH_IMAGES:,} rows")
    return Source("nih", f"NIH ChestX-ray14, {release}", told_by, tables, nih=True)


def _nih_release(path: Path, tables: Tables) -> tuple[str, str]:
    """The first release wrote ages as 058Y, or up to 414; that of 2020 does neither."""
    if "v2020" in path.name:
        return "release v2020", f"the name {path.name}"
    if any(text.upper().endswith("Y") for text in tables.ages):
        return "first release (2017)", f"ages such as 058Y in {path.name}"
    if any(one.kind == "age_over_100" for one in tables.remarks):
        return "first release (2017)", f"ages over {MAX_AGE:.0f} in {path.name}"
    return "release unknown", f"the name {path.name}, and no age as the first release had"


def _ai4m(paths: Mapping[str, Path]) -> Source:
    tables = read_ai4m(paths)
    lacking = [name for side, name in AI4M_TABLES.items() if side not in paths]
    tables.remarks += remark(
        "list_missing", dict.fromkeys(lacking, "without it there is no data.split=ai4m")
    )
    images = {side: len(tables.given.get(side, ())) for side in AI4M_TABLES}
    release = AI4M_RELEASES.get(tuple(images.values()))
    named = f"release {release}" if release else "of unknown release"
    listed = ", ".join(f"{images[side]:,} in {path.name}" for side, path in paths.items())
    told_by = (f"images {listed}",)
    return Source("ai4m", f"AI for Medicine, {named}", told_by, tables, nih=True)


def _no_table_remark(root: Path) -> str:
    files = Counter(path.suffix.lower() for path in root.iterdir() if path.is_file())
    found = ", ".join(f"{count:,} {shown(suffix)}" for suffix, count in files.most_common(3))
    return (
        f"{root} holds no table of images: looked for {NIH_TABLES} (NIH), "
        f"{', '.join(AI4M_TABLES.values())} (AI for Medicine) or a CSV of one's own with an image, "
        f"a patient and findings in each row; found {found or 'no file'}; put the table there, or "
        "give the folder that has it, and this one as --images"
    )


def check_boxes(root: Path, table: pd.DataFrame) -> tuple[int, list[Remark]]:
    """How many boxes there are, and what is wrong with them.

    Args:
        root: the folder that may hold the list.
        table: with `image` and a column for each finding, one row an image.
    """
    path = root / FILE
    if not path.is_file():
        return 0, []
    short: list[int] = []
    try:
        boxes = read_cells(path, TITLES, required=tuple(TITLES), short=short)
    except UserError as error:
        return 0, remark("table_unreadable", {path.name: str(error)})
    boxes["name"] = [
        f"{image} ({finding}, line {line})"
        for image, finding, line in zip(
            boxes["image"], boxes["finding"], boxes["line"], strict=True
        )
    ]
    numbers = np.array([[_box_number(text) for text in boxes[key]] for key in PLACE]).T  # (N, 4)
    unreadable = np.isnan(numbers).any(axis=1)
    start, size = numbers[:, :2], numbers[:, 2:]
    outside = (start < 0).any(axis=1) | (size <= 0).any(axis=1)
    outside |= (start + size > GRID).any(axis=1)
    remarks = remark("short_row", [f"{path.name}, line {line}" for line in short])
    remarks += remark("box_unreadable", boxes["name"][unreadable])
    remarks += remark("box_outside", boxes["name"][outside & ~unreadable])
    repeated = boxes.duplicated(["image", "finding", *PLACE])
    remarks += remark("box_repeated", boxes["name"][repeated])
    return len(boxes) + len(short), remarks + _beside_the_table(boxes, table)


def _beside_the_table(boxes: pd.DataFrame, table: pd.DataFrame) -> list[Remark]:
    row_of = {image: row for row, image in enumerate(table["image"])}
    labels = {column: table[column].to_numpy() for column in table.columns}
    no_row, no_finding, no_label = [], {}, []
    for name, image, text in zip(boxes["name"], boxes["image"], boxes["finding"], strict=True):
        row = row_of.get(image)
        if row is None:
            no_row.append(name)
        try:
            finding = canonical(text)
        except KeyError:
            no_finding[name] = shown(text, limit=40)
            continue
        if row is not None and finding in labels and not labels[finding][row]:
            no_label.append(name)
    return [
        *remark("box_without_row", no_row),
        *remark("box_of_unknown_finding", no_finding),
        *remark("box_without_label", no_label),
    ]


def _box_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


Given = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class SplitFound:
    """A split that exists.

    Attributes:
        name: `official`, `ai4m`, `column`, or a file.
        sides: each side's images that have a row, as they are counted.
        patients: patients of each side.
        overlaps: what pairs of sides share: "train-val" -> {"patients": n, "images": n}.
        remarks: what is wrong.
    """

    name: str
    sides: dict[str, frozenset[str]]
    patients: dict[str, int]
    overlaps: dict[str, dict[str, int]] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)


def official(root: Path) -> tuple[dict[str, tuple[str, ...]], list[Remark]]:
    """NIH's lists that are there, by side, and what is wrong with them."""
    given: dict[str, tuple[str, ...]] = {}
    remarks: list[Remark] = []
    for side, file in NIH_LISTS.items():
        if (root / file).is_file():
            try:
                given[side] = read_list(root / file)
            except UserError as error:
                remarks += remark("table_unreadable", {file: str(error)})
        else:
            remarks += remark("list_missing", {file: "without it there is no data.split=official"})
    return given, remarks


def of_column(given: Given) -> tuple[dict[str, tuple[str, ...]], list[Remark]]:
    """The sides of a column `split` of one's own table."""
    sides: dict[str, tuple[str, ...]] = {}
    remarks: list[Remark] = []
    for text, images in given.items():
        for side, spellings in SPELLINGS.items():
            if text.lower() in spellings:
                sides[side] = sides.get(side, ()) + images
                break
        else:
            remarks += remark("unknown_side", images)
    return sides, remarks


def of_file(path: Path) -> tuple[dict[str, tuple[str, ...]], list[Remark]]:
    """The sides of a CSV (image, split), read to its end."""
    short: list[int] = []
    try:
        rows = read_cells(path, SPLIT_TITLES, required=tuple(SPLIT_TITLES), short=short)
    except UserError as error:
        return {}, remark("table_unreadable", {path.name: str(error)})
    known = rows["split"].isin(SIDES)
    remarks = remark("short_row", [f"{path.name}, line {line}" for line in short])
    remarks += remark(
        "unknown_side",
        {
            image: f"{path.name}, line {line}"
            for image, line in zip(rows["image"][~known], rows["line"][~known], strict=True)
        },
    )
    return {
        side: tuple(dict.fromkeys(rows["image"][rows["split"] == side])) for side in SIDES
    }, remarks


def check_split(name: str, given: Given, table: pd.DataFrame) -> SplitFound:
    """Compare every pair of sides, and the sides with the table.

    Args:
        name: of the split.
        given: its images by side.
        table: with `image` and `patient_id`, one row an image.
    """
    patient_of = dict(zip(table["image"], table["patient_id"], strict=True))
    sides = {side: frozenset(patient_of.keys() & names) for side, names in given.items()}
    patients = {side: {patient_of[image] for image in images} for side, images in sides.items()}
    split = SplitFound(name, sides, {side: len(ids) for side, ids in patients.items()})
    for one, other in combinations(given, 2):
        # Also images without a row: the lists contradict each other all the same.
        images = set(given[one]) & set(given[other])
        both = patients[one] & patients[other]
        if images or both:
            split.overlaps[f"{one}-{other}"] = {"patients": len(both), "images": len(images)}
        where = f"in both {one} and {other} of the split {name}"
        split.remarks.extend(remark("image_on_two_sides", images, text=f"images {where}"))
        theirs = [image for image in sides[one] | sides[other] if patient_of[image] in both]
        split.remarks.extend(
            remark(
                "patient_on_two_sides",
                theirs,
                count=len(both),
                text=f"patients {where}, with {len(theirs):,} images",
            )
        )
    split.remarks.extend(_rows_and_names(name, given, split, table))
    return split


def _rows_and_names(
    name: str, given: Given, split: SplitFound, table: pd.DataFrame
) -> list[Remark]:
    """What the split and the table do not have in common."""
    named = {image for images in given.values() for image in images}
    lists = name in ("official", "ai4m", "column")
    without = named.difference(table["image"])
    remarks = remark("listed_without_row" if lists else "split_without_row", without)
    left = [image for image in table["image"] if image not in named]
    remarks += remark("on_no_side", left, text=f"rows on no side of the split {name}")
    empty = [side for side, images in split.sides.items() if not images]
    return remarks + remark("side_empty", empty, text=f"sides of the split {name} without an image")


_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass
class Folder:
    """What lies below a folder.

    Attributes:
        root: the folder.
        files: paths of the regular files named like an image, by their names.
        odd: paths of what is named like an image and is no file, with what it is.
        again: links to folders that were searched already; a loop of links is one.
        unreadable: folders that cannot be looked into, with the reason.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def path_of(self, name: str, *, own: bool) -> str:
        """The file of an image, or "".

        Args:
            name: as in the table.
            own: whether that may be a path below the folder, as in a table of one's own, where a
                file of the folder itself comes before those further down.
        """
        if own and os.path.isfile(joined := os.path.join(self.root, name)):
            return joined
        return self.files.get(name, [""])[0]

    def odd_names(self) -> dict[str, str]:
        """What stands in the place of an image file, by its name."""
        return {os.path.basename(path): what for path, what in self.odd.items()}


def search(root: Path) -> Folder:
    """Look for images at any depth, as training does, but stop at nothing.

    Links to folders are followed, each folder visited once.
    """
    found = Folder(root)
    pending, visited = [os.fspath(root)], set()
    while pending:
        here = pending.pop()
        try:
            state = os.stat(here)
            if (state.st_dev, state.st_ino) in visited:
                found.again.append(here)
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(here) as entries:
                pending += sorted(_sorted_in(entries, found), reverse=True)
        except OSError as error:
            found.unreadable[here] = error.strerror or type(error).__name__
    return found


def _sorted_in(entries: Iterator["os.DirEntry[str]"], found: Folder) -> Iterator[str]:
    """Put each entry where it belongs; yields the folders among them."""
    for entry in entries:
        try:
            if entry.is_dir():
                yield entry.path
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            elif entry.is_file():
                _add(found.files.setdefault(entry.name, []), entry.path)
            else:
                found.odd[entry.path] = _what(entry)
        except OSError as error:
            found.odd[entry.path] = error.strerror or type(error).__name__


def _add(paths: list[str], path: str) -> None:
    """Add a file, but not a link to the one that is there."""
    if not paths or not os.path.samefile(path, paths[0]):
        paths.append(path)


def _what(entry: "os.DirEntry[str]") -> str:
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    return next((what for test, what in _KINDS if test(mode)), "no regular file")
