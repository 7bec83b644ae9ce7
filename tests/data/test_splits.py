"""Splits go by patient, are named by a digest, written and read, checked before use, and shown."""

import csv
import hashlib
import io
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL, real_data
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tables import make_manifest

from xray_lightning.data.faults import Faults
from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.splits import (
    SIDES,
    Split,
    UsableSplit,
    make_split,
    overlaps,
    own_split,
    patients_by_image,
    read_split_file,
    render_split_table,
    sides_of_column,
    split_table,
    usable_split,
    whole_split,
)
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

PATIENTS = [f"{number}" for number in range(50)]
IMAGES = {
    f"{patient.zfill(3)}_{number}.png": patient
    for patient in PATIENTS
    for number in range(1 + int(patient) % 4)
}
LISTS = {
    "train_val": tuple(name for name, patient in IMAGES.items() if int(patient) < 40),
    "test": tuple(name for name, patient in IMAGES.items() if int(patient) >= 40),
}
NIH = make_manifest(IMAGES, lists=LISTS)


def patients_of(split: Split, side: str) -> set[str]:
    return {IMAGES[image] for image in split.sides[side]}


def refused(manifest: Manifest, name: str, **options: float) -> str:
    with pytest.raises(UserError) as caught:
        make_split(manifest, name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- carving by patient ----------------------------------------------------------------------------


@given(
    further=st.lists(st.integers(0, 25), max_size=60),
    name=st.sampled_from(["official", "patient_random"]),
    seed=st.integers(0, 2**32),
    draw=st.randoms(use_true_random=False),
)
def test_sides_share_no_patient_hold_every_image_and_ignore_the_order_of_rows(
    further: list[int], name: str, seed: int, draw: random.Random
) -> None:
    patients = [*range(25), *further]  # each has an image, some have many
    images = [(f"{place}.png", str(patient)) for place, patient in enumerate(patients)]
    patient_of = dict(images)

    def split() -> Split:
        draw.shuffle(images)
        lists = {
            "train_val": tuple(image for image, patient in images if int(patient) < 20),
            "test": tuple(image for image, patient in images if int(patient) >= 20),
        }
        return make_split(make_manifest(dict(images), lists=lists), name, seed=seed)

    made = split()
    assert tuple(made.sides) == SIDES
    assert overlaps(made.sides, patient_of) == {}
    assert sorted(image for side in SIDES for image in made.sides[side]) == sorted(patient_of)
    assert made.unassigned == made.without_row == 0
    assert split() == made


def test_official_keeps_the_test_list_and_carves_val_from_train_val() -> None:
    split = make_split(NIH, "official", val_fraction=0.2)
    assert set(split.sides["test"]) == set(LISTS["test"])
    assert len(patients_of(split, "val")) == 8  # a fifth of 40 patients
    assert len(patients_of(split, "train")) == 32


def test_patient_random_takes_its_fractions_of_the_patients() -> None:
    split = make_split(NIH, "patient_random", val_fraction=0.1, test_fraction=0.3)
    assert [len(patients_of(split, side)) for side in SIDES] == [30, 5, 15]


@pytest.mark.parametrize("name", ["official", "patient_random"])
def test_another_seed_is_another_split_and_the_same_seed_the_same(name: str) -> None:
    digests = [make_split(NIH, name, seed=seed).sha256 for seed in (0, 1, 0)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    "fractions",
    [
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"test_fraction": -0.1},
        {"seed": -1},
        {"val_fraction": 0.5, "test_fraction": 0.5},
    ],
)
def test_impossible_fractions_and_seeds_are_refused(fractions: dict[str, float]) -> None:
    assert "data.val_fraction=" in refused(NIH, "patient_random", **fractions)


def test_too_few_patients_for_a_side_are_refused() -> None:
    few = make_manifest({"a.png": "1", "b.png": "2"})
    message = refused(few, "patient_random")
    assert "no image in val and test" in message


# -- folds -----------------------------------------------------------------------------------------


