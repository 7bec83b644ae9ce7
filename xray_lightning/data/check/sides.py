"""The splits that a data set comes with: who is on two sides, and who on none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd

from xray_lightning.data.cells import read_cells
from xray_lightning.data.check.remarks import Remark, remark
from xray_lightning.data.manifest import NIH_LISTS, read_list
from xray_lightning.data.splits import SIDES, SPELLINGS, SPLIT_TITLES
from xray_lightning.errors import UserError

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
