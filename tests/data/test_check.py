"""Every fault of a data set is found, with all the others, and told with what to do."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL, Xray, real_data
from PIL import Image
from tables import BOXES_HEADER, NIH_HEADER, draw_noise, write, write_ai4m

from xray_lightning.data.check import Health, check_data
from xray_lightning.data.faults import KINDS, PROBLEMS, Remark
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.errors import UserError


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """A sound set of six images of three patients, two of them for training."""
    root = tmp_path / "set"
    names = [f"{patient:08d}_{number:03d}.png" for patient in (1, 2, 3) for number in (0, 1)]
    for seed, name in enumerate(names):
        draw_noise(root / "images" / name, seed=seed)
    rewrite(root, *(f"{name},Mass,{name[11]},{name[7]},50,M,PA" for name in names))
    write(root / "train_val_list.txt", *names[:4])
    write(root / "test_list.txt", *names[4:])
    return root


def rewrite(root: Path, *rows: str, header: str = NIH_HEADER) -> None:
    write(root / "Data_Entry_2017.csv", header, *rows)


def rows_of(root: Path) -> list[str]:
    return (root / "Data_Entry_2017.csv").read_text().splitlines()[1:]


def add(root: Path, *rows: str) -> None:
    rewrite(root, *rows_of(root), *rows)


def kinds(health: Health) -> dict[str, int]:
    """What was remarked on, and how often; not that the images are no 1024 x 1024."""
    counted: Counter[str] = Counter()
    for one in (*health.problems, *health.notes):
        counted[one.kind] += one.count
    del counted["not_original_size"]
    return dict(counted)


def remark(health: Health, kind: str) -> Remark:
    return next(one for one in (*health.problems, *health.notes) if one.kind == kind)


def names(health: Health, kind: str) -> tuple[str, ...]:
    return remark(health, kind).names


def detail(health: Health, kind: str) -> str:
    return " ".join(remark(health, kind).details.values())


# -- tables ----------------------------------------------------------------------------------------


def test_a_sound_set_has_no_remark(nih: Path) -> None:
    health = check_data(nih)
    assert kinds(health) == {}
    six = dict.fromkeys(("rows", "images", "image_files", "found", "decoded"), 6)
    assert health.counts == six | {"patients": 3, "boxes": 0}
    assert health.modes == {"PNG L": 6}
    assert health.sizes == {"32x32": 6}


@pytest.mark.parametrize(
    ("row", "kind"),
    [("x.png,Mass,0", "short_row"), ("x.png,Mass,0,1,old,M,PA", "age_unreadable")],
)
def test_a_row_that_cannot_be_read_is_a_problem_and_leaves_the_others(
    nih: Path, row: str, kind: str
) -> None:
    add(nih, row)
    health = check_data(nih)
    assert kinds(health) == {kind: 1}
    assert [one.kind for one in health.problems] == [kind]
    assert (health.counts["rows"], health.counts["images"]) == (7, 6)
    said = (*names(health, kind), detail(health, kind))
    assert any("line 8" in text for text in said)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("414,M,PA", "age_over_100"),
        ("50,X,PA", "sex_unknown"),
        ("50,M,LL", "view_unknown"),
        ("50,F,PA", "patient_of_two_sexes"),
    ],
)
def test_what_reading_copes_with_is_a_note_without_the_value(
    nih: Path, end: str, kind: str
) -> None:
    rows = rows_of(nih)
    rewrite(nih, *rows[:-1], f"{rows[-1].rsplit(',', 3)[0]},{end}")
    health = check_data(nih)
    assert list(kinds(health)) == [kind]
    assert health.problems == ()
    assert "00000003_001.png" in names(health, kind)
    assert "414" not in str(health.as_json()["notes"]).replace("1024", "")


def test_rows_of_one_image_are_told_apart_by_whether_they_agree(nih: Path) -> None:
    rows = rows_of(nih)
    add(nih, rows[0], rows[1].replace("Mass", "Edema"), rows[2].replace(",50,", ",,"))
    health = check_data(nih)
    assert kinds(health) == {"conflicting_row": 2, "duplicate_row": 1}
    assert names(health, "duplicate_row") == ("Data_Entry_2017.csv, line 8",)
    assert "Mass, Edema not as in Data_Entry_2017.csv, line 3" in detail(health, "conflicting_row")
    assert "'00000002_000.png': age not as in" in detail(health, "conflicting_row")


def test_a_patient_other_than_in_the_files_name_is_found(nih: Path) -> None:
    rows = rows_of(nih)
    rewrite(nih, rows[0].replace(",1,50", ",2,50"), *rows[1:])
    health = check_data(nih)
    assert kinds(health) == {"patient_not_as_named": 1}
    assert names(health, "patient_not_as_named") == ("00000001_000.png",)


def test_a_table_that_is_none_is_told_with_what_else_is_there(nih: Path) -> None:
    (nih / "Data_Entry_2017.csv").write_text("Image Index,Patient ID\na.png,1\n")
    health = check_data(nih)
    assert kinds(health) == {"table_unreadable": 1, "unlisted_file": 6}
    assert "no column 'Finding Labels'" in detail(health, "table_unreadable")


def test_missing_columns_unknown_patients_and_a_second_table_are_told(nih: Path) -> None:
    (nih / "Data_Entry_2018.csv").write_text("never looked at")
    rows = [",".join([*row.split(",")[:2], "unknown"]) for row in rows_of(nih)]
    rewrite(nih, *rows, header="Image Index,Finding Labels,Patient ID")
    health = check_data(nih)
    assert kinds(health) == {"several_tables": 1, "column_missing": 4, "patient_unknown": 6}
    assert health.counts["patients"] is None


@pytest.mark.parametrize(
    ("file", "age", "release"),
    [
        ("Data_Entry_2017_v2020.csv", "50", "release v2020"),
        ("Data_Entry_2017.csv", "058Y", "first release (2017)"),
        ("Data_Entry_2017.csv", "414", "first release (2017)"),
        ("Data_Entry_2017.csv", "50", "release unknown"),
    ],
)
def test_the_release_is_told_by_name_and_ages(nih: Path, file: str, age: str, release: str) -> None:
    rewrite(nih, *(row.replace(",50,", f",{age},") for row in rows_of(nih)))
    (nih / "Data_Entry_2017.csv").rename(nih / file)
    assert check_data(nih, decode=False).release == f"NIH ChestX-ray14, {release}"


# -- files -----------------------------------------------------------------------------------------


def test_files_and_rows_that_lack_each_other_are_told(nih: Path) -> None:
    (nih / "images" / "00000001_000.png").rename(nih / "images" / "other.png")
    health = check_data(nih)
    assert kinds(health) == {"missing_file": 1, "unlisted_file": 1}
    assert names(health, "missing_file") == ("00000001_000.png",)
    assert names(health, "unlisted_file") == ("other.png",)


def test_names_that_no_file_stands_behind_neither_hang_nor_loop(nih: Path) -> None:
    images = nih / "images"
    (images / "00000001_000.png").unlink()
    os.mkfifo(images / "00000001_000.png")
    (images / "dangling.png").symlink_to("nowhere.png")
    (images / "itself.png").symlink_to("itself.png")
    (images / "up").symlink_to(nih)
    (images / "linked.png").symlink_to("00000001_001.png")
    health = check_data(nih)
    assert kinds(health) == {
        "missing_file": 1,
        "unlisted_file": 1,
        "odd_entry": 3,
        "folder_again": 1,
    }
    assert detail(health, "missing_file") == "a FIFO is there"
    assert "a link to nothing" in detail(health, "odd_entry")


def test_two_files_of_one_name_are_told_unless_they_are_one(nih: Path) -> None:
    draw_noise(nih / "more" / "00000001_000.png", seed=50)
    (nih / "more" / "00000001_001.png").symlink_to("../images/00000001_001.png")
    health = check_data(nih)
    assert kinds(health) == {"two_files": 1}
    assert names(health, "two_files") == ("00000001_000.png",)


def test_a_file_that_a_custom_csv_names_by_its_path_has_no_rival(tmp_path: Path) -> None:
    write(tmp_path / "films.csv", "image,patient,Mass", "a.png,1,0", "b.png,2,1")
    for seed, name in enumerate(("a.png", "x/a.png", "b.png")):
        draw_noise(tmp_path / name, seed=seed)
    assert "two_files" not in kinds(check_data(tmp_path))
    (tmp_path / "a.png").rename(tmp_path / "y.png")
    draw_noise(tmp_path / "y" / "a.png", seed=5)
    assert names(check_data(tmp_path), "two_files") == ("a.png",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_not_be_looked_into_is_told(nih: Path) -> None:
    (nih / "closed").mkdir(mode=0)
    assert kinds(check_data(nih)) == {"folder_unreadable": 1}


# -- images ----------------------------------------------------------------------------------------


def test_damage_to_images_is_told_by_kind(nih: Path) -> None:
    images = sorted((nih / "images").iterdir())
    data = images[0].read_bytes()
    images[0].write_bytes(data[: len(data) // 2])
    images[1].write_bytes(data[:200] + bytes([data[200] ^ 255]) + data[201:])
    images[2].write_bytes(b"")
    images[3].write_text("<!doctype html>")
    for blank in images[4:]:  # all alike, and yet no duplicates
        Image.new("L", (32, 32), 7).save(blank)
    health = check_data(nih)
    assert kinds(health) == {"truncated_image": 1, "unreadable_image": 3, "blank_image": 2}
    assert names(health, "truncated_image") == (images[0].name,)
    assert "0 bytes" in detail(health, "unreadable_image")
    assert str(nih) not in detail(health, "unreadable_image")
    assert health.counts["decoded"] == 2


def test_a_jpeg_that_is_cut_off_is_told_as_such(nih: Path) -> None:
    first = nih / "images" / "00000001_000.png"
    Image.open(first).save(first, format="JPEG")
    assert kinds(check_data(nih)) == {}
    first.write_bytes(first.read_bytes()[:-200])
    assert kinds(check_data(nih)) == {"truncated_image": 1}


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "1", "LA", "I;16"])
def test_other_modes_are_named_and_counted(nih: Path, mode: str) -> None:
    draw_noise(nih / "images" / "00000001_000.png", seed=60, mode=mode)
    health = check_data(nih)
    assert kinds(health) == {"odd_mode": 1}
    assert detail(health, "odd_mode") == f"PNG {mode}"
    assert health.modes == {"PNG L": 5, f"PNG {mode}": 1}


def test_a_size_unlike_the_others_is_a_problem_of_a_set_that_has_one(nih: Path) -> None:
    draw_noise(nih / "images" / "00000001_000.png", seed=61, size=40)
    health = check_data(nih)
    assert kinds(health) == {"other_size": 1}
    assert detail(health, "other_size") == "40 x 40"
    assert "not_original_size" in {one.kind for one in health.notes}


def test_the_same_picture_is_a_note_within_a_patient_and_a_problem_across(nih: Path) -> None:
    images = nih / "images"
    shutil.copy(images / "00000001_000.png", images / "00000001_001.png")
    health = check_data(nih)
    assert kinds(health) == {"duplicate_image": 1}
    assert detail(health, "duplicate_image") == "same bytes as 00000001_000.png"
    # The same pixels in other bytes, of another patient on another side.
    Image.open(images / "00000001_000.png").save(images / "00000003_000.png", compress_level=0)
    health = check_data(nih)
    assert kinds(health) == {"duplicate_conflict": 1, "duplicate_image": 1}
    assert detail(health, "duplicate_conflict") == (
        "same pixels as 00000001_000.png, but another patient and side of the split official"
    )


def test_the_content_of_images_is_left_alone_where_it_is_not_asked_for(nih: Path) -> None:
    (nih / "images" / "00000001_000.png").write_bytes(b"")
    health = check_data(nih, decode=False)
    assert kinds(health) == {}
    assert health.counts["decoded"] is None


# -- splits ----------------------------------------------------------------------------------------


def test_official_lists_are_compared_with_each_other_and_the_table(nih: Path) -> None:
    (nih / "train_val_list.txt").write_text("00000001_000.png\n00000002_000.png\nnobody.png\n")
    (nih / "test_list.txt").write_text("00000001_000.png\n00000002_001.png\n00000003_000.png\n")
    health = check_data(nih)
    assert kinds(health) == {
        "image_on_two_sides": 1,
        "patient_on_two_sides": 2,
        "listed_without_row": 1,
        "on_no_side": 2,
    }
    assert health.splits["official"].overlaps == {"train_val-test": {"patients": 2, "images": 1}}
    # Of patients, the images are named.
    assert names(health, "patient_on_two_sides") == (
        *("00000001_000.png", "00000002_000.png", "00000002_001.png"),
    )


def test_a_list_that_is_missing_or_empty_is_told(nih: Path) -> None:
    (nih / "train_val_list.txt").write_text("")
    assert kinds(check_data(nih)) == {"side_empty": 1, "on_no_side": 4}
    (nih / "train_val_list.txt").unlink()
    assert kinds(check_data(nih)) == {"list_missing": 1, "on_no_side": 4}


def test_a_split_of_ones_own_is_compared_too(nih: Path) -> None:
    rows = ["00000001_000.png,train", "00000001_001.png,test", "00000002_000.png,val"]
    rows += ["00000002_000.png,train", "00000003_000.png,dev", "nobody.png,test", "short"]
    write(nih / "split.csv", "image,split", *rows)
    health = check_data(nih, split="split.csv")
    assert kinds(health) == {
        "short_row": 1,
        "image_on_two_sides": 1,
        "patient_on_two_sides": 2,
        "unknown_side": 1,
        "split_without_row": 1,
        "on_no_side": 3,
    }
    assert list(health.splits) == ["split.csv"]
    assert list(check_data(nih).splits) == ["official", "split.csv"]
    assert list(check_data(nih, split="official").splits) == ["official"]
    with pytest.raises(UserError, match="--split ai4m is neither a split of"):
        check_data(nih, split="ai4m")


# -- boxes -----------------------------------------------------------------------------------------


def test_boxes_are_compared_with_their_grid_and_their_rows(nih: Path) -> None:
    rows = [
        *("00000001_000.png,Mass,0,0,1024,1024", "00000001_001.png,Mass,1000.5,0,24,10"),
        *("00000001_001.png,Mass,-1,0,24,10", "00000001_001.png,Mass,5,5,0,10"),
        *("00000002_000.png,Infiltrate,5,5,10,10", "00000002_000.png,Spot,5,5,10,10"),
        *("nobody.png,Mass,5,5,10,10", "00000002_000.png,Mass,5,five,10,10"),
        *("00000002_000.png,Mass,5,nan,10,10", "00000002_001.png,Mass"),
        *["00000003_000.png,Mass,1,1,2,2"] * 2,
    ]
    write(nih / "BBox_List_2017.csv", BOXES_HEADER, *rows)
    health = check_data(nih)
    assert kinds(health) == {
        "short_row": 1,
        "box_unreadable": 2,
        "box_outside": 3,
        "box_of_unknown_finding": 1,
        "box_without_label": 1,
        "box_without_row": 1,
        "box_repeated": 1,
    }
    assert health.counts["boxes"] == 12


# -- other kinds of sets ---------------------------------------------------------------------------


def test_the_csvs_of_ai_for_medicine_are_compared_with_each_other(tmp_path: Path) -> None:
    train = [("a.png", "1", ""), ("b.png", "2", "Atelectasis"), ("c.png", "3", "Atelectasis=2")]
    write_ai4m(tmp_path / "train-small.csv", *train)
    write_ai4m(tmp_path / "valid-small.csv", ("a.png", "1", ""), ("d.png", "2", ""))
    write_ai4m(tmp_path / "test.csv", ("b.png", "2", ""), ("e.png", "5", ""))
    health = check_data(tmp_path)
    assert kinds(health) == {
        "label_not_0_or_1": 1,
        "conflicting_row": 1,
        "missing_file": 4,
        "image_on_two_sides": 2,
        "patient_on_two_sides": 4,
    }
    assert health.splits["ai4m"].overlaps == {
        "train-val": {"patients": 2, "images": 1},
        "train-test": {"patients": 1, "images": 1},
        "val-test": {"patients": 1, "images": 0},
    }
    said = "'b.png': Atelectasis not as in train-small.csv, line 3"
    assert detail(health, "conflicting_row") == said
    assert health.release == "AI for Medicine, of unknown release"
    (tmp_path / "test.csv").unlink()
    assert kinds(check_data(tmp_path))["list_missing"] == 1


def test_phantoms_are_sound(tmp_path: Path) -> None:
    ensure_phantoms(tmp_path / "ph", PhantomSpec(images=30, size=32, seed=1))
    health = check_data(tmp_path / "ph")
    assert health.problems == ()
    assert kinds(health) == {"age_over_100": 1, "odd_mode": 1}
    assert health.release == "phantoms, 30 of 32 x 32"


def test_chestmnist_is_told_by_its_table_and_its_split_is_compared(nih: Path) -> None:
    rows = [row.split(",") for row in rows_of(nih)]
    (nih / "Data_Entry_2017.csv").unlink()
    lines = [f"{row[0]},{row[1]},unknown" for row in rows]
    header = "Image Index,Finding Labels,Patient ID"
    write(nih / "Data_Entry_chestmnist.csv", header, *lines)
    for side in ("train_val", "test"):
        (nih / f"{side}_list.txt").unlink()
    places = ["train", "train", "train", "val", "test", "test"]
    split = [f"{row[0]},{side}" for row, side in zip(rows, places, strict=True)]
    write(nih / "split.csv", "image,split", *split)
    health = check_data(nih)
    assert health.release == "ChestMNIST (MedMNIST v2)"
    assert health.problems == ()
    sides = health.splits["split.csv"].sides
    assert [counts["patients"] for counts in sides.values()] == [3, 1, 2]


def test_a_table_of_ones_own_is_looked_at_with_its_paths_and_split(tmp_path: Path) -> None:
    for seed, name in enumerate(("p1/a.png", "p2/a.png", "p3/a.png", "b.png")):
        draw_noise(tmp_path / name, seed=seed, size=30 + seed)
    rows = ["p1/a.png,1,1,train", "p2/a.png,2,0,valid", "p3/a.png,1,-1,test", "b.png,3,,dev"]
    text = "\n".join(["image,patient,Mass,split", *rows])
    (tmp_path / "table.csv").write_text(text)
    health = check_data(tmp_path)
    assert health.dialect == "csv"
    assert kinds(health) == {
        "patient_on_two_sides": 1,
        "unknown_side": 1,
        "on_no_side": 1,
        "changed_in_reading": 2,
        "sizes_differ": 3,
    }
    assert names(health, "patient_on_two_sides") == ("p1/a.png", "p3/a.png")
    (tmp_path / "p1" / "c.png").symlink_to("../b.png")
    (tmp_path / "table.csv").write_text("image,patient,Mass\np1/c.png,3,1\nc.png,3,0")
    assert kinds(check_data(tmp_path))["file_of_two_rows"] == 2
    (tmp_path / "table.csv").write_text(text.replace("p2/a.png,2", "p2/a.png,"))
    assert "table_unreadable" in kinds(check_data(tmp_path))


def test_a_set_that_is_broken_everywhere_is_told_of_in_whole(nih: Path) -> None:
    images, rows = nih / "images", rows_of(nih)
    data = (images / "00000001_000.png").read_bytes()
    (images / "00000001_000.png").write_bytes(data[:-40])
    (images / "00000001_001.png").write_bytes(b"GIF89a")
    draw_noise(images / "00000002_000.png", seed=70, mode="RGBA", size=40)
    shutil.copy(images / "00000003_000.png", images / "00000002_001.png")
    (images / "00000003_001.png").unlink()
    (images / "00000003_001.png").symlink_to("gone.png")
    (images / "loop").symlink_to(images)
    draw_noise(images / "unlisted.png", seed=71)
    rewrite(nih, *rows, rows[0], rows[1].replace("Mass", "Edema"), "x.png,Spot,0,1,1,M,PA", "cut")
    (nih / "test_list.txt").write_text("00000002_001.png\n00000003_000.png\n00000002_000.png\n")
    write(nih / "BBox_List_2017.csv", BOXES_HEADER, "00000003_000.png,Hernia,1000,0,25,5")
    expected = {
        *("short_row", "unknown_label", "conflicting_row", "duplicate_row", "missing_file"),
        *("unlisted_file", "odd_entry", "folder_again", "truncated_image", "unreadable_image"),
        *("other_size", "odd_mode", "duplicate_conflict", "image_on_two_sides"),
        *("patient_on_two_sides", "on_no_side", "box_outside", "box_without_label"),
    }
    health = check_data(nih)
    assert kinds(health).keys() == expected
    problems = [one.kind for one in health.problems]
    assert problems == [kind for kind in PROBLEMS if kind in expected]


def test_expert_labels_beside_the_data_are_told_of(
    phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data, ignore=shutil.ignore_patterns("*.png"))
    assert "expert_labels" not in kinds(check_data(data, decode=False))
    rows = pd.read_csv(data / "Data_Entry_2017_v2020.csv")
    has = rows["Finding Labels"].str.contains("Pneumothorax")
    labels = pd.DataFrame({"Image Index": rows["Image Index"], "Pneumothorax": has})
    labels["Airspace opacity"], labels["Nodule or mass"] = "NO", "NO"
    (tmp_path / "beside").mkdir()
    labels[:30].to_csv(tmp_path / "beside" / "theirs.csv", index=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "damaged.csv.gz").write_bytes(b"no gzip")
    _, out, _ = xray("data", "check", "data", "--no-decode", "--json", "found.json")
    notes = json.loads((tmp_path / "found.json").read_text())["notes"]
    (note,) = [one for one in notes if one["kind"] == "expert_labels"]
    air = int(has[:30].sum())
    assert note["count"] == 30
    assert note["text"] == "images with labels of experts in beside/theirs.csv"
    assert note["details"]["Pneumothorax"].startswith(f"{air} of the experts' {air} are labelled")
    assert "--map nih_expert_labels" in out


def test_every_kind_of_remark_is_made_by_some_test() -> None:
    files = (Path(__file__), Path(__file__).with_name("test_sources.py"))
    text = "".join(file.read_text() for file in files)
    untold = {kind for kind in KINDS if f'"{kind}"' not in text}
    assert untold == set()


# -- real data -------------------------------------------------------------------------------------


@real_data
@pytest.mark.parametrize(
    ("release", "patients", "shared", "missing"),
    [("ai4m", 197, 198, 1422), ("ai4m_875", 11, 23, 1381)],
)
def test_the_leaks_of_ai_for_medicine_are_found(
    release: str, patients: int, shared: int, missing: int
) -> None:
    health = check_data(REAL / release)
    found = kinds(health)
    found.pop("expert_labels", None)  # where the folder beside it has some
    assert found == {
        "missing_file": missing,
        "image_on_two_sides": shared,
        "patient_on_two_sides": patients,
    }
    assert list(health.splits["ai4m"].overlaps) == ["train-val"]


@real_data
def test_nihs_own_files_are_sound() -> None:
    health = check_data(REAL / "nih1024")
    assert kinds(health) | {"expert_labels": 12} == {"odd_mode": 9, "expert_labels": 12}
    assert health.modes == {"PNG L": 151, "PNG RGBA": 9}
    health = check_data(REAL / "nih_full_metadata", decode=False)
    assert kinds(health)["missing_file"] == 112_120
    assert kinds(health).keys() <= {"missing_file", "expert_labels"}
    assert (health.counts["patients"], health.counts["boxes"]) == (30_805, 984)
    sides = health.splits["official"].sides
    assert [counts["patients"] for counts in sides.values()] == [28_008, 2_797]
