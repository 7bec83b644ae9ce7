"""The boxes that a model may be scored on: those of images that it has not learned from."""

from pathlib import Path

import pandas as pd

from xray_lightning.data.boxes import FILE, read_boxes
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.splits import make_split, own_split
from xray_lightning.errors import UserError

SIDES = ("test", "all")


def boxes_to_score(root: Path, *, images: Path | None = None, side: str = "test") -> pd.DataFrame:
    """The boxes of a data set, with the file and patient of their images.

    Args:
        root: folder of NIH's table, lists and boxes.
        images: folder of the images; `root` when None.
        side: `test`, the images of the official test list, or `all` of them.

    Returns:
        As `read_boxes`, and `path`, `patient_id`; of images that have a row and a file.

    Raises:
        UserError: a file that is not there or cannot be read, or no box that is left.
    """
    if side not in SIDES:
        raise UserError(f"--side {side} is unknown; choose one of {', '.join(SIDES)}")
    manifest = read_manifest(root, images=images)
    boxes = read_boxes(root / FILE)
    rows = manifest.table[["image", "path", "patient_id"]]
    if side == "test":
        name = own_split(manifest)
        if name is None:
            raise UserError(
                f"{root} brings no split along, so that nobody knows which images are for testing; "
                "give --side all"
            )
        rows = rows[rows["image"].isin(make_split(manifest, name).sides["test"])]
    found = boxes.merge(rows[rows["path"] != ""], on="image")
    if found.empty:
        raise UserError(
            f"{root / FILE}: none of {len(boxes):,} boxes is of an image that is there and on the "
            f"side asked for ({side})"
        )
    return found
