"""Patients, images and positives per finding and side: the table at the start of a run."""

import pandas as pd
from rich import box
from rich.table import Table

from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import SIDES, Split
from xray_lightning.findings import NO_FINDING

PATIENTS, IMAGES = "Patients", "Images"


def split_table(manifest: Manifest, split: Split) -> pd.DataFrame:
    """Count patients, images, images without a finding, and positives of each finding.

    Returns:
        Integers; rows Patients, Images, No Finding and the findings, columns train, val, test
        and all. `all` counts what is on several sides once.
    """
    rows = manifest.table.set_index("image")
    everyone = {name for names in split.sides.values() for name in names}
    sides = {side: list(split.sides[side]) for side in SIDES} | {"all": sorted(everyone)}
    return pd.DataFrame(
        {side: _counts(rows.loc[names], manifest.findings) for side, names in sides.items()}
    )


def _counts(rows: pd.DataFrame, findings: tuple[str, ...]) -> "pd.Series[int]":
    labels = rows[list(findings)].astype("int64")
    counts = {
        PATIENTS: rows["patient_id"].nunique(),
        IMAGES: len(rows),
        NO_FINDING: int((labels.sum(axis=1) == 0).sum()),
        **{finding: int(labels[finding].sum()) for finding in findings},
    }
    return pd.Series(counts, dtype="int64")


def render_split_table(table: pd.DataFrame, *, title: str) -> Table:
    """A `split_table` for an 80-column terminal: labels as counts and percentage of images."""
    rendered = Table(
        title=title, title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0)
    )
    rendered.add_column("", no_wrap=True)
    for side in table.columns:
        rendered.add_column(str(side), justify="right", no_wrap=True)
    images = table.loc[IMAGES].to_numpy()
    for name, row in zip(table.index, table.to_numpy(), strict=True):
        labels = name not in (PATIENTS, IMAGES)
        cells = [
            f"{count:,} {_percent(count, total) if labels else '':>5}"
            for count, total in zip(row, images, strict=True)
        ]
        rendered.add_row(
            str(name).replace("_", " "), *cells, end_section=name in (IMAGES, NO_FINDING)
        )
    return rendered


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else "-"
