"""Reader of expert labels: published labels of a data set's images that are not part of it."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.csv_table import (
    header_of,
    one_row_an_image,
    read_cells,
    readable,
    shown,
)
from xray_lightning.data.faults import CellFault, Faults, FirstFault
from xray_lightning.data.label_map import NIH_EXPERT_LABELS, LabelMap
from xray_lightning.data.sources import Listing
from xray_lightning.data.sources.custom_csv import POSITIVE, UNCERTAIN, Header, OwnTable
from xray_lightning.errors import UserError
from xray_lightning.findings import folded

HEAD_BYTES = 2**16  # bytes read of a CSV to find its header
MOST_FOLDERS = 100  # sibling folders of a data set that are searched


@dataclass(frozen=True)
class ExpertLabels:
    """Labels of images by name.

    Attributes:
        path: the CSV.
        table: one row an image: `image`, and each finding of the map as uint8, 1 where present.
        not_scored: titles of other columns of labels in the CSV, which the map does not name.
    """

    path: Path
    table: pd.DataFrame
    not_scored: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, label_map: LabelMap) -> "ExpertLabels":
        """Read a CSV, also as .csv.gz, with a column for the image and one for each finding.

        Raises:
            UserError: no such file or column, or the first cell that says neither yes nor no.
        """
        if not path.is_file():
            raise UserError(f"--labels {path} is no file; give a CSV of labels")
        own, findings = label_map.table, tuple(label_map.findings)
        header = Header(path, header_of(path), option=own.option)
        titles = header.titles(own.columns, keys=("image",))
        there = {folded(title) for title in header.cells}
        if lacking := [name for name in findings if folded(name) not in there]:
            found = shown(", ".join(header.cells), limit=400)
            raise UserError(
                f"{path}, line 1: no column {', '.join(map(repr, lacking))}, which "
                f"{label_map.name} names; found {found}"
            )
        wanted = {"image": (titles["image"],)} | {name: (name,) for name in findings}
        cells = read_cells(path, wanted, required=tuple(wanted))
        _, columns = readable(cells, dict.fromkeys(findings, own.value), FirstFault())
        values = {
            name: np.array([_present(code, own) for code in column], dtype=np.uint8)
            for name, column in columns.items()
        }
        table = one_row_an_image(cells[["image", "file", "line"]].assign(**values), FirstFault())
        taken = {folded(title) for title in (titles["image"], *findings)}
        others = [title for title in header.cells if folded(title) and folded(title) not in taken]
        return cls(path, table[["image", *findings]], labels_among(others, path, own))


def _present(code: int, own: OwnTable) -> bool:
    """Whether a label is positive: an uncertain one as the map says, an empty one never."""
    return code == POSITIVE or (code == UNCERTAIN and own.uncertain == "positive")


def labels_among(titles: Sequence[str], path: Path, own: OwnTable) -> tuple[str, ...]:
    """The columns whose cells are all valid labels, with at least two different values."""
    if not titles:
        return ()
    try:
        cells = read_cells(path, {title: (title,) for title in titles}, required=())
    except UserError:  # short rows, or a title twice: these columns are ignored
        return ()
    return tuple(title for title in titles if _is_label(cells[title], own))


def _is_label(texts: "pd.Series[str]", own: OwnTable) -> bool:
    try:
        return len({own.value(text) for text in texts.unique()}) > 1
    except CellFault:
        return False


def tell_of_expert_labels(root: Path, listing: Listing, faults: Faults) -> None:
    """Report CSVs of expert labels of this data set's images, in its folder or a sibling of it."""
    label_map = LabelMap.read(Path(NIH_EXPERT_LABELS))
    if not {ours for names in label_map.findings.values() for ours in names} <= {*listing.findings}:
        return
    for path in _beside(root, tuple(label_map.findings)):
        try:
            labels = ExpertLabels.read(path, label_map).table
        except UserError:
            continue  # another table, or a damaged one, which `xray evaluate --labels` reports
        both = listing.table.merge(labels, on="image", suffixes=("", "_expert"))
        agreement = {}
        for theirs, ours in label_map.findings.items():
            expert = both[f"{theirs}_expert" if theirs in listing.findings else theirs] == 1
            own = (both[list(ours)] == 1).any(axis=1)
            found = int((own & expert).sum())
            agreement[theirs] = (
                f"{found:,} of the experts' {int(expert.sum()):,} are labelled, and {found:,} of "
                f"{int(own.sum()):,} labels are the experts'"
            )
        text = f"images with labels of experts in {path}"
        faults.tell("expert_labels", agreement, count=len(both), text=text)


def _beside(root: Path, findings: Sequence[str]) -> Iterator[Path]:
    """The CSVs with a column for every finding, in a folder and in its sibling folders."""
    wanted = set(map(folded, findings))
    for folder in (root, *islice(_next_to(root), MOST_FOLDERS)):
        for pattern in ("*.csv", "*.csv.gz"):
            for path in sorted(folder.glob(pattern)):
                if path.is_file() and wanted <= set(map(folded, _first_line(path).split(","))):
                    yield path


def _next_to(root: Path) -> list[Path]:
    own = root.resolve()
    above = root.parent if root.name not in ("", "..") else root / ".."
    try:
        folders = [path for path in above.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(path for path in folders if path.resolve() != own)


def _first_line(path: Path) -> str:
    """The first line of a text file, up to `HEAD_BYTES`; "" if it cannot be read."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return ""
    return head.partition(b"\n")[0].decode(errors="replace")
