"""Reader of AI for Medicine: the three CSVs of that course, with a column for each finding.

Their images are NIH's. Training and validation share patients in both releases that are known.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.csv_table import Titles, one_row_an_image, read_cells, readable, shown
from xray_lightning.data.faults import CellFault, Faults
from xray_lightning.data.sources import Listing, Release, Source
from xray_lightning.data.sources.nih import (
    check_patients_in_names,
    image_name,
    name_columns,
    patient,
    unknown_persons,
)
from xray_lightning.findings import FINDINGS

AI4M_TABLES = {"train": "train-small.csv", "val": "valid-small.csv", "test": "test.csv"}
TITLES: Titles = {
    "image": ("Image",),
    "patient_id": ("PatientId",),
    **{finding: (finding,) for finding in FINDINGS},
}
# Known releases by the number of images in each CSV.
RELEASES: dict[tuple[int, ...], str] = {
    (1000, 200, 420): "1000/200/420",
    (875, 109, 420): "875/109/420",
}


class Ai4m(Source):
    """The AI-for-Medicine CSVs, each the images of one split."""

    dialect = "ai4m"
    split = "ai4m"
    looked_for = f"{', '.join(AI4M_TABLES.values())} (AI for Medicine)"
    rank = 2

    def tables(self, root: Path) -> Sequence[Path]:
        return list(self._by_split(root).values())

    def _by_split(self, root: Path) -> Mapping[str, Path]:
        paths = {split: root / name for split, name in AI4M_TABLES.items()}
        return {split: path for split, path in paths.items() if path.is_file()}

    def read(
        self,
        root: Path,
        faults: Faults,
        *,
        findings: tuple[str, ...] | None = None,
        further: tuple[str, ...] = (),
    ) -> Listing:
        paths = self._by_split(root)
        lacking = [name for split, name in AI4M_TABLES.items() if split not in paths]
        without = dict.fromkeys(lacking, "without it there is no data.split=ai4m")
        faults.tell("list_missing", without)
        parts = {split: read_table(path, faults, further) for split, path in paths.items()}
        whole = {split: part for split, part in parts.items() if len(part.table)}
        if not whole:
            table = Listing.empty().table
        else:
            # An image in two files is reported with the splits; here only rows that contradict.
            table = one_row_an_image(
                pd.concat([part.table for part in whole.values()], ignore_index=True),
                faults,
                kind="",
                reason="image in two files (kept once)",
            )
        return Listing(
            table,
            given={split: tuple(part.table["image"]) for split, part in whole.items()},
            rows=sum(part.rows for part in parts.values()),
            named=frozenset().union(*(part.named for part in parts.values())),
        )

    def describe(self, root: Path, listing: Listing, faults: Faults) -> Release:
        images = {split: len(listing.given.get(split, ())) for split in AI4M_TABLES}
        release = RELEASES.get(tuple(images.values()))
        listed = ", ".join(
            f"{images[split]:,} in {path.name}" for split, path in self._by_split(root).items()
        )
        name = f"release {release}" if release else "of unknown release"
        return Release(f"AI for Medicine, {name}", (f"images {listed}",), original=True)

    def check(self, listing: Listing, faults: Faults) -> None:
        check_patients_in_names(listing.table, faults)


SOURCE = Ai4m()


def read_table(path: Path, faults: Faults, further: tuple[str, ...] = ()) -> Listing:
    """Read one of the CSVs."""
    titles = {**TITLES, **{name: (name,) for name in further}}
    cells = read_cells(path, titles, required=tuple(TITLES), faults=faults)
    rows, images = len(cells), frozenset(cells["image"])
    cells, values = readable(cells, CELLS, faults)
    table = pd.DataFrame(
        {
            **name_columns(cells, values, None),
            **unknown_persons(len(cells)),
            **{finding: np.array(values[finding], dtype=np.uint8) for finding in FINDINGS},
            **{name: cells[name] for name in further if name in cells},
        }
    )
    return Listing(one_row_an_image(table, faults), rows=rows, named=images)


def _one_hot(text: str, *, finding: str) -> int:
    if text not in ("0", "1", "0.0", "1.0"):
        detail = f"{finding} is {shown(text, limit=20)}"
        raise CellFault("label_not_0_or_1", "a finding is 0 or 1 here", detail=detail)
    return int(text[0])


# Converter of each column; the order is that in which faults are raised.
CELLS: dict[str, Callable[[str], object]] = {
    **{finding: partial(_one_hot, finding=finding) for finding in FINDINGS},
    "image": image_name,
    "patient_id": patient,
}