@given(
    further=st.lists(st.integers(0, 25), max_size=60),
    folds=st.integers(2, 6),
    seed=st.integers(0, 2**32),
    draw=st.randoms(use_true_random=False),
)
def test_each_image_of_train_and_val_validates_in_one_fold_with_all_of_its_patient(
    further: list[int], folds: int, seed: int, draw: random.Random
) -> None:
    patients = [*range(25), *further]
    images = [(f"{place}.png", str(patient)) for place, patient in enumerate(patients)]
    labels = {name: ["Mass"] for place, (name, _) in enumerate(images) if place % 3 == 0}
    lists = {
        "train_val": tuple(image for image, patient in images if int(patient) < 20),
        "test": tuple(image for image, patient in images if int(patient) >= 20),
    }

    def split(fold: int) -> Split:
        draw.shuffle(images)
        manifest = make_manifest(dict(images), lists=lists, labels=labels)
        return make_split(manifest, "official", seed=seed, fold=fold, folds=folds)

    made = [split(fold) for fold in range(folds)]
    assert sorted(image for one in made for image in one.sides["val"]) == sorted(lists["train_val"])
    for fold, one in enumerate(made):
        assert overlaps(one.sides, dict(images)) == {}
        assert set(one.sides["train"]) | set(one.sides["val"]) == set(lists["train_val"])
        assert set(one.sides["test"]) == set(lists["test"])
        assert split(fold) == one


def test_folds_share_out_each_finding_and_the_images() -> None:
    draw = random.Random(0)
    patients = {f"{image}.png": str(draw.randrange(800)) for image in range(1600)}
    shares = {finding: 0.005 + 0.01 * place for place, finding in enumerate(FINDINGS)}
    labels = {
        name: [finding for finding, share in shares.items() if draw.random() < share]
        for name in patients
    }
    manifest = make_manifest(patients, labels=labels)
    counts = []
    for fold in range(5):
        split = make_split(manifest, "patient_random", fold=fold, test_fraction=0.01)
        rows = manifest.table.set_index("image").loc[list(split.sides["val"]), list(FINDINGS)]
        counts.append([len(rows), *rows.sum().tolist()])
    least, most = (pd.DataFrame(counts).agg(kind) for kind in ("min", "max"))
    assert (most - least).max() <= 3


def test_folds_heal_patients_that_train_and_val_share() -> None:
    lists = {"train": ("a.png", "c.png"), "val": ("b.png", "d.png"), "test": ("e.png",)}
    patients = {"a.png": "1", "b.png": "1", "c.png": "2", "d.png": "3", "e.png": "4"}
    manifest = make_manifest(patients, lists=lists, dialect="ai4m")
    assert overlaps(make_split(manifest, "ai4m").sides, patients)
    split = make_split(manifest, "ai4m", fold=0, folds=2)
    assert not overlaps(split.sides, patients)
    assert split.sides["test"] == ("e.png",)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"fold": 5}, "data.fold=5 must be a whole number from 0 to 4"),
        ({"fold": -1}, "data.fold=-1 must be a whole number from 0 to 4"),
        ({"fold": 0, "folds": 1}, "data.folds=1 must be a whole number of at least 2"),
    ],
)
def test_a_fold_that_there_is_not_is_refused(options: dict[str, int], said: str) -> None:
    assert said in refused(NIH, "official", **options)


def test_more_folds_than_patients_are_refused() -> None:
    few = make_manifest(
        {"a.png": "1", "b.png": "2", "c.png": "3"},
        lists={"train_val": ("a.png", "b.png"), "test": ("c.png",)},
    )
    assert "no image in val" in refused(few, "official", val_fraction=0.5, fold=4)


# -- lists and files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent, file", [("train_val", "train_val_list.txt"), ("test", "test_list.txt")]
)
def test_official_without_a_list_names_the_file(absent: str, file: str) -> None:
    given = {side: names for side, names in LISTS.items() if side != absent}
    message = refused(replace(NIH, given=given), "official")
    assert f"/data/{file}" in message
    assert "patient_random" in message


def test_fault_43_rows_on_no_list_and_listed_images_without_a_row_are_counted() -> None:
    given = {"train_val": (*LISTS["train_val"][:-3], "x.png"), "test": (*LISTS["test"], "y.png")}
    split = make_split(replace(NIH, given=given), "official")
    assert (split.unassigned, split.without_row) == (3, 2)
    used = {image for side in SIDES for image in split.sides[side]}
    assert used == set(IMAGES) - set(LISTS["train_val"][-3:])


def test_lists_that_share_an_image_are_refused() -> None:
    given = {"train_val": LISTS["train_val"], "test": (*LISTS["test"], LISTS["train_val"][0])}
    message = refused(replace(NIH, given=given), "official")
    assert f"1 image ({LISTS['train_val'][0]})" in message


