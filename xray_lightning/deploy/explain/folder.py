"""A folder of explanations: overlays, maps and a table, whole or not there."""

import csv
import io
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from xray_lightning.atomic import check_writable, told_if_unwritable
from xray_lightning.deploy.explain.explained import Explained
from xray_lightning.deploy.explain.maps import Maps
from xray_lightning.deploy.explain.overlay import overlay_png
from xray_lightning.deploy.model import Model
from xray_lightning.deploy.rows import cell, safe_path
from xray_lightning.errors import UserError, printable

TABLE, OVERLAYS, MAPS = "explained.csv", "overlays", "maps"
LONGEST_NAME = 80  # letters of an image's name in those of its files


def check_new(out: Path) -> None:
    """Refuse, before the work, a folder that holds files or cannot be made.

    Raises:
        UserError: naming it.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} holds files already; give a new or an empty folder")
    check_writable(out, key="--out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block.

    Raises:
        UserError: it cannot be written to.
        RunFailedError: the disk is full. Nothing is left, as after any other exception.
    """
    out = out.absolute()
    filling = out.with_name(f".{out.name[:40]}.{secrets.token_hex(4)}")
    try:
        with told_if_unwritable(f"--out {out} cannot be written", advice="give another folder"):
            filling.mkdir(parents=True)
            yield filling
            filling.rename(out)  # over nothing, or over an empty folder
    finally:
        shutil.rmtree(filling, ignore_errors=True)


class Writer:
    """Writes the files of one image after the other.

    explained.csv has a row for each map, and one for each image that could not be read. A map's
    peak is the place of its largest value, in shares of the image's width and height.
    """

    def __init__(self, folder: Path, table: TextIO, model: Model) -> None:
        self._folder, self._model = folder, model
        self._names: dict[str, int] = {}
        taken: dict[str, int] = {}
        self._finding_names = {name: _unique(_plain(name), taken) for name in model.findings}
        self._rows = csv.writer(table, lineterminator="\n")
        self._rows.writerow(
            [
                *("path", "status", "reason", "flags", "finding", "probability"),
                *(("calibrated",) if model.calibrated else ()),
                *(("threshold", "decision") if model.operating_points else ()),
                *("peak_x", "peak_y", "overlay", "maps"),
            ]
        )
        for part in (OVERLAYS, MAPS):
            (folder / part).mkdir()

    def write(self, one: Explained) -> None:
        """Write an image's overlays, maps and rows.

        Raises:
            OSError: the disk is full or fails.
        """
        said = one.prediction
        path, flags = safe_path(said.image), ";".join(said.flags)
        if said.reason is not None or one.gray is None:
            self._rows.writerow(
                map(cell, [path, "unreadable", printable(said.reason or ""), flags])
            )
            return
        name = _unique(_plain(Path(said.image).stem), self._names)
        maps = f"{MAPS}/{name}.npz"
        for finding, values in one.maps.items():
            overlay = f"{OVERLAYS}/{name}.{self._finding_names[finding]}.png"
            (self._folder / overlay).write_bytes(overlay_png(one.gray, values))
            row = [path, "ok", "", flags, finding, *self._numbers(one, finding), *peak(values)]
            self._rows.writerow(map(cell, [*row, overlay, maps]))
        buffer = io.BytesIO()
        stacked = np.stack(list(one.maps.values()))
        np.savez_compressed(buffer, findings=np.array(list(one.maps)), maps=stacked)
        (self._folder / maps).write_bytes(buffer.getvalue())

    def _numbers(self, one: Explained, finding: str) -> list[float | bool | None]:
        place = self._model.findings.index(finding)
        said, points = one.prediction, self._model.operating_points
        values = [said.probabilities, *([said.calibrated] if self._model.calibrated else [])]
        numbers: list[float | bool | None] = [
            None if v is None else float(v[place]) for v in values
        ]
        if points is not None:
            decided = None if said.decisions is None else bool(said.decisions[place])
            numbers += [points[finding], decided]
        return numbers


def peak(values: Maps) -> tuple[float | None, float | None]:
    """Where a map is largest: x and y, 0 to 1; None of a map of nothing."""
    if not values.max() > 0:
        return None, None
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (float(column) + 0.5) / values.shape[1], (float(row) + 0.5) / values.shape[0]


def _plain(name: str) -> str:
    """A name of letters that every file system takes, and no path."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_NAME] or "_"


def _unique(plain: str, taken: dict[str, int]) -> str:
    """A name, with a number where it is taken; a plain name has no "~", and so none is it."""
    number = taken[plain.lower()] = taken.get(plain.lower(), 0) + 1
    return plain if number == 1 else f"{plain}~{number}"
