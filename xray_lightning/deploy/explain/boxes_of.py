"""The boxes that a data set has of images that are named one by one."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from xray_lightning.data.boxes import FILE, read_boxes
from xray_lightning.deploy.explain.explained import Box
from xray_lightning.errors import UserError

log = logging.getLogger(__name__)

ABOVE = 3  # folders that are looked into: DIR/images_001/images, as NIH's archives are laid out


def boxes_of(paths: Sequence[str], *, file: Path | None) -> Mapping[str, Sequence[Box]]:
    """The boxes of images, by path.

    Args:
        file: the list of boxes; None for those found beside the images or in folders above.

    Raises:
        UserError: a `file` that is not there or has a fault. A faulty list that was not asked for
            is told of and left out.
    """
    listed: dict[Path, dict[str, list[Box]]] = {}
    found: dict[str, list[Box]] = {}
    nearest: dict[str, Path | None] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in nearest:
            nearest[folder] = file or _nearest(Path(folder))
        place = nearest[folder]
        if place is None:
            continue
        if place not in listed:
            listed[place] = _read(place, asked_for=file is not None)
        if name in listed[place]:
            found[path] = listed[place][name]
    return found


def _nearest(folder: Path) -> Path | None:
    folders = [folder, *folder.absolute().parents][:ABOVE]
    return next((one / FILE for one in folders if (one / FILE).is_file()), None)


def _read(file: Path, *, asked_for: bool) -> dict[str, list[Box]]:
    try:
        boxes = read_boxes(file)
    except UserError as error:
        if asked_for:
            raise
        log.warning("%s; no boxes are shown", error)
        return {}
    found: dict[str, list[Box]] = {}
    for image, *box in boxes.itertuples(index=False):
        found.setdefault(str(image), []).append(Box(*box))
    return found