def test_lists_of_other_images_leave_no_side_empty_unsaid() -> None:
    message = refused(replace(NIH, given=LISTS | {"test": ("z.png",)}), "official")
    assert "no image in test" in message


def test_ai4m_takes_the_csvs_as_given() -> None:
    given = {"train": ("b.png", "a.png"), "val": ("a.png",), "test": ("c.png",)}
    images = {"a.png": "1", "b.png": "2", "c.png": "3"}
    split = make_split(make_manifest(images, lists=given, dialect="ai4m"), "ai4m")
    assert split.sides == {"train": ("a.png", "b.png"), "val": ("a.png",), "test": ("c.png",)}


def test_ai4m_without_its_csvs_names_the_file() -> None:
    assert "/data/train-small.csv" in refused(NIH, "ai4m")
    partly = make_manifest({"a.png": "1"}, lists={"train": ("a.png",)}, dialect="ai4m")
    assert "/data/valid-small.csv" in refused(partly, "ai4m")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    message = refused(NIH, "oficial")
    assert (
        "data.split='oficial' is neither official, patient_random, ai4m, column nor a file"
        in message
    )


def test_a_written_split_is_read_back_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    split = make_split(NIH, "official", seed=4)
    split.write(path)
    again = make_split(NIH, str(path))
    assert again.sides == split.sides
    assert again.sha256 == split.sha256
    assert path.read_text().startswith("image,split\n")
    assert list(tmp_path.iterdir()) == [path]


def test_a_split_that_cannot_be_written_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "split.csv"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        make_split(NIH, "official").write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_fault_37_hostile_names_survive_a_split_file(tmp_path: Path) -> None:
    names = ["-x.png", "a\nb.png", 'q"uote.png', "com,ma.png", "=cmd.png", "x" * 251 + ".png"]
    manifest = make_manifest({name: str(number) for number, name in enumerate(names)})
    split = make_split(manifest, "patient_random", val_fraction=0.3, test_fraction=0.3)
    split.write(tmp_path / "split.csv")
    assert make_split(manifest, str(tmp_path / "split.csv")).sides == split.sides


@pytest.mark.parametrize(
    "rows, cause",
    [
        ("000_0.png,training", "line 5: side 'training' is none of"),
        ("000_0.png,valid", "line 5: side 'valid'"),
        ("000_0.png,", "line 5: side ''"),
        ("000_0.png,Train", "line 5: side 'Train'"),
        ("000_0.png", "line 5: 1 cells"),
        (
            "x.png,train\ny.png,val",
            "line 5: 2 images (x.png, y.png) of this file not in the manifest",
        ),
        ("001_0.png,test", "line 5: '001_0.png' is on side test here and on side train in line 2"),
    ],
)
def test_a_wrong_split_file_is_refused_with_its_line(tmp_path: Path, rows: str, cause: str) -> None:
    path = tmp_path / "split.csv"
    path.write_text(f"image,split\n001_0.png,train\n002_0.png,val\n003_0.png,test\n{rows}\n")
    message = refused(NIH, str(path))
    assert str(path) in message
    assert cause in message


