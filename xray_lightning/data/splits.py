"""Splits of a manifest by patient: named, hashed, checked before use, and shown as a table."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from xray_lightning import terminal
from xray_lightning.data.csv_table import Titles, fail_at, line_of, read_cells, shown
from xray_lightning.data.faults import Faults, FirstFault
from xray_lightning.data.folds import check_fold, sides_of_fold
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.sources import Given
from xray_lightning.data.sources.ai4m import AI4M_TABLES
from xray_lightning.data.sources.nih import NIH_LISTS
from xray_lightning.errors import UserError
from xray_lightning.files import write_atomically
from xray_lightning.findings import NO_FINDING
from xray_lightning.terminal import readable

SIDES = ("train", "val", "test")
NAMES = ("official", "patient_random", "ai4m", "column")
# How a column `split` of one's own table may spell the sides.
SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_TITLES: Titles = {"image": ("image",), "split": ("split",)}

Sides = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Split:
    """The images of each side: train, val and test.

    Attributes:
        name: the name or path that `make_split` was given.
        sides: `train`, `val`, `test` -> image names, sorted.
        unassigned: rows of the manifest that are on no side.
        without_row: images that the split's lists name and the manifest does not have.
    """

    name: str
    sides: Sides
    unassigned: int = 0
    without_row: int = 0

    @property
    def sha256(self) -> str:
        """Digest of the sorted "side<TAB>image" lines; the order of images has no effect."""
        lines = sorted(f"{side}\t{name}\n" for side, names in self.sides.items() for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Atomically write a CSV (image, split) that `make_split` reads.

        Raises:
            OSError: the file cannot be written.
        """
        rows = [(name, side) for side, names in self.sides.items() for name in names]
        table = pd.DataFrame(rows, columns=list(SPLIT_TITLES))
        write_atomically(path, table.to_csv(index=False, lineterminator="\n"))


def own_split(manifest: Manifest) -> str | None:
    """The name of the split that a data set brings along; None where it brings none."""
    if set(NIH_LISTS) <= manifest.given.keys() and manifest.dialect == "nih":
        return "official"
    if set(AI4M_TABLES) <= manifest.given.keys() and manifest.dialect == "ai4m":
        return "ai4m"
    return "column" if manifest.dialect == "csv" and manifest.given else None


def make_split(
    manifest: Manifest,
    name: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    fold: int | None = None,
    folds: int = 5,
) -> Split:
    """Put each image on a side.

    Args:
        manifest: the images and their patients.
        name: `official` (test as NIH's test_list.txt says, val carved from train_val_list.txt by
            patient), `patient_random` (patients shuffled), `ai4m` (the CSVs as given), `column` (as
            a column of one's own table says; val drawn from train where it has none), or the path
            of a CSV with the columns image and split (train, val or test).
        seed: of the order that patients are drawn in.
        val_fraction: share of the patients that validate: in `official` of those in
            train_val_list.txt, in `column` of those in train.
        test_fraction: share of the patients that test, in `patient_random`.
        fold: train and val are pooled and divided into `folds` folds (see `stratified_folds`); this
            one validates and the others train. None leaves train and val as they are.

    Raises:
        UserError: an unknown name, a missing list, a fault in a split file, a fold out of range,
            an empty side.
    """
    if fold is not None:
        check_fold(fold, folds)
    shares = {"val": val_fraction, "test": test_fraction}
    if min(shares.values()) <= 0 or sum(shares.values()) >= 1 or seed < 0:
        raise UserError(
            f"data.val_fraction={val_fraction}, data.test_fraction={test_fraction}, "
            f"data.split_seed={seed}: fractions must be over 0 and sum to less than 1, the seed "
            "must not be negative"
        )
    if name == "official":
        sides = _official(manifest, seed=seed, val_fraction=val_fraction)
    elif name == "patient_random":
        sides = _carve(manifest, manifest.table["image"], shares=shares, seed=seed)
    elif name == "ai4m":
        sides = _as_given(manifest)
    elif name == "column":
        sides = _of_column(manifest, seed=seed, val_fraction=val_fraction)
    else:
        sides = _from_file(manifest, name)
    if fold is not None:
        listed = {*sides["train"], *sides["val"]}
        train, val = sides_of_fold(manifest, listed, fold=fold, folds=folds, seed=seed)
        sides = {"train": train, "val": val, "test": sides["test"]}
    known = set(manifest.table["image"])
    named = {image for images in sides.values() for image in images}
    split = Split(
        name,
        {side: tuple(sorted(known.intersection(sides[side]))) for side in SIDES},
        unassigned=len(known - named),
        without_row=len(named - known),
    )
    check_sides_filled(split, "none of the images listed for it has a row; choose another split")
    return split


