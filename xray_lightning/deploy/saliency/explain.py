"""Saliency of files (`xray explain`): maps, overlays and a table, written as one folder."""

import csv
import io
import math
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.table import Table

from xray_lightning.deploy.model import Model
from xray_lightning.deploy.predict import cell, find_inputs, safe_path
from xray_lightning.deploy.saliency.gallery import (
    PAGE,
    Choice,
    Explained,
    Gallery,
    explain_each,
    overlay_png,
)
from xray_lightning.deploy.saliency.localisation import LEVELS, MACRO, Localisation, Score, boxes_of
from xray_lightning.deploy.saliency.maps import Explainer, Maps
from xray_lightning.errors import UserError, printable
from xray_lightning.files import check_writable, told_if_unwritable
from xray_lightning.progress import Display, unseen
from xray_lightning.terminal import NONE, decimal, interval, readable, say

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


@dataclass(frozen=True)
class Done:
    """What was done: images, of which unreadable, maps, and those with boxes."""

    images: int
    unreadable: int
    maps: int
    boxed: int
    page: Path | None

    def summary(self) -> str:
        """All counts in one line."""
        boxed = f", {self.boxed:,} with boxes" if self.boxed else ""
        return f"{self.images:,} images, {self.unreadable:,} unreadable, {self.maps:,} maps{boxed}"


def explain(
    checkpoint: Path,
    arguments: Sequence[str],
    out: Path,
    *,
    method: str,
    choice: Choice,
    html: bool = False,
    images: Path | None = None,
    boxes: Path | None = None,
    device: str = "auto",
    progress: Display = unseen,
) -> Done:
    """Write overlays, maps and a table of files, and a gallery of them.

    Args:
        checkpoint: a .ckpt file.
        arguments: files, folders, patterns or CSVs; see `inputs.find_inputs`.
        out: a new or an empty folder.
        method: a key of `maps.METHODS`.
        choice: the findings.
        html: whether to write the gallery.
        images: folder of a CSV's images; None for the CSV's own.
        boxes: a list of boxes; None for the one that lies beside the images.
        device: `auto`, `cpu` or `cuda`.
        progress: display for the images.

    Raises:
        UserError: nothing to explain, a model that cannot be read, a finding that it does not
            know, or a place that cannot be written to.
        RunFailedError: an answer that is no number, or a full disk; no folder is left.
    """
    check_new(out)
    paths = find_inputs(arguments, images=images).paths
    explainer = Explainer.load(checkpoint, method=method, device=device)
    choice.check(explainer.findings)
    boxes_by_path = boxes_of(paths, file=boxes)
    if boxes is not None and not boxes_by_path:
        raise UserError(f"--boxes {boxes}: none of its boxes is of these images")
    gallery = Gallery(explainer.model, checkpoint=checkpoint, method=method)
    unreadable = maps = boxed = 0
    with new_folder(out) as folder, (folder / TABLE).open("w", encoding="utf-8") as table:
        writer = Writer(folder, table, explainer.model)
        with progress("explaining", len(paths)) as advance:
            for one in explain_each(explainer, paths, choice, boxes=boxes_by_path):
                writer.write(one)
                if html:
                    gallery.add(one)
                unreadable += one.gray is None
                boxed += bool(one.boxes)
                maps += len(one.maps)
                advance(1)
        if html:
            (folder / PAGE).write_text(gallery.page(), encoding="utf-8")
    return Done(len(paths), unreadable, maps, boxed, out / PAGE if html else None)


def show_localisation(found: Localisation, console: Console, *, title: str) -> None:
    """Print the pointing game by finding, and the overlaps of all findings together."""
    say(title, console=console)
    table = Table(title="Pointing game: largest value in a box", title_justify="left")
    table.add_column("finding")
    for heading in ("images", "share", "95 % interval", "chance", "another patient"):
        table.add_column(heading, justify="right")
    for name, score in found.pointing.items():
        if name == MACRO:
            table.add_section()
        images = "" if name == MACRO else f"{found.images[name]:,}"
        label = f"macro over {len(found.images)}" if name == MACRO else readable(name)
        table.add_row(label, images, *_cells(score))
    console.print(table)
    overlaps = Table(title="Overlap with the boxes (IoU), macro", title_justify="left")
    overlaps.add_column("marked, of the map's largest value")
    for heading in ("mean IoU", "95 % interval", "chance", "another patient"):
        overlaps.add_column(heading, justify="right")
    for level in LEVELS:
        overlaps.add_row(f"{level:.0%} and more", *_cells(found.overlap[level][MACRO]))
    console.print(overlaps)
    lines = [
        "Chance: a point, or as many pixels as the map marks, anywhere in the image.",
        "Another patient: the map of another patient with the finding, on the same boxes.",
    ]
    if found.unreadable:
        lines.append(f"Images with boxes that cannot be read, left out: {len(found.unreadable):,}")
    say(*lines, console=console)


def _cells(score: Score) -> tuple[str, ...]:
    return (
        decimal(score.value),
        interval(score.ci95, joint=" to "),
        decimal(score.chance),
        NONE if math.isnan(score.another) else decimal(score.another),
    )