def test_many_unknown_images_are_counted_and_five_named(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    rows = [f"x{number}.png,train" for number in range(9)]
    path.write_text("\n".join(["image,split", "001_0.png,val", *rows]))
    message = refused(NIH, str(path))
    assert "line 3: 9 images (x0.png, x1.png, x2.png, x3.png, x4.png, ...)" in message


def test_a_split_file_without_its_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("image,side\n001_0.png,train\n")
    message = refused(NIH, str(path))
    assert "no column 'split'" in message
    assert "found 'image,side'" in message.replace(", ", ",")


def test_a_split_file_without_a_side_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("image,split\n001_0.png,train\n002_0.png,test\n")
    assert "no image in val" in refused(NIH, str(path))


def test_rows_that_a_split_file_leaves_out_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("Split,Image\ntrain,001_0.png\nval,002_0.png\ntest,003_0.png\n\n")
    split = make_split(NIH, str(path))
    assert split.unassigned == len(IMAGES) - 3


def test_the_other_sink_keeps_a_side_that_is_unknown_and_the_rest_is_used(tmp_path: Path) -> None:
    faults = Faults()
    given = {"Training": ("a.png",), "holdout": ("b.png", "c.png"), "train": ("d.png",)}
    assert sides_of_column(given, faults) == {"train": ("a.png", "d.png")}
    assert faults.count("unknown_side") == 2
    path = tmp_path / "split.csv"
    path.write_text("image,split\na.png,train\nb.png,Val\n")
    assert read_split_file(path, faults)["image"].tolist() == ["a.png"]
    assert faults.count("unknown_side") == 3


def test_a_data_set_brings_the_split_of_its_files_or_none() -> None:
    assert own_split(NIH) == "official"
    assert own_split(replace(NIH, given={"test": LISTS["test"]})) is None
    three = dict.fromkeys(SIDES, ("a.png",))
    images = {"a.png": "1"}
    assert own_split(make_manifest(images, lists=three, dialect="ai4m")) == "ai4m"
    assert own_split(make_manifest(images, lists=three, dialect="csv")) == "column"
    assert own_split(make_manifest(images, dialect="csv")) is None


def test_a_data_set_that_only_tests_has_every_image_in_test() -> None:
    assert whole_split(NIH).sides == {"train": (), "val": (), "test": tuple(sorted(IMAGES))}


# -- the digest ------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_sorted_lines() -> None:
    split = Split("x", {"train": ("b", "a"), "val": ("c",), "test": ("d",)})
    text = "test\td\ntrain\ta\ntrain\tb\nval\tc\n"
    assert split.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert Split("y", {"test": ("d",), "val": ("c",), "train": ("a", "b")}).sha256 == split.sha256


def test_the_digest_changes_when_an_image_changes_sides() -> None:
    one = Split("x", {"train": ("a", "b"), "val": ("c",), "test": ("d",)})
    two = Split("x", {"train": ("a",), "val": ("b", "c"), "test": ("d",)})
    assert one.sha256 != two.sha256


# -- real data -------------------------------------------------------------------------------------


@real_data
def test_the_official_split_of_nih_keeps_its_counts() -> None:
    manifest = read_manifest(REAL / "nih_full_metadata")
    split = make_split(manifest, "official")
    assert len(split.sides["test"]) == 25_596
    assert len(split.sides["train"]) + len(split.sides["val"]) == 86_524
    assert overlaps(split.sides, patients_by_image(manifest)) == {}
    assert (split.unassigned, split.without_row) == (0, 0)
    patient_of = dict(zip(manifest.table["image"], manifest.table["patient_id"], strict=True))
    assert len({patient_of[image] for image in split.sides["val"]}) == round(28_008 / 10)


# -- whether a split can be used -------------------------------------------------------------------


def without_files(manifest: Manifest, *images: str) -> Manifest:
    table = manifest.table.copy()
    table.loc[table["image"].isin(images), "path"] = ""
    return replace(manifest, table=table)


def use(
    manifest: Manifest, split: Split, *, missing: str = "error", allow: bool = True
) -> UsableSplit:
    return usable_split(manifest, split, missing=missing, allow_patient_overlap=allow)


def unusable(
    manifest: Manifest, split: Split, *, missing: str = "error", allow: bool = True
) -> str:
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
    message = unusable(LEAKY, LEAKY_SPLIT, allow=False)
    assert "train and val share 2 patients (A, B) and 1 image (b1)" in message
    assert "train and test share 1 patient (B) and no image" in message
    assert "val and test share 1 patient (B) and no image" in message
    assert "data.allow_patient_overlap=true" in message


def test_at_most_five_shared_patients_are_named() -> None:
    manifest = make_manifest({f"{patient}{n}": patient for patient in "ABCDEFGH" for n in "12"})
    train, val = (tuple(f"{patient}{n}" for patient in "ABCDEFG") for n in "12")
    message = unusable(
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
    message = unusable(HOLES, LEAKY_SPLIT)
    assert "2 of 7 rows have no file under /data (train 1, val 0, test 1; c1, d1)" in message
    assert "data.missing=skip" in message
    elsewhere = replace(HOLES, images=Path("/pixels"))
    assert "no file under /pixels" in unusable(elsewhere, LEAKY_SPLIT)


def test_at_most_five_missing_files_are_named() -> None:
    message = unusable(without_files(LEAKY, *LEAKY.table["image"]), CLEAN_SPLIT)
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
    assert "choose error or skip" in unusable(LEAKY, CLEAN_SPLIT, missing=missing)


def test_skipping_a_whole_side_is_refused() -> None:
    message = unusable(without_files(LEAKY, "b2", "d1"), LEAKY_SPLIT, missing="skip")
    assert "no image in test: none of its rows has a file under /data" in message


# -- both ------------------------------------------------------------------------------------------


def test_a_leak_and_missing_files_are_told_in_one_line() -> None:
    message = unusable(HOLES, LEAKY_SPLIT, allow=False)
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
    message = unusable(HOLES, LEAKY_SPLIT, missing=missing, allow=allow)
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
    message = unusable(manifest, split, allow=False)
    assert "train and val share 197 patients" in message
    assert "198 images" in message
    assert f"{sum(gone.values()):,} of 1,620 rows have no file" in message
    assert f"(train {gone['train']}, val {gone['val']}, test {gone['test']};" in message
    assert use(manifest, split, missing="skip").skipped == gone


# -- the table at the start of a run ---------------------------------------------------------------


# image -> patient, findings
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a.png": ("1", ("Mass",)),
    "b.png": ("1", ("Mass", "Edema")),
    "c.png": ("2", ()),
    "d.png": ("3", ("Hernia",)),
    "e.png": ("3", ()),
}
SPLIT = Split("x", {"train": ("a.png", "b.png", "c.png"), "val": ("d.png",), "test": ("e.png",)})


MANIFEST = make_manifest(
    {name: patient for name, (patient, _) in ROWS.items()},
    labels={name: findings for name, (_, findings) in ROWS.items()},
)


def rendered(table: pd.DataFrame, *, width: int = 80, title: str = "a title") -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_split_table(table, title=title))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().splitlines()