WHOLE = "whole"


def whole_split(manifest: Manifest) -> Split:
    """A split with every image on the test side, for a data set that is only evaluated on."""
    images = tuple(sorted(manifest.table["image"]))
    return Split(WHOLE, {"train": (), "val": (), "test": images})


def _official(manifest: Manifest, *, seed: int, val_fraction: float) -> Sides:
    for side, file in NIH_LISTS.items():
        if side not in manifest.given:
            raise UserError(
                f"data.split=official needs {manifest.root / file}, which is not there; put NIH's "
                "list there, or choose data.split=patient_random"
            )
    train_val, test = manifest.given["train_val"], manifest.given["test"]
    if both := sorted(set(train_val) & set(test)):
        files = " and ".join(NIH_LISTS.values())
        raise UserError(
            f"{manifest.root}: {files} share {counted(both, 'image')}; an image has one side"
        )
    known = set(manifest.table["image"])
    sides = _carve(manifest, known.intersection(train_val), shares={"val": val_fraction}, seed=seed)
    unknown = tuple(image for image in train_val if image not in known)
    return sides | {"train": sides["train"] + unknown, "test": test}


def _carve(
    manifest: Manifest, images: Iterable[str], *, shares: dict[str, float], seed: int
) -> Sides:
    """Draw each side's share of the patients; the rest train. The order of rows has no effect."""
    patient_of = patients_by_image(manifest)
    images = sorted(images)
    patients = np.array(sorted({patient_of[image] for image in images}), dtype=object)
    drawn = np.random.default_rng(seed).permutation(patients)
    side_of: dict[str, str] = {}
    start = 0
    for side, share in shares.items():
        end = start + round(share * len(patients))
        side_of |= dict.fromkeys(drawn[start:end], side)
        start = end
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for image in images:
        sides[side_of.get(patient_of[image], "train")].append(image)
    return {side: tuple(names) for side, names in sides.items()}


def _as_given(manifest: Manifest) -> Sides:
    for side, file in AI4M_TABLES.items():
        if manifest.dialect != "ai4m" or side not in manifest.given:
            raise UserError(
                f"data.split=ai4m needs {manifest.root / file}, which this data set does not have; "
                "choose data.split=official or patient_random"
            )
    return manifest.given


def _of_column(manifest: Manifest, *, seed: int, val_fraction: float) -> Sides:
    given = manifest.given
    if manifest.dialect != "csv" or not given:
        raise UserError(
            "data.split=column needs data=csv and a column split in the table (or the one that "
            "data.columns.split names); choose data.split=patient_random"
        )
    sides = dict.fromkeys(SIDES, ()) | sides_of_column(given, FirstFault())
    if sides["val"]:
        return sides
    carved = _carve(manifest, sides["train"], shares={"val": val_fraction}, seed=seed)
    return carved | {"test": sides["test"]}


