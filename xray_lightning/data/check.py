"""Checker of a data set (`xray data check`): every fault, without stopping at the first."""

import os
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.data.csv_table import shown
from xray_lightning.data.decode_resize import PLAIN_MODES, Picture, look_at
from xray_lightning.data.expert_labels import tell_of_expert_labels
from xray_lightning.data.faults import KINDS, Faults, Remark
from xray_lightning.data.image_files import Folder, distinct, search
from xray_lightning.data.manifest import check_folder
from xray_lightning.data.sources import Given, Listing, Release, Source, known_sources, recognised
from xray_lightning.data.sources.chestmnist import SPLIT
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.nih import FILE, UNKNOWN_PATIENT, read_box_rows
from xray_lightning.data.splits import NAMES as NAMES_OF_SPLITS
from xray_lightning.data.splits import (
    SIDES,
    overlap_counts,
    overlaps,
    read_split_file,
    sides_of_column,
)
from xray_lightning.errors import UserError, check_whole, printable
from xray_lightning.progress import Display, unseen
from xray_lightning.terminal import counted
from xray_lightning.workers import threads

SCHEMA_VERSION = 1
_UNKNOWN = UNKNOWN_PATIENT + ": "  # prefix of the IDs that rows of unknown patients get


@dataclass(frozen=True)
class SplitCounts:
    """The sizes of a split that was found, and what its sides share.

    Attributes:
        sides: numbers of images and patients on each side, without images that have no row.
        overlaps: what pairs of sides share: "train-val" -> {"patients": n, "images": n}.
    """

    sides: dict[str, dict[str, int]]
    overlaps: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Result of the check, and the content of --json: keys may be added, but none is removed.

    Attributes:
        root, images: the folders of the tables and of the images.
        dialect, release, told_by: layout of the tables, name of the release, and evidence for it.
        sound: whether there is no problem.
        counts: rows read, images in them, patients (None where none is known), image_files below
            the folder, found (images with a file), decoded (None without decoding), boxes.
        positives: images of each finding.
        modes: images by format and mode, the most common first.
        sizes: images by width and height, the most common first.
        splits: the splits that were checked, by name.
        problems, notes: the remarks, in the order of `faults.KINDS`.
    """

    schema_version: int = SCHEMA_VERSION
    root: str
    images: str
    dialect: str
    release: str
    told_by: tuple[str, ...]
    sound: bool
    counts: dict[str, int | None]
    positives: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]
    splits: dict[str, SplitCounts]
    problems: tuple[Remark, ...]
    notes: tuple[Remark, ...]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


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
        own: how to read a custom CSV; None to recognise a known data set, or else to read the
            folder's only CSV as a custom one.
        findings: those to read from a custom CSV; None for all of NIH's 14 that it has.
        decode: whether to decode the images.
        jobs: threads that decode; None for one per core.

    Raises:
        UserError: no such folder, no table, no such split.
    """
    check_whole("--jobs", threads() if jobs is None else jobs, least=1, most=256)
    check_folder(root, key="DIR")
    if images is not None:
        check_folder(images, key="--images")
    source = own or recognised(root) or _custom_csv(root)
    faults = Faults()
    listing = source.read(root, faults, findings=findings)
    table = listing.table
    if len(table):
        source.check(listing, faults)
        tell_of_expert_labels(root, listing, faults)
    release = source.describe(root, listing, faults)
    rows = listing.rows + faults.count("short_row")
    given = _splits(root, source, listing, split, faults)
    splits = {
        name: check_split(name, sides, table, faults) for name, sides in given.items() if len(table)
    }
    boxes = check_boxes(root / FILE, table, faults)
    folder = search(images or root)
    folder.files = {name: distinct(files) for name, files in folder.files.items()}
    paths = {name: folder.path_of(name, by_path=source.by_path) for name in table["image"]}
    there = {name: path for name, path in paths.items() if path}
    check_files(folder, paths, listing.named, faults, by_path=source.by_path)
    pictures: dict[str, Picture] = {}
    if decode:
        with progress("checking images", len(there)) as advance:
            looked = look_at(there.values(), jobs=jobs or threads(), advance=advance)
        pictures = {name: looked[path] for name, path in there.items()}
        check_pictures(pictures, release, faults)
        check_same_pictures(pictures, listing, given, faults)
    order = list(KINDS)
    remarks = sorted(faults.remarks, key=lambda one: order.index(one.kind))
    problems = tuple(one for one in remarks if one.problem)
    patients = {name for name in table["patient_id"] if not name.startswith(_UNKNOWN)}
    readable = [one for one in pictures.values() if one.mode]
    return Health(
        root=str(root),
        images=str(images or root),
        dialect=source.dialect,
        release=release.name,
        told_by=release.told_by,
        sound=not problems,
        counts={
            "rows": rows,
            "images": len(table),
            "patients": len(patients) or None,
            "image_files": sum(map(len, folder.files.values())),
            "found": len(there),
            "decoded": sum(not one.fault for one in pictures.values()) if decode else None,
            "boxes": boxes,
        },
        positives={name: int(table[name].sum()) for name in listing.findings},
        modes=dict(Counter(one.mode for one in readable).most_common()),
        sizes=dict(Counter("{}x{}".format(*one.size) for one in readable).most_common()),
        splits=splits,
        problems=problems,
        notes=tuple(one for one in remarks if not one.problem),
    )


