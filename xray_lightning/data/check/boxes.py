"""NIH's list of boxes, beside the table that it belongs to."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.boxes import FILE, GRID, PLACE, TITLES
from xray_lightning.data.cells import read_cells, shown
from xray_lightning.data.check.remarks import Remark, remark
from xray_lightning.errors import UserError
from xray_lightning.findings import canonical


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
    numbers = np.array([[_number(text) for text in boxes[key]] for key in PLACE]).T  # (N, 4)
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


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