def sides_of_column(given: Given, faults: Faults) -> Sides:
    """The images of each side, given those of each text in a custom CSV's column `split`."""
    sides: Sides = {}
    for text, images in given.items():
        known = (side for side, spellings in SPELLINGS.items() if text.lower() in spellings)
        if (side := next(known, None)) is None:
            faults.refuse(
                UserError(
                    f"data.split=column: {counted(images, 'image')} with split {shown(text)}, "
                    f"which is none of {', '.join(SPELLINGS)}"
                )
            )
            faults.tell("unknown_side", images)
        else:
            sides[side] = sides.get(side, ()) + images
    return sides


def read_split_file(path: Path, faults: Faults) -> pd.DataFrame:
    """The rows of a CSV (image, split) that are in train, val or test."""
    rows = read_cells(path, SPLIT_TITLES, required=tuple(SPLIT_TITLES), faults=faults)
    wrong = ~rows["split"].isin(SIDES).to_numpy(dtype=bool)
    if not wrong.any():
        return rows
    first = int(np.argmax(wrong))
    found = shown(rows["split"].iloc[first])
    faults.refuse(fail_at(rows, first, f"side {found} is none of {SIDES}"))
    places = zip(rows["image"][wrong], rows["line"][wrong], strict=True)
    faults.tell("unknown_side", {image: line_of(path, line) for image, line in places})
    return rows[~wrong].reset_index(drop=True)


def _from_file(manifest: Manifest, name: str) -> Sides:
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"data.split={shown(name)} is neither {', '.join(NAMES)} nor a file that exists; "
            "give one of them"
        )
    rows = read_split_file(path, FirstFault())
    unknown = np.flatnonzero(~rows["image"].isin(manifest.table["image"]))
    if len(unknown):
        raise fail_at(
            rows,
            int(unknown[0]),
            f"{counted(list(rows['image'].iloc[unknown]), 'image')} of this file not in the "
            f"manifest of {manifest.root}; remove the rows or give the folder that has them",
        )
    rows = rows.drop_duplicates(["image", "split"])
    twice = np.flatnonzero(rows["image"].duplicated())
    if len(twice):
        second = int(twice[0])
        image = rows["image"].iloc[second]
        first = int(np.flatnonzero(rows["image"] == image)[0])
        raise fail_at(
            rows,
            second,
            f"{shown(image)} is on side {rows['split'].iloc[second]} here and on side "
            f"{rows['split'].iloc[first]} in line {rows['line'].iloc[first]}; keep one",
        )
    return {side: tuple(rows["image"][rows["split"] == side]) for side in SIDES}


def check_sides_filled(split: Split, cause: str, *, sides: Iterable[str] = SIDES) -> None:
    """Refuse a split if any of `sides` is empty.

    Raises:
        UserError: with the empty sides, and `cause`.
    """
    empty = [side for side in sides if not split.sides[side]]
    if empty:
        raise UserError(f"data.split={split.name}: no image in {' and '.join(empty)}: {cause}")


def patients_by_image(manifest: Manifest) -> dict[str, str]:
    """The patient of each image of the manifest."""
    table = manifest.table
    return dict(zip(table["image"], table["patient_id"], strict=True))


def counted(names: Collection[str], what: str) -> str:
    """A count and at most five examples: "7 images (a.png, b.png, ...)"."""
    first = [shown(name)[1:-1] for name in sorted(names)[:5]]
    more = ", ..." if len(names) > len(first) else ""
    return f"{terminal.counted(len(names), what)} ({', '.join(first)}{more})"


class Overlap(NamedTuple):
    """The patients that two sides share, and the images that are on both of them."""

    patients: set[str]
    images: set[str]


Overlaps = dict[tuple[str, str], Overlap]


def overlaps(sides: Given, patient_of: Mapping[str, str]) -> Overlaps:
    """What each pair of sides shares, for the pairs that share anything.

    Images that are not in `patient_of`, for want of a row in the table, add no patient.
    """
    images = {side: set(names) for side, names in sides.items()}
    patients = {
        side: {patient_of[name] for name in names & patient_of.keys()}
        for side, names in images.items()
    }
    pairs = {
        (one, other): Overlap(patients[one] & patients[other], images[one] & images[other])
        for one, other in combinations(images, 2)
    }
    return {pair: shared for pair, shared in pairs.items() if any(shared)}