def _custom_csv(root: Path) -> OwnTable:
    """The only CSV of a folder, to be read as a custom CSV."""
    if not any(path.suffix.lower() == ".csv" for path in root.iterdir()):
        raise UserError(_no_table(root))
    # -1 and empty cells are counted, not refused: only a run's configuration defines their meaning.
    return OwnTable(uncertain="negative", empty="negative")


def _no_table(root: Path) -> str:
    files = Counter(path.suffix.lower() for path in root.iterdir() if path.is_file())
    found = ", ".join(f"{count:,} {shown(suffix)}" for suffix, count in files.most_common(3))
    wanted = ", ".join(source.looked_for for source in known_sources() if source.looked_for)
    return (
        f"{root} holds no table of images: looked for {wanted} or a CSV of one's own with an "
        f"image, a patient and findings in each row; found {found or 'no file'}; put the table "
        "there, or give the folder that has it, and this one as --images"
    )


def _splits(
    root: Path, source: Source, listing: Listing, split: str | None, faults: Faults
) -> dict[str, Given]:
    """The images by side of each split that was found, or only of the one asked for."""
    given, of_lists = Faults(), Faults()
    found: dict[str, tuple[Given, Faults]] = {}
    sides = source.given_split(root, listing, of_lists)
    if sides and source.dialect == "csv":
        found["column"] = sides_of_column(sides, given), given
    elif sides and source.split:
        found[source.split] = sides, of_lists
    if split in (None, SPLIT) and (root / SPLIT).is_file():
        found[SPLIT] = _sides_of_file(root / SPLIT)
    if split is not None and split not in found:
        if not Path(split).is_file():
            there = ", ".join(found) or "none"
            raise UserError(f"--split {split} is neither a split of {root} ({there}) nor a file")
        found[split] = _sides_of_file(Path(split))
    chosen = {name: found[name] for name in found if split in (None, name)}
    for _, told in chosen.values():
        faults.remarks += told.remarks
    return {name: sides for name, (sides, _) in chosen.items()}


def _sides_of_file(path: Path) -> tuple[Given, Faults]:
    faults = Faults()
    rows = read_split_file(path, faults)
    if faults.count("table_unreadable"):
        return {}, faults
    images = {side: tuple(dict.fromkeys(rows["image"][rows["split"] == side])) for side in SIDES}
    return images, faults


def check_split(name: str, given: Given, table: pd.DataFrame, faults: Faults) -> SplitCounts:
    """Compare every pair of sides of a split, and the sides with the table."""
    patient_of = dict(zip(table["image"], table["patient_id"], strict=True))
    sides = {side: patient_of.keys() & names for side, names in given.items()}
    # Of all listed images, also those without a row: an image on two sides is a fault either way.
    shared = overlaps(given, patient_of)
    for (one, other), both in shared.items():
        where = f"in both {one} and {other} of the split {name}"
        faults.tell("image_on_two_sides", both.images, text=f"images {where}")
        theirs = [
            image for image in sides[one] | sides[other] if patient_of[image] in both.patients
        ]
        faults.tell(
            "patient_on_two_sides",
            theirs,
            count=len(both.patients),
            text=f"patients {where}, with {len(theirs):,} images",
        )
    named = {image for images in given.values() for image in images}
    lists = name in NAMES_OF_SPLITS
    faults.tell("listed_without_row" if lists else "split_without_row", named - patient_of.keys())
    left = patient_of.keys() - named
    faults.tell("on_no_side", left, text=f"rows on no side of the split {name}")
    empty = [side for side, images in sides.items() if not images]
    faults.tell("side_empty", empty, text=f"sides of the split {name} without an image")
    counts = {
        side: {"images": len(images), "patients": len({patient_of[image] for image in images})}
        for side, images in sides.items()
    }
    return SplitCounts(counts, overlap_counts(shared))


