"""Manifest of a data set: one validated table of its images, and what was dropped and why."""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xray_lightning.data.csv_table import shown
from xray_lightning.data.faults import FirstFault
from xray_lightning.data.image_files import find_files, find_named
from xray_lightning.data.sources import Source, known_sources, recognised
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

FACTS = ("image", "path", "patient_id", "follow_up", "age", "sex", "view")
COLUMNS = (*FACTS, *FINDINGS)  # of the manifest of a data set with NIH's 14 findings


@dataclass(frozen=True)
class Manifest:
    """Every image that the files of a data set list, one row each.

    Attributes:
        table: unique `image` (file name, or path below the folder in a custom CSV),
            `path` ("" without a file), `patient_id`, `follow_up` (Int64), `age` (years, NaN
            unknown), `sex` ("M", "F", ""), `view` ("PA", "AP", ""), then the findings as
            uint8, 1 where present, and as text the further columns that were asked for.
        dialect: "nih" (Data_Entry*.csv), "ai4m" (the AI-for-Medicine one-hot CSVs), "csv" (a
            custom CSV), or the `dialect` of another source in `sources`.
        root: the folder of the CSVs.
        dropped: rows dropped and values nulled, by reason.
        given: the splits that the files themselves state, as image names: `train_val` and `test`
            of NIH's lists; `train`, `val` and `test` of the AI-for-Medicine CSVs; whatever a
            column `split` of a custom CSV says.
        unlisted_files: image files that no row names.
        images: the folder that was searched for image files; None for `root`.
        findings: the columns of the table that are findings, in their order.
    """

    table: pd.DataFrame
    dialect: str
    root: Path
    dropped: dict[str, int]
    given: dict[str, tuple[str, ...]]
    unlisted_files: int
    images: Path | None = None
    findings: tuple[str, ...] = FINDINGS


def read_manifest(
    root: Path,
    *,
    images: Path | None = None,
    findings: tuple[str, ...] | None = None,
    own: Source | None = None,
    further: tuple[str, ...] = (),
) -> Manifest:
    """Read and check the CSVs in `root`, and find their images by name at any depth of `images`.

    Args:
        root: folder that holds Data_Entry*.csv, or the AI-for-Medicine CSVs, or a custom CSV.
        images: folder of the image files; `root` when None.
        findings: those to read, in this order; None for all that are known.
        own: how to read a custom CSV; None to recognise a known data set.
        further: titles of columns to keep as text, to form subgroups by.

    Raises:
        UserError: a missing folder or CSV, or the first fault of a CSV with its file and line.
    """
    check_folder(root, key="data.root")
    if images is not None:
        check_folder(images, key="data.images")
    source = own or recognised(root)
    if source is None:
        raise UserError(_no_table(root))
    known = source.findings or findings or ()
    unknown = [name for name in findings or () if name not in known]
    if unknown:
        raise UserError(
            f"data.findings: {unknown[0]} is none of those that this data set has: "
            f"{', '.join(known)}"
        )
    if both := [name for name in further if name in (*FACTS, *(known or FINDINGS))]:
        raise UserError(f"evaluation.subgroups: {both[0]} is a finding or names an image")
    faults = FirstFault()
    listing = source.read(root, faults, findings=findings, further=further)
    given = dict(source.given_split(root, listing, faults))
    table, chosen = listing.table, findings or listing.findings
    if lacking := [name for name in further if name not in table]:
        raise UserError(
            f"evaluation.subgroups: {', '.join(path.name for path in source.tables(root))} in "
            f"{root} has no column {shown(lacking[0])}; name another, or leave it out"
        )
    names = table["image"].tolist()
    find = find_named if source.by_path else find_files
    paths, unlisted = find(images or root, frozenset(names))
    table["path"] = pd.Series([paths.get(name, "") for name in names], dtype=object)
    table = table[[*FACTS, *chosen, *further]]
    return Manifest(table, source.dialect, root, faults.dropped, given, unlisted, images, chosen)


def holds_known_table(root: Path) -> bool:
    """Whether a folder has the table of a data set that is known."""
    return recognised(root) is not None


def check_folder(folder: Path, *, key: str) -> None:
    if not folder.exists():
        raise UserError(f"{key}={folder} does not exist; give the folder of the data set")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{key}={folder} is not a folder that can be read; give the data set's")


def _no_table(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    wanted = " or ".join(source.looked_for for source in known_sources() if source.looked_for)
    return (
        f"{root} holds no table of images: looked for {wanted}, found {found or 'nothing'}; give "
        "the folder that holds the CSV as data.root"
    )