def overlap_counts(shared: Overlaps) -> dict[str, dict[str, int]]:
    """As "train-val" -> {"patients": n, "images": n}."""
    return {
        "-".join(pair): {"patients": len(both.patients), "images": len(both.images)}
        for pair, both in shared.items()
    }


@dataclass(frozen=True)
class UsableSplit:
    """A split whose images all have a file, and whose patient overlap, if any, was allowed.

    Attributes:
        split: the rows to use.
        skipped: number of rows left out because they have no file, by side.
        patient_overlap: as `overlap_counts`.
    """

    split: Split
    skipped: dict[str, int]
    patient_overlap: dict[str, dict[str, int]] = field(default_factory=dict)


def usable_split(
    manifest: Manifest, split: Split, *, missing: str, allow_patient_overlap: bool
) -> UsableSplit:
    """Leave out or refuse rows without a file, and refuse or note patients on two sides.

    Only rows that would be used count as overlap: with `missing="skip"`, images without a file put
    no patient on a second side.

    Args:
        manifest: where the files were found.
        split: the rows that are asked for.
        missing: "error" refuses a row without a file, "skip" leaves it out.

    Raises:
        UserError: everything that is wrong, in one line.
    """
    if missing not in ("error", "skip"):
        raise UserError(f"data.missing={missing} is unknown; choose error or skip")
    table, problems = manifest.table, []
    without = set(table["image"][table["path"] == ""])
    absent = {side: without.intersection(split.sides[side]) for side in SIDES}
    used = split
    if missing == "skip":
        used = replace(
            split,
            sides={
                side: tuple(name for name in names if name not in without)
                for side, names in split.sides.items()
            },
        )
        where = manifest.images or manifest.root
        cause = f"none of its rows has a file under {where}; give data.images"
        check_sides_filled(used, cause, sides=[side for side in SIDES if split.sides[side]])
    shared = overlaps(used.sides, patients_by_image(manifest))
    if shared and not allow_patient_overlap:
        problems.append(_overlap_problem(shared))
    if missing == "error" and any(absent.values()):
        problems.append(_missing_problem(manifest, split, absent))
    if problems:
        raise UserError(f"data.split={split.name}: {'; and '.join(problems)}")
    skipped = {side: len(images) for side, images in absent.items()}
    return UsableSplit(used, skipped, overlap_counts(shared))


def _overlap_problem(shared: Overlaps) -> str:
    pairs = [
        f"{one} and {other} share {counted(both.patients, 'patient')} and "
        + (counted(both.images, "image") if both.images else "no image")
        for (one, other), both in shared.items()
    ]
    return (
        f"{'; '.join(pairs)}: keep each patient on one side, or set "
        "data.allow_patient_overlap=true to run anyway and have the result marked"
    )


def _missing_problem(manifest: Manifest, split: Split, absent: dict[str, set[str]]) -> str:
    rows = sum(len(names) for names in split.sides.values())
    names = [name for side in SIDES for name in sorted(absent[side])]
    sides = ", ".join(f"{side} {len(absent[side]):,}" for side in SIDES)
    first = dict.fromkeys(shown(name)[1:-1] for name in names[:5])
    more = ", ..." if len(names) > 5 else ""
    return (
        f"{len(names):,} of {rows:,} rows have no file under {manifest.images or manifest.root} "
        f"({sides}; {', '.join(first)}{more}): add the files, give their folder as "
        "data.images, or set data.missing=skip to leave these rows out and have them counted"
    )


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
        rendered.add_row(readable(str(name)), *cells, end_section=name in (IMAGES, NO_FINDING))
    return rendered


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else "-"