def check_boxes(path: Path, table: pd.DataFrame, faults: Faults) -> int:
    """Compare the list of boxes, if there is one, with the table; returns its rows."""
    if not path.is_file():
        return 0
    of_boxes = Faults()
    boxes = read_box_rows(path, of_boxes)
    row_of = {image: row for row, image in enumerate(table["image"])}
    labels = {column: table[column].to_numpy() for column in table.columns}
    no_row, no_label = [], []
    for name, image, finding in zip(boxes["name"], boxes["image"], boxes["finding"], strict=True):
        row = row_of.get(image)
        if row is None:
            no_row.append(name)
        elif finding in labels and not labels[finding][row]:
            no_label.append(name)
    if len(table):
        of_boxes.tell("box_without_row", no_row)
    of_boxes.tell("box_without_label", no_label)
    faults.remarks += of_boxes.remarks
    return len(boxes) + of_boxes.count("short_row")


def check_files(
    folder: Folder, paths: Mapping[str, str], named: Set[str], faults: Faults, *, by_path: bool
) -> None:
    """Report faults of the files, and mismatches between files and rows."""
    odd = {os.path.basename(path): what for path, what in folder.odd.items()}
    missing = [name for name, path in paths.items() if not path]
    several = {
        name: " and ".join(sorted(files)[:3])
        for name, files in folder.files.items()
        # Only where a row takes its image from one of these files, and by the name alone.
        if len(files) > 1
        and paths.get(name) in files
        and not (by_path and paths[name] == os.path.join(folder.root, name))
    }
    used = set(paths.values())
    rows_of = Counter(paths.values())
    unlisted = [
        name
        for name, files in folder.files.items()
        if name not in paths and name not in named and not used.intersection(files)
    ]
    instead = {name: f"{odd[name]} is there" if name in odd else "" for name in missing}
    faults.tell("missing_file", instead)
    shared = [name for name, path in paths.items() if path and rows_of[path] > 1]
    faults.tell("file_of_two_rows", shared)
    faults.tell("two_files", several)
    faults.tell("unlisted_file", unlisted)
    faults.tell("folder_unreadable", folder.unreadable)
    faults.tell("odd_entry", folder.odd)
    faults.tell("folder_again", folder.again)


NIH_SIZE = (1024, 1024)


def check_pictures(pictures: Mapping[str, Picture], release: Release, faults: Faults) -> None:
    """Report faults of decoded images; with `release.one_size`, a differing size is a problem."""
    bad = {name: one for name, one in pictures.items() if one.fault}
    good = {name: one for name, one in pictures.items() if not one.fault}
    faults.tell("truncated_image", {name: one.fault for name, one in bad.items() if one.cut})
    faults.tell("unreadable_image", {name: one.fault for name, one in bad.items() if not one.cut})
    faults.tell("blank_image", [name for name, one in good.items() if one.blank])
    modes = {name: one.mode for name, one in good.items() if one.mode not in PLAIN_MODES}
    faults.tell("odd_mode", modes)
    if not good:
        return
    usual, _ = Counter(one.size for one in good.values()).most_common(1)[0]
    size = f"{usual[0]} x {usual[1]}"
    other = {
        name: f"{one.size[0]} x {one.size[1]}" for name, one in good.items() if one.size != usual
    }
    if release.one_size:
        faults.tell("other_size", other, text=f"images that are not {size} as the others")
    else:
        faults.tell("sizes_differ", other, text=f"images that are not {size}, as most are")
    if release.original and usual != NIH_SIZE:
        copies = [name for name, one in good.items() if one.size == usual]
        text = f"images of {size}, where NIH's are 1024 x 1024: a resized copy"
        faults.tell("not_original_size", copies, text=text)


def check_same_pictures(
    pictures: Mapping[str, Picture],
    listing: Listing,
    splits: Mapping[str, Given],
    faults: Faults,
) -> None:
    """Report images whose decoded pixels equal those of an image with an earlier name.

    Such a pair is contradictory if the patient, the labels or the side of a split differ. Images
    of a single shade are left out, since all of them are equal.
    """
    groups: dict[bytes, list[str]] = {}
    for name in sorted(pictures):
        if pictures[name].pixels and not pictures[name].blank:
            groups.setdefault(pictures[name].pixels, []).append(name)
    repeated = {name: group[0] for group in groups.values() for name in group[1:]}
    if not repeated:
        return
    table = listing.table
    rows = table[table["image"].isin({*repeated, *repeated.values()})].set_index("image")
    findings = rows[list(listing.findings)].to_numpy()
    labels = dict(zip(rows.index, map(tuple, findings), strict=True))
    patients = rows["patient_id"].to_dict()
    sides_of = {name: _sides_of(given) for name, given in splits.items()}
    harmless, contradictory = {}, {}
    for name, first in repeated.items():
        differing = []
        if patients[name] != patients[first]:
            differing.append("patient")
        if labels[name] != labels[first]:
            differing.append("labels")
        differing += [
            f"side of the split {split}"
            for split, sides in sides_of.items()
            if sides.get(name) != sides.get(first)
        ]
        alike = pictures[name].content == pictures[first].content
        text = f"same {'bytes' if alike else 'pixels'} as {first}"
        if differing:
            contradictory[name] = f"{text}, but another {' and '.join(differing)}"
        else:
            harmless[name] = text
    faults.tell("duplicate_conflict", contradictory)
    faults.tell("duplicate_image", harmless)


