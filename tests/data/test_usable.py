"""A split is used only when its files are there and its leaks, if any, were allowed."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REAL, real_data
from tables import make_manifest

from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.splits import (
    SIDES,
    Split,
    UsableSplit,
    make_split,
    overlaps,
    patients_by_image,
    usable_split,
)
from xray_lightning.errors import UserError


def without_files(manifest: Manifest, *images: str) -> Manifest:
    table = manifest.table.copy()
    table.loc[table["image"].isin(images), "path"] = ""
    return replace(manifest, table=table)


def use(
    manifest: Manifest, split: Split, *, missing: str = "error", allow: bool = True
) -> UsableSplit:
    return usable_split(manifest, split, missing=missing, allow_patient_overlap=allow)


def refused(manifest: Manifest, split: Split, *, missing: str = "error", allow: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        use(manifest, split, missing=missing, allow=allow)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- leaks -----------------------------------------------------------------------------------------

LEAKY = make_manifest({"a1": "A", "a2": "A", "b1": "B", "b2": "B", "c1": "C", "d1": "D"})
LEAKY_SPLIT = Split("x", {"train": ("a1", "b1", "c1"), "val": ("a2", "b1"), "test": ("b2", "d1")})
CLEAN_SPLIT = Split("x", {"train": ("a1", "a2"), "val": ("b1", "b2"), "test": ("c1", "d1")})


def test_overlap_counts_patients_and_images_by_pair() -> None:
    assert overlaps(LEAKY_SPLIT.sides, patients_by_image(LEAKY)) == {
        ("train", "val"): ({"A", "B"}, {"b1"}),
        ("train", "test"): ({"B"}, set()),
        ("val", "test"): ({"B"}, set()),
    }


def test_fault_44_a_patient_on_two_sides_is_refused_with_counts_and_examples() -> None:
    message = refused(LEAKY, LEAKY_SPLIT, allow=False)
    assert "train and val share 2 patients (A, B) and 1 image (b1)" in message
    assert "train and test share 1 patient (B) and no image" in message
    assert "val and test share 1 patient (B) and no image" in message
    assert "data.allow_patient_overlap=true" in message


def test_at_most_five_shared_patients_are_named() -> None:
    manifest = make_manifest({f"{patient}{n}": patient for patient in "ABCDEFGH" for n in "12"})
    train, val = (tuple(f"{patient}{n}" for patient in "ABCDEFG") for n in "12")
    message = refused(
        manifest, Split("x", {"train": train, "val": val, "test": ("H2",)}), allow=False
    )
    assert "share 7 patients (A, B, C, D, E, ...) and no image" in message


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_a_split_without_a_leak_and_with_all_its_files_is_used_as_it_is(missing: str) -> None:
    unchanged = UsableSplit(CLEAN_SPLIT, dict.fromkeys(SIDES, 0), {})
    assert use(LEAKY, CLEAN_SPLIT, missing=missing, allow=False) == unchanged


# -- missing files ---------------------------------------------------------------------------------

HOLES = without_files(LEAKY, "c1", "d1")


def test_fault_43_rows_without_a_file_are_refused_by_side_with_examples() -> None:
    message = refused(HOLES, LEAKY_SPLIT)
    assert "2 of 7 rows have no file under /data (train 1, val 0, test 1; c1, d1)" in message
    assert "data.missing=skip" in message
    elsewhere = replace(HOLES, images=Path("/pixels"))
    assert "no file under /pixels" in refused(elsewhere, LEAKY_SPLIT)


def test_at_most_five_missing_files_are_named() -> None:
    message = refused(without_files(LEAKY, *LEAKY.table["image"]), CLEAN_SPLIT)
    assert "6 of 6 rows have no file" in message
    assert "; a1, a2, b1, b2, c1, ...)" in message


def test_fault_43_skipped_rows_are_counted_and_change_the_digest() -> None:
    usable = use(HOLES, LEAKY_SPLIT, missing="skip")
    split = usable.split
    assert split.sides == {"train": ("a1", "b1"), "val": ("a2", "b1"), "test": ("b2",)}
    assert usable.skipped == {"train": 1, "val": 0, "test": 1}
    assert split.sha256 != LEAKY_SPLIT.sha256
    assert split.sha256 == Split("x", split.sides).sha256


@pytest.mark.parametrize("missing", ["", "ignore", "Skip"])
def test_another_word_for_missing_is_refused(missing: str) -> None:
    assert "choose error or skip" in refused(LEAKY, CLEAN_SPLIT, missing=missing)


def test_skipping_a_whole_side_is_refused() -> None:
    message = refused(without_files(LEAKY, "b2", "d1"), LEAKY_SPLIT, missing="skip")
    assert "no image in test: none of its rows has a file under /data" in message


# -- both ------------------------------------------------------------------------------------------


def test_a_leak_and_missing_files_are_told_in_one_line() -> None:
    message = refused(HOLES, LEAKY_SPLIT, allow=False)
    for part in (
        "train and val share 2 patients",
        "2 of 7 rows have no file",
        "data.allow_patient_overlap=true",
        "data.missing=skip",
    ):
        assert part in message


def test_with_both_overrides_the_overlap_is_recorded() -> None:
    assert use(HOLES, LEAKY_SPLIT, missing="skip").patient_overlap == {
        "train-val": {"patients": 2, "images": 1},
        "train-test": {"patients": 1, "images": 0},
        "val-test": {"patients": 1, "images": 0},
    }


@pytest.mark.parametrize("missing, allow", [("error", True), ("skip", False)])
def test_one_override_leaves_the_other_problem(missing: str, allow: bool) -> None:
    message = refused(HOLES, LEAKY_SPLIT, missing=missing, allow=allow)
    assert ("have no file" in message) is (missing == "error")
    assert ("share" in message) is not allow


def test_a_patient_whose_file_is_skipped_leaks_nothing() -> None:
    holes = without_files(LEAKY, "a1", "b1")
    split = Split("x", {"train": ("a1", "c1"), "val": ("a2",), "test": ("d1",)})
    assert use(holes, split, missing="skip", allow=False).patient_overlap == {}


# -- real data -------------------------------------------------------------------------------------


def ai4m_sides(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """(image, patient) of each CSV, read in another way than the manifest reads it."""
    files = {"train": "train-small.csv", "val": "valid-small.csv", "test": "test.csv"}
    sides = {}
    for side, name in files.items():
        with (folder / name).open(newline="") as file:
            sides[side] = [(row["Image"], row["PatientId"]) for row in csv.DictReader(file)]
    return sides


@real_data
@pytest.mark.parametrize("folder, patients, images", [("ai4m", 197, 198), ("ai4m_875", 11, 23)])
def test_the_leaks_of_ai_for_medicine_are_counted(folder: str, patients: int, images: int) -> None:
    manifest = read_manifest(REAL / folder)
    split = make_split(manifest, "ai4m")
    shared_by = overlaps(split.sides, patients_by_image(manifest))
    assert set(shared_by) == {("train", "val")}
    shared = shared_by["train", "val"]
    assert (len(shared.patients), len(shared.images)) == (patients, images)
    sides = ai4m_sides(REAL / folder)
    train, val = ({patient for _, patient in sides[side]} for side in ("train", "val"))
    assert shared.patients == train & val
    names = Counter(row[0] for side in ("train", "val") for row in sides[side])
    assert shared.images == {name for name, count in names.items() if count > 1}


@real_data
def test_ai_for_medicine_with_few_images_is_refused_with_leak_and_missing_files() -> None:
    manifest = read_manifest(REAL / "ai4m", images=REAL / "nih1024")
    split = make_split(manifest, "ai4m")
    there = {path.name for path in (REAL / "nih1024").rglob("*.png")}
    gone = {
        side: sum(image not in there for image, _ in rows)
        for side, rows in ai4m_sides(REAL / "ai4m").items()
    }
    message = refused(manifest, split, allow=False)
    assert "train and val share 197 patients" in message
    assert "198 images" in message
    assert f"{sum(gone.values()):,} of 1,620 rows have no file" in message
    assert f"(train {gone['train']}, val {gone['val']}, test {gone['test']};" in message
    assert use(manifest, split, missing="skip").skipped == gone
