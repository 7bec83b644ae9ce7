"""Splits go by patient, are named by a digest, and can be written and read."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REAL, real_data
from tables import make_manifest

from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.splits import SIDES, Split, make_split, overlaps, patients_by_image
from xray_lightning.errors import UserError

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


@pytest.mark.parametrize("name", ["official", "patient_random"])
@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_two_sides_and_no_image_is_lost(name: str, seed: int) -> None:
    split = make_split(NIH, name, seed=seed)
    assert tuple(split.sides) == SIDES
    assert overlaps(split.sides, patients_by_image(NIH)) == {}
    assert sorted(image for side in SIDES for image in split.sides[side]) == sorted(IMAGES)
    assert split.unassigned == split.without_row == 0


def test_official_keeps_the_test_list_and_carves_val_from_train_val() -> None:
    split = make_split(NIH, "official", val_fraction=0.2)
    assert set(split.sides["test"]) == set(LISTS["test"])
    assert len(patients_of(split, "val")) == 8  # a fifth of 40 patients
    assert len(patients_of(split, "train")) == 32


def test_patient_random_takes_its_fractions_of_the_patients() -> None:
    split = make_split(NIH, "patient_random", val_fraction=0.1, test_fraction=0.3)
    assert [len(patients_of(split, side)) for side in SIDES] == [30, 5, 15]


@pytest.mark.parametrize("name", ["official", "patient_random"])
def test_the_order_of_rows_and_lists_is_no_matter(name: str) -> None:
    draw = random.Random(3)
    items, lists = list(IMAGES.items()), {side: list(names) for side, names in LISTS.items()}
    draw.shuffle(items)
    for names in lists.values():
        draw.shuffle(names)
    shuffled = make_manifest(dict(items), lists={side: tuple(n) for side, n in lists.items()})
    assert make_split(shuffled, name, seed=1) == make_split(NIH, name, seed=1)


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
