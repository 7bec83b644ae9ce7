"""Checker of a data set (`xray data check`): every fault, without stopping at the first."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.data.csv_table import shown
from xray_lightning.data.faults import EveryFault, Remark, in_order
from xray_lightning.data.image_files import Folder, search
from xray_lightning.data.images import PLAIN_MODES, Picture, look_at
from xray_lightning.data.manifest import check_folder
from xray_lightning.data.sources import Given, Listing, Release, Source, known_sources, recognised
from xray_lightning.data.sources.chestmnist import SPLIT
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.nih import FILE, UNKNOWN_PATIENT, read_box_rows
from xray_lightning.data.splits import NAMES as NAMES_OF_SPLITS
from xray_lightning.data.splits import SIDES, read_split_file, sides_of_column
from xray_lightning.errors import UserError, check_whole, printable
from xray_lightning.parallel import threads
from xray_lightning.progress import Display, unseen

SCHEMA_VERSION = 1
_UNKNOWN = UNKNOWN_PATIENT + ": "  # how the manifest begins a patient of its own


@dataclass(frozen=True)
class SplitFound:
    """A split that exists.

    Attributes:
        name: `official`, `ai4m`, `column`, or a file.
        sides: each side's images that have a row, as they are counted.
        patients: patients of each side.
        overlaps: what pairs of sides share: "train-val" -> {"patients": n, "images": n}.
    """

    name: str
    sides: dict[str, frozenset[str]]
    patients: dict[str, int]
    overlaps: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Health:
    """What was found; `as_json` says what each figure is.

    Attributes:
        root, images: the folders of the tables and of the images.
        dialect, release: the kind of the data set.
        rows: rows read, with those that lack cells.
        listing: what its table says.
        folder: what lies below `images`.
        found: images of the table that have a file.
        pictures: what each of these was found to be, by name; None without decoding.
        boxes: rows of the list of boxes.
        splits: those that are there.
        remarks: problems, then notes.
    """

    root: Path
    images: Path
    dialect: str
    release: Release
    rows: int
    listing: Listing
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
        table = self.listing.table
        patients = {name for name in table["patient_id"] if not name.startswith(_UNKNOWN)}
        return {
            "rows": self.rows,
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
        table = self.listing.table
        return {name: int(table[name].sum()) for name in self.listing.findings}

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
            "dialect": self.dialect,
            "release": self.release.name,
            "told_by": list(self.release.told_by),
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
        own: how to read a custom CSV, rather than a table that is known; where there is none of
            these, any single CSV is taken for one.
        findings: those of the custom CSV; None for all of NIH's 14 that it has.
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
    source = own or recognised(root) or _custom_csv(root)
    faults = EveryFault()
    listing = source.read(root, faults, findings=findings)
    table = listing.table
    if len(table):
        source.check(listing, faults)
    release = source.describe(root, listing, faults)
    rows = listing.rows + faults.count("short_row")
    splits = [
        check_split(name, given, table, faults)
        for name, given in _splits(root, source, listing, split, faults).items()
        if len(table)
    ]
    boxes = check_boxes(root / FILE, table, faults)
    folder = search(images or root)
    paths = {name: folder.path_of(name, by_path=source.by_path) for name in table["image"]}
    there = {name: path for name, path in paths.items() if path}
    check_files(folder, paths, listing.named, faults)
    pictures = None
    if decode:
        with progress("checking images", len(there)) as advance:
            looked = look_at(there.values(), jobs=jobs or threads(), advance=advance)
        pictures = {name: looked[path] for name, path in there.items()}
        check_pictures(pictures, release, faults)
        check_same_pictures(pictures, listing, splits, faults)
    return Health(
        root,
        images or root,
        source.dialect,
        release,
        rows,
        listing,
        folder,
        len(there),
        pictures,
        boxes,
        tuple(splits),
        in_order(faults.remarks),
    )


def _custom_csv(root: Path) -> OwnTable:
    """The only CSV of a folder, to be read as a custom CSV."""
    if not any(path.suffix.lower() == ".csv" for path in root.iterdir()):
        raise UserError(_no_table(root))
    # -1 and empty cells are counted, not refused: what they mean is said by the configuration.
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
    root: Path, source: Source, listing: Listing, split: str | None, faults: EveryFault
) -> dict[str, Given]:
    """The sides of each split that is there, or of the one that is asked for."""
    given, of_lists = EveryFault(), EveryFault()
    found: dict[str, tuple[Given, EveryFault]] = {}
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


def _sides_of_file(path: Path) -> tuple[Given, EveryFault]:
    faults = EveryFault()
    rows = read_split_file(path, faults)
    if faults.count("table_unreadable"):
        return {}, faults
    images = {side: tuple(dict.fromkeys(rows["image"][rows["split"] == side])) for side in SIDES}
    return images, faults


def check_split(name: str, given: Given, table: pd.DataFrame, faults: EveryFault) -> SplitFound:
    """Compare every pair of sides, and the sides with the table.

    Args:
        name: of the split.
        given: its images by side.
        table: with `image` and `patient_id`, one row an image.
        faults: sink of what is wrong.
    """
    patient_of = dict(zip(table["image"], table["patient_id"], strict=True))
    sides = {side: frozenset(patient_of.keys() & names) for side, names in given.items()}
    patients = {side: {patient_of[image] for image in images} for side, images in sides.items()}
    split = SplitFound(name, sides, {side: len(ids) for side, ids in patients.items()})
    for one, other in combinations(given, 2):
        # Also images without a row: the lists contradict each other all the same.
        images = set(given[one]) & set(given[other])
        both = patients[one] & patients[other]
        if images or both:
            split.overlaps[f"{one}-{other}"] = {"patients": len(both), "images": len(images)}
        where = f"in both {one} and {other} of the split {name}"
        faults.tell("image_on_two_sides", images, text=f"images {where}")
        theirs = [image for image in sides[one] | sides[other] if patient_of[image] in both]
        faults.tell(
            "patient_on_two_sides",
            theirs,
            count=len(both),
            text=f"patients {where}, with {len(theirs):,} images",
        )
    named = {image for images in given.values() for image in images}
    lists = name in NAMES_OF_SPLITS
    without = named.difference(table["image"])
    faults.tell("listed_without_row" if lists else "split_without_row", without)
    left = [image for image in table["image"] if image not in named]
    faults.tell("on_no_side", left, text=f"rows on no side of the split {name}")
    empty = [side for side, images in sides.items() if not images]
    faults.tell("side_empty", empty, text=f"sides of the split {name} without an image")
    return split


def check_boxes(path: Path, table: pd.DataFrame, faults: EveryFault) -> int:
    """Compare the list of boxes, if there is one, with the table; returns its rows."""
    if not path.is_file():
        return 0
    of_boxes = EveryFault()
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
    folder: Folder, paths: Mapping[str, str], named: Set[str], faults: EveryFault
) -> None:
    """Tell what is wrong with the files, and between them and the rows."""
    odd = folder.odd_names()
    missing = [name for name, path in paths.items() if not path]
    several = {
        name: " and ".join(sorted(files)[:3])
        for name, files in folder.files.items()
        # A custom CSV may mean the one in the folder itself.
        if len(files) > 1 and paths.get(name) in files
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


def check_pictures(pictures: Mapping[str, Picture], release: Release, faults: EveryFault) -> None:
    """Tell what is wrong with images, by their names.

    Args:
        pictures: what each file was found to be.
        release: says whether the set has one size, so that another one is a fault.
        faults: sink of what is wrong.
    """
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
    splits: Sequence[SplitFound],
    faults: EveryFault,
) -> None:
    """Tell of images whose decoded pixels are those of an earlier one, to the bit.

    They contradict each other where their patient, their labels or their side of a split differ.
    Images of a single shade are all alike, and are left out.
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
    faults.tell("duplicate_conflict", contradictory)
    faults.tell("duplicate_image", harmless)


def _sides(split: SplitFound, image: str) -> frozenset[str]:
    return frozenset(side for side, images in split.sides.items() if image in images)


NAMES = 5  # named of each remark; --json has them all


def show_health(health: Health, console: Console) -> None:
    """Print what the set is, its figures, and every problem and note with what to do."""
    console.print(Text(health.release.name, style="bold"))
    console.print(_text(f"told by {'; '.join(health.release.told_by)}"), style="dim")
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
