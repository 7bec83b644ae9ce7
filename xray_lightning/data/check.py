"""Checker of a data set (`xray data check`): every fault, without stopping at the first."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.data.check_tables import (
    Folder,
    Given,
    Source,
    SplitFound,
    check_boxes,
    check_split,
    of_column,
    of_file,
    read_source,
    search,
)
from xray_lightning.data.check_tables import official as official_lists
from xray_lightning.data.download.chestmnist import SPLIT
from xray_lightning.data.faults import Remark, in_order, remark
from xray_lightning.data.images import PLAIN_MODES, Picture, look_at
from xray_lightning.data.manifest import check_folder
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.nih import UNKNOWN_PATIENT
from xray_lightning.errors import UserError, check_whole, printable
from xray_lightning.parallel import threads
from xray_lightning.progress import Display, unseen

SCHEMA_VERSION = 1
_UNKNOWN = UNKNOWN_PATIENT + ": "  # how the manifest begins a patient of its own


@dataclass(frozen=True)
class Health:
    """What was found; `as_json` says what each figure is.

    Attributes:
        root, images: the folders of the tables and of the images.
        source: the kind of the set, and its tables.
        folder: what lies below `images`.
        found: images of the table that have a file.
        pictures: what each of these was found to be, by name; None without decoding.
        boxes: rows of the list of boxes.
        splits: those that are there.
        remarks: problems, then notes.
    """

    root: Path
    images: Path
    source: Source
    folder: Folder
    found: int
    pictures: Mapping[str, Picture] | None
    boxes: int
    splits: tuple[SplitFound, ...]
    remarks: tuple[Remark, ...]

    @property
    def problems(self) -> tuple[Remark, ...]:
        return tuple(one for one in self.remarks if one.problem)

    @property
    def notes(self) -> tuple[Remark, ...]:
        return tuple(one for one in self.remarks if not one.problem)

    @property
    def counts(self) -> dict[str, int | None]:
        """Of rows, images, patients, files and boxes, as in `as_json`."""
        decoded = None
        if self.pictures is not None:
            decoded = sum(not one.fault for one in self.pictures.values())
        table = self.source.tables.table
        patients = {name for name in table["patient_id"] if not name.startswith(_UNKNOWN)}
        return {
            "rows": self.source.tables.rows,
            "images": len(table),
            "patients": len(patients) or None,
            "image_files": sum(map(len, self.folder.files.values())),
            "found": self.found,
            "decoded": decoded,
            "boxes": self.boxes,
        }

    @property
    def modes(self) -> dict[str, int]:
        """Images by format and mode, the most common first."""
        return _counted(one.mode for one in (self.pictures or {}).values() if one.mode)

    @property
    def sizes(self) -> dict[str, int]:
        """Images by width and height, the most common first."""
        readable = (one for one in (self.pictures or {}).values() if one.mode)
        return _counted(f"{one.size[0]}x{one.size[1]}" for one in readable)

    @property
    def positives(self) -> dict[str, int]:
        """Images of each finding."""
        tables = self.source.tables
        return {name: int(tables.table[name].sum()) for name in tables.findings}

    def as_json(self) -> dict[str, object]:
        """The content of --json; keys stay, new ones may come.

        schema_version; root, images: the folders; dialect (nih, ai4m, csv), release, told_by;
        sound: whether there is no problem; counts: rows read, images in them, patients (null where
        none is known), image_files below the folder, found (images that have one), decoded (null
        without decoding), boxes; positives by finding; modes and sizes: images by each;
        splits: by name {sides: {side: {images, patients}}, overlaps: {"train-val": {patients,
        images}}}; problems and notes: each kind, text, count, advice, names (all of them: images
        mostly, lines or files; never patients) and details by name.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "root": str(self.root),
            "images": str(self.images),
            "dialect": self.source.dialect,
            "release": self.source.release,
            "told_by": list(self.source.told_by),
            "sound": not self.problems,
            "counts": self.counts,
            "positives": self.positives,
            "modes": self.modes,
            "sizes": self.sizes,
            "splits": {
                split.name: {
                    "sides": {
                        side: {"images": len(images), "patients": split.patients[side]}
                        for side, images in split.sides.items()
                    },
                    "overlaps": split.overlaps,
                }
                for split in self.splits
            },
            "problems": [_as_json(one) for one in self.problems],
            "notes": [_as_json(one) for one in self.notes],
        }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _as_json(one: Remark) -> dict[str, object]:
    return {
        "kind": one.kind,
        "text": one.text,
        "count": one.count,
        "advice": one.advice,
        "names": list(one.names),
        "details": {name: text for name, text in one.details.items() if text},
    }


NIH_SIZE = (1024, 1024)


def check_pictures(pictures: Mapping[str, Picture], *, nih: bool, one_size: bool) -> list[Remark]:
    """Remarks on images, by their names.

    Args:
        pictures: what each file was found to be.
        nih: whether they are NIH's, of 1024 x 1024.
        one_size: whether the set has one size, so that another one is a fault.
    """
    faults = {name: one for name, one in pictures.items() if one.fault}
    good = {name: one for name, one in pictures.items() if not one.fault}
    cut = {name: one.fault for name, one in faults.items() if one.cut}
    remarks = remark("truncated_image", cut)
    remarks += remark(
        "unreadable_image", {name: one.fault for name, one in faults.items() if not one.cut}
    )
    remarks += remark("blank_image", [name for name, one in good.items() if one.blank])
    remarks += remark(
        "odd_mode", {name: one.mode for name, one in good.items() if one.mode not in PLAIN_MODES}
    )
    return remarks + _sizes(good, nih=nih, one_size=one_size)


