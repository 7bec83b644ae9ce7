"""First weights of a run: which tensors came from a file, and which images it was trained on."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import UserError, printable
from xray_lightning.findings import folded
from xray_lightning.models.weights_transfer import TakenOver

LISTS = (".csv", ".txt")  # endings of image lists in `model.weights_seen`
# Names of data sets that have the images of one source, normalised by `folded`.
_SAME_IMAGES = {
    "nih": {"nih", "ai4m", "chestmnist", "chestxray14", "nihchestxray14", "chestxray8", "cxr14"}
}
_UNTOLD = {"csv"}  # custom CSV: the name does not identify the images
_COLUMNS = {"image", "imageindex", "patientid", "patient"}  # column titles, `folded`


def check_first_weights(
    taken: TakenOver, data: XrayDataModule, *, allowed: bool, normalize: str
) -> list[str]:
    """Refuse weights that were trained on test images, or on differently normalised pixels.

    Args:
        data: already set up.
        allowed: whether to run although they have seen test images.

    Returns:
        Which test images they have seen, one text per source; empty if none are known.

    Raises:
        UserError: they have seen test images and `allowed` is false, or need another
            `data.normalize`.
    """
    if taken.normalize not in (None, normalize):
        raise UserError(
            f"{taken.source}: weights of torchxrayvision, which take pixels from -1024 to 1024: "
            f"give data.normalize={taken.normalize}, to which their first layer is scaled"
        )
    seen = list(_seen_of_test(taken, data))
    if seen and not allowed:
        raise UserError(
            f"{taken.source}: these weights have seen {' and '.join(seen)}: take others, or set "
            "model.allow_seen_test=true to run anyway and have the result marked"
        )
    return seen


def _seen_of_test(taken: TakenOver, data: XrayDataModule) -> Iterator[str]:
    table = data.table("test")
    origin = _origin(str(data.name))
    named = list(taken.seen)
    split = data.usable.split.sha256
    named += [name for name, other in taken.trained_on if other != split]
    for entry in named:
        if entry.lower().endswith(LISTS):
            listed = _listed(Path(entry))
            images = int(table["image"].isin(listed).sum())
            patients = int(table["patient_id"].astype(str).isin(listed).sum())
            if most := max(images, patients):
                yield f"{most:,} of the {len(table):,} test images ({entry})"
        elif origin not in _UNTOLD and _origin(entry) == origin:
            yield f"the data set {printable(entry)}, of which the test images are"


def _origin(name: str) -> str:
    """The key in `_SAME_IMAGES` for a data set's name, else the name itself, both `folded`."""
    plain = folded(name)
    return next((first for first, others in _SAME_IMAGES.items() if plain in others), plain)


def _listed(path: Path) -> set[str]:
    """The images or patients in a list: one per line, or a CSV's columns named in `_COLUMNS`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"model.weights_seen: {path} cannot be read ({error})") from error
    head = [folded(cell) for cell in rows[0]] if rows else []
    places = [place for place, title in enumerate(head) if title in _COLUMNS]
    body = rows[1:] if places else rows
    return {row[at].strip() for row in body for at in (places or [0]) if at < len(row)} - {""}


def first_weights_record(taken: TakenOver, seen_test: list[str]) -> dict[str, Any]:
    """The `first_weights` block of results.json."""
    parts = {"fits": taken.fits, "left": taken.left, "new": taken.new}
    return {
        "source": taken.source,
        "matched": taken.how,
        **{name: {"tensors": many, "numbers": all} for name, (many, all) in parts.items()},
        "findings": list(taken.findings),
        "seen": list(taken.all_seen),
        "seen_test": seen_test,
    }


def first_weights_table(taken: TakenOver) -> Table:
    """Table of tensors taken over, left in the file or new in the model, for 80 columns."""
    table = Table(
        title=f"First weights, matched {taken.how}",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption=_caption(taken),
        caption_justify="left",
    )
    table.add_column("")
    for title in ("Tensors", "Numbers"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Such as")
    for title, (tensors, numbers), first in (
        ("taken over", taken.fits, ()),
        ("in the file alone, left", taken.left, taken.left_first),
        ("in the model alone, new", taken.new, taken.new_first),
    ):
        names = ", ".join(map(printable, first))
        table.add_row(title, f"{tensors:,}", f"{numbers:,}", names)
    return table


def _caption(taken: TakenOver) -> str:
    rows = f"The last layer keeps {len(taken.findings)} findings. " if taken.findings else ""
    known = ", ".join(map(printable, taken.all_seen)) or "not known; say it by model.weights_seen"
    return f"{rows}Trained on: {known}"
