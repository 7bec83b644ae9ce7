"""Which data set a folder holds, and how that can be told."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.data.cells import shown
from xray_lightning.data.check.remarks import remark
from xray_lightning.data.check.rows import NIH_NAME
from xray_lightning.data.check.tables import Tables, read_ai4m, read_nih, read_own
from xray_lightning.data.dialects import MAX_AGE
from xray_lightning.data.download.medmnist import TABLE as CHESTMNIST
from xray_lightning.data.manifest import AI4M_TABLES, NIH_TABLES
from xray_lightning.data.own_table import OwnTable
from xray_lightning.data.phantom import read_mark
from xray_lightning.errors import UserError

NIH_IMAGES = 112_120
# Rows of the AI-for-Medicine CSVs, by the releases that are known.
AI4M_RELEASES: dict[tuple[int, ...], str] = {
    (1000, 200, 420): "1000/200/420",
    (875, 109, 420): "875/109/420",
}


@dataclass(frozen=True)
class Source:
    """A data set's kind.

    Attributes:
        dialect: `nih`, `ai4m` or `csv`, as in the manifest.
        release: in words.
        told_by: what that was told by.
        tables: what its tables say.
        nih: whether its images are NIH's own, whose size is known.
        one_size: whether all images must have one size.
    """

    dialect: str
    release: str
    told_by: tuple[str, ...]
    tables: Tables
    nih: bool = False
    one_size: bool = True


def read_source(
    root: Path, *, own: OwnTable | None = None, findings: tuple[str, ...] | None = None
) -> Source:
    """Find and read the tables of a data set.

    Args:
        root: its folder.
        own: how to read a table of one's own, rather than NIH's or AI for Medicine's; where
            there are neither, any single CSV is taken for one.
        findings: those of one's own table; None for all of NIH's 14 that it has.

    Raises:
        UserError: no table, or several to choose from.
    """
    nih = sorted(path for path in root.glob(NIH_TABLES) if path.is_file())
    ai4m = {side: root / name for side, name in AI4M_TABLES.items() if (root / name).is_file()}
    if own is None and nih:
        return _nih(root, nih)
    if own is None and ai4m:
        return _ai4m(ai4m)
    if own is None and not any(path.suffix.lower() == ".csv" for path in root.iterdir()):
        raise UserError(_no_table(root))
    # -1 and empty cells are counted, not refused: what they mean is said by the configuration.
    path = (own or OwnTable(uncertain="negative", empty="negative")).find(root)
    own = own or OwnTable(file=path.name, uncertain="negative", empty="negative")
    told_by = (f"{path.name} is neither NIH's table nor AI for Medicine's",)
    tables = read_own(path, own, findings)
    return Source("csv", "a table of one's own", told_by, tables, one_size=False)


def _nih(root: Path, paths: list[Path]) -> Source:
    path = paths[0]
    tables = read_nih(path)
    tables.remarks += remark("several_tables", [other.name for other in paths[1:]])
    mark = read_mark(root)
    if mark:
        release = f"phantoms, {mark.get('images')} of {mark.get('size')} x {mark.get('size')}"
        return Source("nih", release, ("phantom.json", path.name), tables)
    if path.name == CHESTMNIST:
        return Source("nih", "ChestMNIST (MedMNIST v2)", (path.name,), tables)
    if not tables.table["image"].astype(object).str.match(NIH_NAME).any():
        how = f"{path.name}, none of whose images has a name of NIH's"
        release = "a table in the layout of NIH ChestX-ray14"
        return Source("nih", release, (how,), tables, one_size=False)
    release, how = _nih_release(path, tables)
    told_by = (how, f"{tables.rows:,} of NIH's {NIH_IMAGES:,} rows")
    return Source("nih", f"NIH ChestX-ray14, {release}", told_by, tables, nih=True)


def _nih_release(path: Path, tables: Tables) -> tuple[str, str]:
    """The first release wrote ages as 058Y, or up to 414; that of 2020 does neither."""
    if "v2020" in path.name:
        return "release v2020", f"the name {path.name}"
    if any(text.upper().endswith("Y") for text in tables.ages):
        return "first release (2017)", f"ages such as 058Y in {path.name}"
    if any(one.kind == "age_over_100" for one in tables.remarks):
        return "first release (2017)", f"ages over {MAX_AGE:.0f} in {path.name}"
    return "release unknown", f"the name {path.name}, and no age as the first release had"


def _ai4m(paths: Mapping[str, Path]) -> Source:
    tables = read_ai4m(paths)
    lacking = [name for side, name in AI4M_TABLES.items() if side not in paths]
    tables.remarks += remark(
        "list_missing", dict.fromkeys(lacking, "without it there is no data.split=ai4m")
    )
    images = {side: len(tables.given.get(side, ())) for side in AI4M_TABLES}
    release = AI4M_RELEASES.get(tuple(images.values()))
    named = f"release {release}" if release else "of unknown release"
    listed = ", ".join(f"{images[side]:,} in {path.name}" for side, path in paths.items())
    told_by = (f"images {listed}",)
    return Source("ai4m", f"AI for Medicine, {named}", told_by, tables, nih=True)


def _no_table(root: Path) -> str:
    files = Counter(path.suffix.lower() for path in root.iterdir() if path.is_file())
    found = ", ".join(f"{count:,} {shown(suffix)}" for suffix, count in files.most_common(3))
    return (
        f"{root} holds no table of images: looked for {NIH_TABLES} (NIH), "
        f"{', '.join(AI4M_TABLES.values())} (AI for Medicine) or a CSV of one's own with an image, "
        f"a patient and findings in each row; found {found or 'no file'}; put the table there, or "
        "give the folder that has it, and this one as --images"
    )