def _sizes(good: Mapping[str, Picture], *, nih: bool, one_size: bool) -> list[Remark]:
    if not good:
        return []
    usual, _ = Counter(one.size for one in good.values()).most_common(1)[0]
    other = {
        name: f"{one.size[0]} x {one.size[1]}" for name, one in good.items() if one.size != usual
    }
    remarks = []
    shown = f"{usual[0]} x {usual[1]}"
    if one_size:
        remarks += remark("other_size", other, text=f"images that are not {shown} as the others")
    else:
        remarks += remark("sizes_differ", other, text=f"images that are not {shown}, as most are")
    if nih and usual != NIH_SIZE:
        copies = [name for name, one in good.items() if one.size == usual]
        text = f"images of {shown}, where NIH's are 1024 x 1024: a resized copy"
        remarks += remark("not_original_size", copies, text=text)
    return remarks


def same_pictures(
    pictures: Mapping[str, Picture],
    table: pd.DataFrame,
    findings: Sequence[str],
    splits: Sequence[SplitFound],
) -> list[Remark]:
    """Images whose decoded pixels are those of an earlier one, to the bit.

    They contradict each other where their patient, their labels or their side of a split differ.
    Images of a single shade are all alike, and are left out.
    """
    groups: dict[bytes, list[str]] = {}
    for name in sorted(pictures):
        if pictures[name].pixels and not pictures[name].blank:
            groups.setdefault(pictures[name].pixels, []).append(name)
    repeated = {name: group[0] for group in groups.values() for name in group[1:]}
    if not repeated:
        return []
    concerned = table["image"].isin({*repeated, *repeated.values()})
    rows = table[concerned].set_index("image")
    labels = dict(zip(rows.index, map(tuple, rows[list(findings)].to_numpy()), strict=True))
    patients = rows["patient_id"].to_dict()
    harmless, contradictory = {}, {}
    for name, first in repeated.items():
        differing = []
        if patients[name] != patients[first]:
            differing.append("patient")
        if labels[name] != labels[first]:
            differing.append("labels")
        differing += [
            f"side of the split {split.name}"
            for split in splits
            if _sides(split, name) != _sides(split, first)
        ]
        alike = pictures[name].content == pictures[first].content
        text = f"same {'bytes' if alike else 'pixels'} as {first}"
        if differing:
            contradictory[name] = f"{text}, but another {' and '.join(differing)}"
        else:
            harmless[name] = text
    return remark("duplicate_conflict", contradictory) + remark("duplicate_image", harmless)


def _sides(split: SplitFound, image: str) -> frozenset[str]:
    return frozenset(side for side, images in split.sides.items() if image in images)


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


NAMES = 5  # named of each remark; --json has them all


def show_health(health: Health, console: Console) -> None:
    """Print what the set is, its figures, and every problem and note with what to do."""
    source = health.source
    console.print(Text(source.release, style="bold"))
    console.print(_text(f"told by {'; '.join(source.told_by)}"), style="dim")
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
            table.add_row(title, _text(_listed(values)))
    if counts["boxes"]:
        table.add_row("boxes", f"{counts['boxes']:,}")
    return table


def _listed(values: Mapping[str, int]) -> str:
    first = [f"{name} {count:,}" for name, count in list(values.items())[:NAMES]]
    more = len(values) - len(first)
    return ", ".join(first) + (f" and {more:,} more kinds" if more else "")


def _split_lines(health: Health) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Split", overflow="fold")
    table.add_column("Side", no_wrap=True)
    for title in ("Images", "Patients"):
        table.add_column(title, justify="right", no_wrap=True)
    for split in health.splits:
        name = split.name
        for side, images in split.sides.items():
            table.add_row(_text(name), _text(side), f"{len(images):,}", f"{split.patients[side]:,}")
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
    """Print a text in lines that all begin there, and end where their last word does."""
    for line in text.wrap(console, console.width - by):
        line.rstrip()
        console.print(Text(" " * by) + line)


def _named(one: Remark) -> str:
    first = [_with_detail(name, one.details.get(name, "")) for name in one.names[:NAMES]]
    more = len(one.names) - len(first)
    separator = "; " if any(one.details.values()) else ", "
    return separator.join(first) + (f" and {more:,} more" if more else "")


def _with_detail(name: str, detail: str) -> str:
    name = name if len(name) <= 80 else f"{name[:77]}..."
    return f"{name} ({detail})" if detail else name


def _verdict(health: Health) -> Text:
    if health.problems:
        kinds = _of(len(health.problems), "kind")
        return Text(f"Not sound: {kinds} of problem.", style="bold red")
    notes = f", with {_of(len(health.notes), 'note')}" if health.notes else ""
    return Text(f"Sound{notes}.", style="bold green")


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _text(text: str, *, style: str = "") -> Text:
    """Names from disks and tables on one line, with what is invisible spelled out."""
    return Text(printable(text), overflow="fold", style=style)