def _sides_of(given: Given) -> dict[str, set[str]]:
    """The sides of each image."""
    sides: dict[str, set[str]] = {}
    for side, images in given.items():
        for image in images:
            sides.setdefault(image, set()).add(side)
    return sides


NAMES = 5  # most names printed for a remark; --json has them all


def show_health(health: Health, console: Console) -> None:
    """Print what the set is, its figures, and every problem and note with what to do."""
    console.print(Text(health.release, style="bold"))
    console.print(_text(f"told by {'; '.join(health.told_by)}"), style="dim")
    console.print()
    console.print(_figures(health))
    console.print()
    if health.splits:
        console.print(_split_lines(health))
        console.print()
    for title, style, remarks in (
        ("Problems", "bold red", health.problems),
        ("Notes", "bold yellow", health.notes),
    ):
        if remarks:
            console.print(Text(title, style=style))
            for one in remarks:
                _show(one, console)
            console.print()
    console.print(_verdict(health))


def _figures(health: Health) -> Table:
    counts = health.counts
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    listed = f"{counts['rows']:,} rows, {counts['images']:,} images"
    patients = counts["patients"]
    table.add_row("table", f"{listed}, {f'{patients:,}' if patients else 'no known'} patients")
    decoded = counts["decoded"]
    looked = "not looked into" if decoded is None else f"{decoded:,} decoded"
    found = f"{counts['image_files']:,} image files, {counts['found']:,} of them listed"
    table.add_row("files", f"{found}, {looked}")
    for title, values in (("modes", health.modes), ("sizes", health.sizes)):
        if values:
            kinds = [f"{name} {count:,}" for name, count in values.items()]
            table.add_row(title, _text(_first(kinds, more=" and {} more kinds")))
    if counts["boxes"]:
        table.add_row("boxes", f"{counts['boxes']:,}")
    return table


def _split_lines(health: Health) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Split", overflow="fold")
    table.add_column("Side", no_wrap=True)
    for title in ("Images", "Patients"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, split in health.splits.items():
        for side, counts in split.sides.items():
            figures = (f"{count:,}" for count in counts.values())
            table.add_row(_text(name), _text(side), *figures)
            name = ""
    return table


def _show(one: Remark, console: Console) -> None:
    mark = Text("x " if one.problem else "- ", style="red" if one.problem else "yellow")
    text = one.text[:1].upper() + one.text[1:]
    _indented(mark + _text(text) + Text(f": {one.count:,}", style="bold"), console, by=2)
    if one.names != (one.text,):
        _indented(_text(_named(one), style="dim"), console, by=6)
    if one.advice:
        _indented(Text(f"-> {one.advice}"), console, by=6)


def _indented(text: Text, console: Console, *, by: int) -> None:
    """Print a text wrapped, indented by `by` columns, and without trailing spaces."""
    for line in text.wrap(console, console.width - by):
        line.rstrip()
        console.print(Text(" " * by) + line)


def _named(one: Remark) -> str:
    names = []
    for name in one.names:
        detail = one.details.get(name)
        name = name if len(name) <= 80 else f"{name[:77]}..."
        names.append(f"{name} ({detail})" if detail else name)
    return _first(names, separator="; " if one.details else ", ")


def _first(names: list[str], *, separator: str = ", ", more: str = " and {} more") -> str:
    left = len(names) - NAMES
    return separator.join(names[:NAMES]) + (more.format(f"{left:,}") if left > 0 else "")


def _verdict(health: Health) -> Text:
    if health.problems:
        kinds = counted(len(health.problems), "kind")
        return Text(f"Not sound: {kinds} of problem.", style="bold red")
    notes = f", with {counted(len(health.notes), 'note')}" if health.notes else ""
    return Text(f"Sound{notes}.", style="bold green")


def _text(text: str, *, style: str = "") -> Text:
    """A text that may quote file names or cells: on one line, invisible characters escaped."""
    return Text(printable(text), overflow="fold", style=style)
