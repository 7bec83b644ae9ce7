"""Boxes around findings: NIH's list of them, which phantoms have too."""

from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.cells import Titles, fail_at, read_cells, shown
from xray_lightning.data.dialects import converted
from xray_lightning.errors import UserError
from xray_lightning.findings import canonical

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
