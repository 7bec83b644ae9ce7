"""What must be right before a split is used: files that are there, and no patient on two sides."""

from dataclasses import dataclass, field, replace
from itertools import combinations

from xray_lightning.data.cells import shown
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import SIDES, Split, check_sides_filled, counted, patients_by_image
from xray_lightning.errors import UserError


@dataclass(frozen=True)
class Overlap:
    """What two sides share, sorted: patients, and the images that are on both sides themselves."""

    patients: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class UsableSplit:
    """A split of which every row has a file, and whose leaks, if any, the caller allowed.

    Attributes:
        split: the rows to use.
        skipped: rows left out for want of a file, by side.
        patient_overlap: "train-val" -> {"patients": n, "images": n}, for pairs that share any.
    """

    split: Split
    skipped: dict[str, int]
    patient_overlap: dict[str, dict[str, int]] = field(default_factory=dict)


def patient_overlap(manifest: Manifest, split: Split) -> dict[tuple[str, str], Overlap]:
    """What each pair of sides shares, for the pairs that share a patient."""
    patient_of = patients_by_image(manifest)
    images = {side: set(names) for side, names in split.sides.items()}
    patients = {side: {patient_of[name] for name in names} for side, names in images.items()}
    return {
        (one, other): Overlap(
            tuple(sorted(patients[one] & patients[other])),
            tuple(sorted(images[one] & images[other])),
        )
        for one, other in combinations(SIDES, 2)
        if patients[one] & patients[other]
    }


def with_files(manifest: Manifest, split: Split, *, missing: str) -> tuple[Split, dict[str, int]]:
    """The rows of a split that have an image file, and how many each side lost.

    Args:
        manifest: where the files were found.
        split: the rows that are asked for.
        missing: "error" refuses a row without a file, "skip" leaves it out.

    Raises:
        UserError: rows without a file and not "skip", or a side that has none left.
    """
    if missing not in ("error", "skip"):
        raise UserError(f"data.missing={missing} is unknown; choose error or skip")
    absent = _absent(manifest, split)
    if any(absent.values()) and missing == "error":
        raise UserError(f"data.split={split.name}: {_missing_problem(manifest, split, absent)}")
    return _without(manifest, split, absent), {side: len(absent[side]) for side in SIDES}


def usable_split(
    manifest: Manifest, split: Split, *, missing: str, allow_patient_overlap: bool
) -> UsableSplit:
    """Leave out or refuse rows without a file, and refuse or note patients on two sides.

    The overlap is that of the rows which would be used: with `missing="skip"`, a patient whose
    images have no file leaks nothing.

    Raises:
        UserError: everything that is wrong, in one line.
    """
    problems: list[str] = []
    absent = _absent(manifest, split)
    if missing == "error" and any(absent.values()):
        problems.append(_missing_problem(manifest, split, absent))
        used, skipped = split, dict.fromkeys(SIDES, 0)
    else:
        used, skipped = with_files(manifest, split, missing=missing)
    overlap = patient_overlap(manifest, used)
    if overlap and not allow_patient_overlap:
        problems.insert(0, _overlap_problem(overlap))
    if problems:
        raise UserError(f"data.split={split.name}: {'; and '.join(problems)}")
    counts = {
        f"{one}-{other}": {"patients": len(shared.patients), "images": len(shared.images)}
        for (one, other), shared in overlap.items()
    }
    return UsableSplit(used, skipped, counts)


def _absent(manifest: Manifest, split: Split) -> dict[str, set[str]]:
    table = manifest.table
    without = set(table["image"][table["path"] == ""])
    return {side: without.intersection(split.sides[side]) for side in SIDES}


def _without(manifest: Manifest, split: Split, absent: dict[str, set[str]]) -> Split:
    sides = {
        side: tuple(name for name in names if name not in absent[side])
        for side, names in split.sides.items()
    }
    kept = replace(split, sides=sides)
    where = manifest.images or manifest.root
    check_sides_filled(kept, f"none of its rows has a file under {where}; give data.images")
    return kept


def _overlap_problem(overlap: dict[tuple[str, str], Overlap]) -> str:
    pairs = [
        f"{one} and {other} share {counted(shared.patients, 'patient')} and "
        + (counted(shared.images, "image") if shared.images else "no image")
        for (one, other), shared in overlap.items()
    ]
    return (
        f"{'; '.join(pairs)}: keep each patient on one side, or set "
        "data.allow_patient_overlap=true to run anyway and have the result marked"
    )


def _missing_problem(manifest: Manifest, split: Split, absent: dict[str, set[str]]) -> str:
    rows = sum(len(names) for names in split.sides.values())
    count = sum(len(names) for names in absent.values())
    sides = ", ".join(f"{side} {len(absent[side]):,}" for side in SIDES)
    first = [shown(name)[1:-1] for side in SIDES for name in sorted(absent[side])][:5]
    more = ", ..." if count > len(first) else ""
    return (
        f"{count:,} of {rows:,} rows have no file under {manifest.images or manifest.root} "
        f"({sides}; {', '.join(dict.fromkeys(first))}{more}): add the files, give their folder as "
        "data.images, or set data.missing=skip to leave these rows out and have them counted"
    )