def test_patients_images_and_positives_are_counted_by_side() -> None:
    table = split_table(MANIFEST, SPLIT)
    assert list(table.columns) == ["train", "val", "test", "all"]
    assert list(table.index) == ["Patients", "Images", "No Finding", *FINDINGS]
    assert table.loc["Patients"].tolist() == [2, 1, 1, 3]
    assert table.loc["Images"].tolist() == [3, 1, 1, 5]
    assert table.loc["No Finding"].tolist() == [1, 0, 1, 2]
    assert table.loc["Mass"].tolist() == [2, 0, 0, 2]
    assert table.loc["Edema"].tolist() == [1, 0, 0, 1]
    assert table.loc["Hernia"].tolist() == [0, 1, 0, 1]
    assert table.loc["Fibrosis"].tolist() == [0, 0, 0, 0]


def test_an_image_on_two_sides_counts_once_in_all() -> None:
    shared = Split("x", SPLIT.sides | {"test": ("a.png", "e.png")})
    table = split_table(MANIFEST, shared)
    assert table.loc["Images"].tolist() == [3, 1, 2, 5]
    assert table.loc["Mass"].tolist() == [2, 0, 1, 2]


def test_counts_do_not_overflow_the_labels_8_bits() -> None:
    table = pd.concat([MANIFEST.table] * 200, ignore_index=True)
    table["image"] = [f"{number}.png" for number in range(len(table))]
    manifest = Manifest(table, "nih", Path("/data"), {}, {}, 0)
    split = Split("x", {"train": tuple(table["image"]), "val": ("0.png",), "test": ("1.png",)})
    assert split_table(manifest, split).at["Mass", "train"] == 400


def test_the_rendered_table_shows_counts_and_shares() -> None:
    lines = rendered(split_table(MANIFEST, SPLIT))
    assert lines[0].strip() == "a title"
    mass = next(line for line in lines if line.startswith("Mass"))
    assert mass.split() == ["Mass", "2", "66.7%", "0", "0.0%", "0", "0.0%", "2", "40.0%"]
    images = next(line for line in lines if line.startswith("Images"))
    assert images.split() == ["Images", "3", "1", "1", "5"]
    assert any(line.startswith("Pleural Thickening") for line in lines)


def test_a_side_without_images_has_no_share() -> None:
    empty = Split("x", SPLIT.sides | {"test": ()})
    lines = rendered(split_table(MANIFEST, empty))
    assert next(line for line in lines if line.startswith("Mass")).split()[5:7] == ["0", "-"]


@real_data
@pytest.mark.parametrize("folder", ["nih256", "nih_full_metadata"])
def test_the_table_of_nih_fits_80_columns_uncut(folder: str) -> None:
    manifest = read_manifest(REAL / folder)
    table = split_table(manifest, make_split(manifest, "official"))
    lines = rendered(table)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert table.at["Images", "all"] == len(manifest.table)
    assert table.at["Infiltration", "all"] == int(manifest.table["Infiltration"].sum())
