"""Saliency of files (`xray explain`): maps, overlays and a table, written as one folder."""

import csv
import io
import math
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.table import Table

from xray_lightning.deploy.model import Model, Prediction
from xray_lightning.deploy.predict import cell, find_inputs, flat
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
from xray_lightning.errors import UserError
from xray_lightning.files import check_writable, told_if_unwritable
from xray_lightning.progress import Display, unseen
from xray_lightning.terminal import NONE, decimal, interval, readable, say

TABLE, OVERLAYS, MAPS = "explained.csv", "overlays", "maps"
FILE = ("path", "status", "reason", "flags")  # first columns of every row: facts of the image
KINDS = ("prob", "calibrated", "threshold", "decision")
LONGEST_NAME = 80  # characters of an image's or finding's name that file names keep


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that is renamed to `out` at the end of the block.

    Raises:
        UserError: it cannot be written to.
        RunFailedError: the disk is full. The folder is removed, as after any other exception.
    """
    out = out.absolute()
    filling = out.with_name(f".{out.name[:40]}.{secrets.token_hex(4)}")
    try:
        with told_if_unwritable(f"--out {out} cannot be written", advice="give another folder"):
            filling.mkdir(parents=True)
            yield filling
            filling.rename(out)  # which does not exist, or is an empty folder
    finally:
        shutil.rmtree(filling, ignore_errors=True)


class Writer:
    """Writes the files and table rows of images, one image at a time.

    explained.csv has a row for each map, and one for each image that could not be read. A map's
    peak is the place of its largest value, in shares of the image's width and height.
    """

    def __init__(self, folder: Path, table: TextIO, model: Model) -> None:
        self._folder, self._model = folder, model
        self._names: dict[str, int] = {}
        taken: dict[str, int] = {}
        self._finding_names = {name: _unique(_plain(name), taken) for name in model.findings}
        self._kinds = [
            kind for kind in KINDS if f"{kind}_{model.findings[0]}" in flat(Prediction(""), model)
        ]
        self._rows = csv.writer(table, lineterminator="\n")
        self._rows.writerow(
            [
                *FILE,
                "finding",
                "probability",
                *self._kinds[1:],
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
        told = flat(said, self._model)
        file = [told[key] for key in FILE]
        if one.gray is None:
            self._rows.writerow(map(cell, file))
            return
        name = _unique(_plain(Path(said.image).stem), self._names)
        maps = f"{MAPS}/{name}.npz"
        for finding, values in one.maps.items():
            overlay = f"{OVERLAYS}/{name}.{self._finding_names[finding]}.png"
            (self._folder / overlay).write_bytes(overlay_png(one.gray, values))
            numbers = [told[f"{kind}_{finding}"] for kind in self._kinds]
            row = [*file, finding, *numbers, *peak(values), overlay, maps]
            self._rows.writerow(map(cell, row))
        buffer = io.BytesIO()
        stacked = np.stack(list(one.maps.values()))
        np.savez_compressed(buffer, findings=np.array(list(one.maps)), maps=stacked)
        (self._folder / maps).write_bytes(buffer.getvalue())


def peak(values: Maps) -> tuple[float | None, float | None]:
    """Position of a map's largest value: x and y, 0 to 1; None for an all-zero map."""
    if not values.max() > 0:
        return None, None
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (float(column) + 0.5) / values.shape[1], (float(row) + 0.5) / values.shape[0]


def _plain(name: str) -> str:
    """The name as a safe file name: only ASCII letters, digits, "_" and "-", shortened."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_NAME] or "_"


def _unique(plain: str, taken: dict[str, int]) -> str:
    """The name, with "~" and a number if it is taken; `_plain` names hold no "~" to clash with."""
    number = taken[plain.lower()] = taken.get(plain.lower(), 0) + 1
    return plain if number == 1 else f"{plain}~{number}"


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
) -> str:
    """Write overlays, maps and a table of files, and a gallery of them.

    Args:
        arguments: files, folders, patterns or CSVs; see `predict.find_inputs`.
        out: a new or an empty folder.
        method: a key of `maps.METHODS`.
        html: whether to write the gallery.
        images: folder of a CSV's images; None for the CSV's own.
        boxes: a list of boxes; None for the one that lies beside the images.

    Returns:
        All counts in one line.

    Raises:
        UserError: nothing to explain, a model that cannot be read, a finding that it does not
            know, or a place that cannot be written to.
        RunFailedError: NaN or infinite logits, or a full disk; no folder is left.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} holds files already; give a new or an empty folder")
    check_writable(out, key="--out")
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
    with_boxes = f", {boxed:,} with boxes" if boxed else ""
    return f"{len(paths):,} images, {unreadable:,} unreadable, {maps:,} maps{with_boxes}"


def show_localisation(found: Localisation, console: Console, *, title: str) -> None:
    """Print the pointing game by finding, and the overlaps of all findings together."""
    say(title, console=console)
    beside = ("95 % interval", "chance", "another patient")
    table = _table("Pointing game: largest value in a box", "finding", "images", "share", *beside)
    for name, score in found.pointing.items():
        if name == MACRO:
            table.add_section()
            table.add_row(f"macro over {len(found.images)}", "", *_cells(score))
        else:
            table.add_row(readable(name), f"{found.images[name]:,}", *_cells(score))
    console.print(table)
    marked = "marked, of the map's largest value"
    overlaps = _table("Overlap with the boxes (IoU), macro", marked, "mean IoU", *beside)
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


def _table(title: str, first: str, *figures: str) -> Table:
    table = Table(first, title=title, title_justify="left")
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def _cells(score: Score) -> tuple[str, ...]:
    return (
        decimal(score.value),
        interval(score.ci95, joint=" to "),
        decimal(score.chance),
        NONE if math.isnan(score.another) else decimal(score.another),
    )
