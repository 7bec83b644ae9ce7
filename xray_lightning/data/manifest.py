"""One validated table of images, whatever CSV dialect it came in, and what was dropped and why."""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xray_lightning.data.csv_table import one_row_an_image, read_text
from xray_lightning.data.image_files import find_files, find_named
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.nih import AI4M_TABLES, NIH_LISTS, NIH_TABLES, ai4m_rows, nih_rows
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

FACTS = ("image", "path", "patient_id", "follow_up", "age", "sex", "view")
COLUMNS = (*FACTS, *FINDINGS)  # of NIH's table and its kin


@dataclass(frozen=True)
class Manifest:
    """Every image that the files of a data set list, one row each.

    Attributes:
        table: unique `image` (file name, or path below the folder in a table of one's own),
            `path` ("" without a file), `patient_id`, `follow_up` (Int64), `age` (years, NaN
            unknown), `sex` ("M", "F", ""), `view` ("PA", "AP", ""), then the findings as
            uint8, 1 where present.
        dialect: "nih" (Data_Entry*.csv), "ai4m" (the AI-for-Medicine one-hot CSVs) or "csv" (a
            table of one's own).
        root: the folder of the CSVs.
        dropped: rows dropped and values nulled, by reason.
        given: the sides that the files themselves state, as image names: `train_val` and `test`
            of NIH's lists; `train`, `val` and `test` of the AI-for-Medicine CSVs; whatever a
            column `split` of one's own table says.
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
    own: OwnTable | None = None,
) -> Manifest:
    """Read and check the CSVs in `root`, and find their images by name at any depth of `images`.

    Args:
        root: folder that holds Data_Entry*.csv, or the AI-for-Medicine CSVs, or one's own table.
        images: folder of the image files; `root` when None.
        findings: those to read, in this order; None for all that are known.
        own: how to read a table of one's own; None for NIH's and AI for Medicine's.

    Raises:
        UserError: a missing folder or CSV, or the first fault of a CSV with its file and line.
    """
    check_folder(root, key="data.root")
    if images is not None:
        check_folder(images, key="data.images")
    if own is not None:
        return _own_manifest(root, images=images, findings=findings, own=own)
    chosen = _known(findings)
    dropped: dict[str, int] = {}
    nih = sorted(path for path in root.glob(NIH_TABLES) if path.is_file())
    ai4m = {side: root / name for side, name in AI4M_TABLES.items() if (root / name).is_file()}
    if len(nih) > 1:
        names = " and ".join(path.name for path in nih)
        raise UserError(f"{root}: {names} are both there; keep the one to use and move the other")
    if nih:
        dialect, table = "nih", nih_rows(nih[0], dropped)
        lists = {side: root / name for side, name in NIH_LISTS.items()}
        given = {side: read_list(path) for side, path in lists.items() if path.is_file()}
    elif ai4m:
        parts = {side: ai4m_rows(path, dropped) for side, path in ai4m.items()}
        given = {side: tuple(part["image"]) for side, part in parts.items()}
        dialect, table = "ai4m", pd.concat(parts.values(), ignore_index=True)
        table = one_row_an_image(table, dropped, reason="image in two files (kept once)")
    else:
        raise UserError(_no_table(root))
    paths, unlisted = find_files(images or root, frozenset(table["image"]))
    table["path"] = pd.Series([paths.get(name, "") for name in table["image"]], dtype=object)
    table = table[[*FACTS, *chosen]]
    return Manifest(table, dialect, root, dropped, given, unlisted, images, chosen)


def holds_known_table(root: Path) -> bool:
    """Whether a folder has a table of NIH's or of AI for Medicine's."""
    tables = [*root.glob(NIH_TABLES), *(root / name for name in AI4M_TABLES.values())]
    return any(path.is_file() for path in tables)


def _known(findings: tuple[str, ...] | None) -> tuple[str, ...]:
    """The findings to read of a table that has the 14 of NIH."""
    unknown = [name for name in findings or () if name not in FINDINGS]
    if unknown:
        raise UserError(
            f"data.findings: {unknown[0]} is none of those that this data set has: "
            f"{', '.join(FINDINGS)}"
        )
    return findings or FINDINGS


def _own_manifest(
    root: Path, *, images: Path | None, findings: tuple[str, ...] | None, own: OwnTable
) -> Manifest:
    dropped: dict[str, int] = {}
    rows = own.read(own.find(root), findings=findings, dropped=dropped)
    paths, unlisted = find_named(images or root, frozenset(named := rows.table["image"].tolist()))
    rows.table["path"] = pd.Series([paths.get(name, "") for name in named], dtype=object)
    table = rows.table[[*FACTS, *rows.findings]]
    return Manifest(table, "csv", root, dropped, rows.given, unlisted, images, rows.findings)


def check_folder(folder: Path, *, key: str) -> None:
    if not folder.exists():
        raise UserError(f"{key}={folder} does not exist; give the folder of the data set")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{key}={folder} is not a folder that can be read; give the data set's")


def _no_table(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    wanted = ", ".join(AI4M_TABLES.values())
    return (
        f"{root} holds no table of images: looked for {NIH_TABLES} (NIH) or {wanted} "
        f"(AI for Medicine), found {found or 'nothing'}; give the folder that holds the CSV as "
        "data.root"
    )


def read_list(path: Path) -> tuple[str, ...]:
    """Image names, one a line; a name that is there twice counts once."""
    names = (name.strip() for name in read_text(path).splitlines())
    return tuple(dict.fromkeys(name for name in names if name))
