"""All that can be said of a data set, without stopping at the first fault."""

from collections import Counter
from collections.abc import Mapping, Set
from pathlib import Path

from xray_lightning.data.cache_folder import threads
from xray_lightning.data.check.boxes import check_boxes
from xray_lightning.data.check.folder import Folder, search
from xray_lightning.data.check.health import Health
from xray_lightning.data.check.pictures import look_at
from xray_lightning.data.check.remarks import Remark, in_order, remark
from xray_lightning.data.check.same import same_pictures
from xray_lightning.data.check.sides import Given, SplitFound, check_split, of_column, of_file
from xray_lightning.data.check.sides import official as official_lists
from xray_lightning.data.check.source import Source, read_source
from xray_lightning.data.check.views import check_pictures
from xray_lightning.data.download.medmnist import SPLIT
from xray_lightning.data.manifest import check_folder
from xray_lightning.data.own_table import OwnTable
from xray_lightning.errors import UserError, check_whole
from xray_lightning.progress import Display, unseen


def check_data(
    root: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    own: OwnTable | None = None,
    findings: tuple[str, ...] | None = None,
    decode: bool = True,
    jobs: int | None = None,
    progress: Display = unseen,
) -> Health:
    """Look at a data set's tables, files, images, splits and boxes.

    Args:
        root: folder of the tables.
        images: folder of the images; `root` when None.
        split: `official`, `ai4m`, `column`, or a CSV (image, split); None for all that are there.
        own, findings: how to read a table of one's own.
        decode: whether to look into the images.
        jobs: threads that do; None for one a core.
        progress: display for that.

    Raises:
        UserError: no such folder, no table, no such split.
    """
    check_whole("--jobs", threads() if jobs is None else jobs, least=1, most=256)
    check_folder(root, key="DIR")
    if images is not None:
        check_folder(images, key="--images")
    source = read_source(root, own=own, findings=findings)
    table = source.tables.table
    remarks = list(source.tables.remarks)
    splits: list[SplitFound] = []
    for name, (given, faults) in _splits(root, source, split).items():
        remarks += faults
        if len(table):
            splits.append(check_split(name, given, table))
            remarks += splits[-1].remarks
    boxes, faults = check_boxes(root, table)
    remarks += faults if len(table) else [one for one in faults if one.kind != "box_without_row"]
    folder = search(images or root)
    own_table = source.dialect == "csv"
    paths = {name: folder.path_of(name, own=own_table) for name in table["image"]}
    there = {name: path for name, path in paths.items() if path}
    remarks += _files(folder, paths, source.tables.named)
    pictures = None
    if decode:
        with progress("checking images", len(there)) as advance:
            looked = look_at(there.values(), jobs=jobs or threads(), advance=advance)
        pictures = {name: looked[path] for name, path in there.items()}
        remarks += check_pictures(pictures, nih=source.nih, one_size=source.one_size)
        remarks += same_pictures(pictures, table, source.tables.findings, splits)
    return Health(
        root,
        images or root,
        source,
        folder,
        len(there),
        pictures,
        boxes,
        tuple(splits),
        in_order(remarks),
    )


def _splits(root: Path, source: Source, split: str | None) -> dict[str, tuple[Given, list[Remark]]]:
    """The sides of each split that is there, or of the one that is asked for."""
    tables = source.tables
    found: dict[str, tuple[Given, list[Remark]]] = {}
    if source.dialect == "nih":
        given, remarks = official_lists(root)
        if given:
            found["official"] = given, remarks
    if source.dialect == "ai4m" and tables.given:
        found["ai4m"] = tables.given, []
    if source.dialect == "csv" and tables.given:
        found["column"] = of_column(tables.given)
    if split in (None, SPLIT) and (root / SPLIT).is_file():
        found[SPLIT] = of_file(root / SPLIT)
    if split is None or split in found:
        return {name: found[name] for name in found if split in (None, name)}
    if Path(split).is_file():
        return {split: of_file(Path(split))}
    there = ", ".join(found) or "none"
    raise UserError(f"--split {split} is neither a split of {root} ({there}) nor a file")


def _files(folder: Folder, paths: Mapping[str, str], named: Set[str]) -> list[Remark]:
    """What is wrong with the files, and between them and the rows."""
    odd = folder.odd_names()
    missing = [name for name, path in paths.items() if not path]
    instead = {name: f"{odd[name]} is there" for name in missing if name in odd}
    several = {
        name: " and ".join(sorted(files)[:3])
        for name, files in folder.files.items()
        # One's own table may mean the one in the folder itself.
        if len(files) > 1 and paths.get(name) in files
    }
    used = set(paths.values())
    rows_of = Counter(paths.values())
    shared = [name for name, path in paths.items() if path and rows_of[path] > 1]
    unlisted = [
        name
        for name, files in folder.files.items()
        if name not in paths and name not in named and not used.intersection(files)
    ]
    remarks = remark("missing_file", {name: instead.get(name, "") for name in missing})
    remarks += remark("file_of_two_rows", shared)
    remarks += remark("two_files", several) + remark("unlisted_file", unlisted)
    remarks += remark("folder_unreadable", folder.unreadable)
    return remarks + remark("odd_entry", folder.odd) + remark("folder_again", folder.again)
