"""Every CSV dialect gives the same table, and every fault names its file and line."""

import os
import random
import re
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL, real_data
from hypothesis import given
from hypothesis import strategies as st
from tables import AI4M_HEADER, NIH_HEADER, touch, write, write_ai4m

from xray_lightning.data.manifest import COLUMNS, holds_known_table, read_manifest
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS, check_findings

HEADER = f"{NIH_HEADER},OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,81,F,AP,2500,2048,0.171,0.171",
)
POSITIVES = {"Cardiomegaly": 2, "Emphysema": 1}  # as findings are found in FINDINGS' order


def write_nih(root: Path, *, header: str = HEADER, rows: tuple[str, ...] = ROWS) -> Path:
    return write(root / "Data_Entry_2017_v2020.csv", header, *rows)


def fault(root: Path, **kwargs: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(root, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- labels ----------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.lists(st.booleans(), min_size=14, max_size=14), min_size=1, max_size=5),
    own=st.lists(st.from_regex(r"[A-Za-z][\w ./()+-]{0,20}[\w)+]", fullmatch=True), max_size=14),
    draw=st.randoms(use_true_random=False),
)
def test_labels_are_read_as_they_were_written_whatever_the_table(
    labels: list[list[bool]],
    own: list[str],
    draw: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    findings = named(own)

    def joined(row: list[bool], names: tuple[str, ...]) -> str:
        there = [name for name, present in zip(names, row, strict=False) if present]
        draw.shuffle(there)
        return draw.choice(["|", " | "]).join(there) or "No Finding"

    root = tmp_path_factory.mktemp("labels")
    folders = nih, ai4m, marked, spelled = [root / name for name in ("nih", "ai4m", "csv", "csv2")]
    for folder in folders:
        folder.mkdir()
    rows = [(f"{place}.png", row) for place, row in enumerate(labels)]
    write_nih(nih, rows=tuple(f"{n},{joined(row, FINDINGS)},0,1,5,M,PA,,,," for n, row in rows))
    cells = [f"{name},1,{','.join(str(int(mark)) for mark in row)}" for name, row in rows]
    write(ai4m / "train-small.csv", AI4M_HEADER, *cells)
    one_hot = [
        f"{n},1,{','.join(str(int(mark)) for mark in row[: len(findings)])}" for n, row in rows
    ]
    write(marked / "a.csv", f"image,patient,{','.join(findings)}", *one_hot)
    write(
        spelled / "a.csv",
        "image,patient,labels",
        *(f"{n},1,{joined(row, findings)}" for n, row in rows),
    )
    for folder in folders:
        is_own = folder in (marked, spelled)
        names = findings if is_own else FINDINGS
        manifest = read_manifest(folder, findings=names, own=OwnTable() if is_own else None)
        assert manifest.table["image"].tolist() == [name for name, _ in rows]
        expected = [row[: len(names)] for row in labels]
        assert manifest.table[list(names)].to_numpy().astype(bool).tolist() == expected


def named(names: list[str]) -> tuple[str, ...]:
    """Those of the names that may be findings together, or NIH's first two."""
    taken: tuple[str, ...] = ()
    for name in names:
        with suppress(UserError):
            taken = check_findings([*taken, name], what="names")
    return taken or FINDINGS[:2]


# -- dialects --------------------------------------------------------------------------------------


def test_the_v2020_table_is_read_into_the_documented_columns(tmp_path: Path) -> None:
    write_nih(tmp_path)
    manifest = read_manifest(tmp_path)
    table = manifest.table
    assert manifest.dialect == "nih"
    assert manifest.dropped == {}
    assert tuple(table.columns) == COLUMNS
    assert table["image"].is_unique
    assert list(table["patient_id"]) == ["1", "1", "2"]
    assert list(table["follow_up"]) == [0, 1, 0]
    assert str(table["follow_up"].dtype) == "Int64"
    assert list(table["age"]) == [57.0, 58.0, 81.0]
    assert list(table["sex"]) == ["M", "M", "F"]
    assert list(table["view"]) == ["PA", "PA", "AP"]
    assert list(table["path"]) == ["", "", ""]
    assert (table[list(FINDINGS)].dtypes == "uint8").all()
    assert {k: int(v) for k, v in table[list(FINDINGS)].sum().items() if v} == POSITIVES


DIALECTS = {
    "2017 with a trailing comma": (HEADER + ",", tuple(row + "," for row in ROWS)),
    "trailing comma in the rows alone": (HEADER, tuple(row + "," for row in ROWS)),
    "quoted two-part header": (
        HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"'),
        ROWS,
    ),
    "Patient Sex": (HEADER.replace("Patient Gender", "Patient Sex"), ROWS),
    "headers without spaces": (HEADER.replace(" #", "").replace(" ", ""), ROWS),
    "DICOM ages": (
        HEADER,
        tuple(re.sub(r",(57|58|81),", lambda m: f",0{m[1]}Y,", row, count=1) for row in ROWS),
    ),
    "spaces round cells": (HEADER.replace(",", ", "), tuple(r.replace(",", " , ") for r in ROWS)),
    "quoted cells": (HEADER, tuple('"' + row.replace(",", '","') + '"' for row in ROWS)),
    "labels in another order": (
        HEADER,
        tuple(row.replace("Cardiomegaly|Emphysema", "Emphysema|Cardiomegaly") for row in ROWS),
    ),
    "padded patient ids": (
        HEADER,
        tuple(re.sub(r",(\d),(?=\d\d,)", r",0000000\1,", row) for row in ROWS),
    ),
    "columns in another order": (
        "View Position,Patient ID,Image Index,Patient Age,Patient Gender,Finding Labels,Follow-up",
        tuple(",".join(row.split(",")[i] for i in (6, 3, 0, 4, 5, 1, 2)) for row in ROWS),
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_nih_dialect_gives_the_same_table(tmp_path: Path, dialect: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    write_nih(plain)
    header, rows = DIALECTS[dialect]
    write_nih(other, header=header, rows=rows)
    expected, found = read_manifest(plain), read_manifest(other)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.dropped == {}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_fault_38_byte_order_mark_and_line_ends_change_nothing(
    tmp_path: Path, start: bytes, end: bytes
) -> None:
    path = write_nih(tmp_path)
    expected = read_manifest(tmp_path).table
    path.write_bytes(start + path.read_bytes().replace(b"\n", end))
    (tmp_path / "test_list.txt").write_bytes(start + end.join([b"a.png", b"b.png", b""]))
    manifest = read_manifest(tmp_path)
    pd.testing.assert_frame_equal(manifest.table, expected)
    assert manifest.given == {"test": ("a.png", "b.png")}


def test_the_2017_file_name_is_found_too(tmp_path: Path) -> None:
    assert not holds_known_table(tmp_path)
    write_nih(tmp_path).rename(tmp_path / "Data_Entry_2017.csv")
    assert holds_known_table(tmp_path)
    assert len(read_manifest(tmp_path).table) == 3


def test_a_table_without_age_sex_and_view_is_read_and_said(tmp_path: Path) -> None:
    write_nih(
        tmp_path,
        header="ImageIndex,FindingLabels,Follow-up,PatientID",
        rows=("a.png,Mass,0,1", "b.png,No Finding,1,1"),
    )
    manifest = read_manifest(tmp_path)
    assert manifest.table["age"].isna().all()
    assert list(manifest.table["sex"]) == ["", ""]
    assert manifest.dropped == {
        "no column Patient Age (nulled)": 2,
        "no column Patient Gender (nulled)": 2,
        "no column View Position (nulled)": 2,
    }


@pytest.mark.parametrize(
    "cell, years",
    [
        ("58", 58.0),
        ("058Y", 58.0),
        ("018M", 1.5),
        ("0", 0.0),
        ("100", 100.0),
        ("", None),
        ("101", None),
        ("414", None),
        ("155Y", None),
    ],
)
def test_ages_are_years_and_impossible_ones_are_nulled(
    tmp_path: Path, cell: str, years: float | None
) -> None:
    write_nih(tmp_path, rows=(ROWS[0].replace(",57,", f",{cell},"), ROWS[2]))
    manifest = read_manifest(tmp_path)
    age = manifest.table["age"].iloc[0]
    assert len(manifest.table) == 2
    assert (pd.isna(age) and years is None) or age == years
    nulled = {"age over 100 (nulled)": 1} if cell in ("101", "414", "155Y") else {}
    assert manifest.dropped == nulled


def test_unknown_sexes_and_views_are_nulled_and_counted(tmp_path: Path) -> None:
    rows = (ROWS[0].replace(",M,PA", ",X,LL"), ROWS[1].replace(",M,PA", ",,"), ROWS[2].lower())
    rows = (rows[0], rows[1], rows[2].replace("no finding", "No Finding"))
    write_nih(tmp_path, rows=rows)
    manifest = read_manifest(tmp_path)
    assert list(manifest.table["sex"]) == ["", "", "F"]
    assert list(manifest.table["view"]) == ["", "", "AP"]
    assert manifest.dropped == {"sex not M or F (nulled)": 1, "view not PA or AP (nulled)": 1}


def test_the_lists_of_nih_are_given_sides(tmp_path: Path) -> None:
    write_nih(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("a.png\r\n\nb.png\na.png\n c.png ")
    assert read_manifest(tmp_path).given == {"train_val": ("a.png", "b.png", "c.png")}


# -- AI for Medicine -------------------------------------------------------------------------------


def test_one_hot_columns_are_mapped_by_name(tmp_path: Path) -> None:
    write_ai4m(tmp_path / "train-small.csv", ("a.png", "1", "Mass"))
    write_ai4m(tmp_path / "valid-small.csv", ("b.png", "2", "Hernia"), last=True)
    write_ai4m(tmp_path / "test.csv", ("c.png", "3", "Edema"), last=True)
    manifest = read_manifest(tmp_path)
    table = manifest.table.set_index("image")
    assert manifest.dialect == "ai4m"
    assert tuple(manifest.table.columns) == COLUMNS
    assert table.loc[
        ["a.png", "b.png", "c.png"], ["Mass", "Hernia", "Edema"]
    ].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert int(table[list(FINDINGS)].to_numpy().sum()) == 3
    assert list(table["patient_id"]) == ["1", "2", "3"]
    assert table["age"].isna().all()
    assert table["follow_up"].isna().all()
    assert set(table["sex"]) == set(table["view"]) == {""}
    assert manifest.given == {"train": ("a.png",), "val": ("b.png",), "test": ("c.png",)}


def test_an_image_in_two_files_is_one_row_on_two_sides(tmp_path: Path) -> None:
    write_ai4m(tmp_path / "train-small.csv", ("a.png", "1", "Mass"), ("b.png", "2", "Mass"))
    write_ai4m(tmp_path / "valid-small.csv", ("a.png", "1", "Mass"), last=True)
    manifest = read_manifest(tmp_path)
    assert list(manifest.table["image"]) == ["a.png", "b.png"]
    assert manifest.given == {"train": ("a.png", "b.png"), "val": ("a.png",)}
    assert manifest.dropped == {"image in two files (kept once)": 1}


def test_an_image_with_other_labels_in_another_file_is_refused(tmp_path: Path) -> None:
    write_ai4m(tmp_path / "train-small.csv", ("b.png", "1", "Mass"), ("a.png", "1", "Mass"))
    write_ai4m(tmp_path / "valid-small.csv", ("a.png", "1", "Hernia"))
    message = fault(tmp_path)
    assert "train-small.csv, line 3" in message
    assert "valid-small.csv, line 2" in message
    assert "Mass, Hernia" in message


# -- faults of the CSV -----------------------------------------------------------------------------


def test_fault_40_identical_rows_are_kept_once_and_counted(tmp_path: Path) -> None:
    twin = ROWS[1].replace("Cardiomegaly|Emphysema", "Emphysema|Cardiomegaly")
    write_nih(tmp_path, rows=(*ROWS, ROWS[0], twin))
    manifest = read_manifest(tmp_path)
    assert len(manifest.table) == 3
    assert manifest.dropped == {"duplicate row": 2}


def test_a_stray_quote_is_part_of_a_cell_and_one_that_is_not_closed_is_refused(
    tmp_path: Path,
) -> None:
    path = write_nih(tmp_path, rows=(ROWS[2], ROWS[0].replace("_000.png", '_000.png"')))
    assert '00000001_000.png"' in set(read_manifest(tmp_path).table["image"])
    write_nih(tmp_path, rows=(ROWS[2], '"' + ROWS[0]))
    assert f"{path}, line 3: not readable as CSV" in fault(tmp_path)


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    assert "data.root=" in fault(tmp_path / "absent")
    file = tmp_path / "file"
    file.touch()
    assert "not a folder" in fault(file)
    write_nih(tmp_path)
    assert "data.images=" in fault(tmp_path, images=tmp_path / "absent")


def test_a_folder_without_a_table_tells_what_was_sought_and_found(tmp_path: Path) -> None:
    assert "found nothing" in fault(tmp_path)
    for number in range(10):
        (tmp_path / f"note_{number}.txt").touch()
    message = fault(tmp_path)
    assert "Data_Entry*.csv" in message
    assert "train-small.csv" in message
    assert "note_0.txt" in message
    assert "and 2 more" in message


def test_two_nih_tables_are_refused(tmp_path: Path) -> None:
    write_nih(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text("x")
    message = fault(tmp_path)
    assert "Data_Entry_2017.csv and Data_Entry_2017_v2020.csv" in message
    assert "keep the one" in message


# -- image files -----------------------------------------------------------------------------------


def test_fault_43_images_may_lie_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    write_nih(tmp_path / "csv")
    touch(tmp_path / "csv" / "00000001_000.png")
    found = touch(tmp_path / "pixels" / "00000002_000.png")
    touch(tmp_path / "pixels" / "00000009_000.png")
    manifest = read_manifest(tmp_path / "csv", images=tmp_path / "pixels")
    assert list(manifest.table["path"]) == ["", "", str(found)]
    assert manifest.unlisted_files == 1
    assert manifest.images == tmp_path / "pixels"


@pytest.mark.parametrize(
    "name",
    ["-x.png", "a\nb.png", "x" * 251 + ".png", "=cmd.png", "ü,<b>.png"],
    ids=["dash", "newline", "255 bytes", "formula", "comma"],
)
def test_fault_37_hostile_image_names_are_found(tmp_path: Path, name: str) -> None:
    path = touch(tmp_path / "images" / name)
    write_nih(tmp_path, rows=(f'"{name}",Mass,0,1,50,M,PA,1,1,1,1',))
    assert list(read_manifest(tmp_path).table["path"]) == [str(path)]


def test_fault_37_a_folder_name_that_is_not_unicode_is_kept(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    write_nih(root)
    path = touch(root / "00000001_000.png")
    touch(root / os.fsdecode(b"\xff.png"))
    manifest = read_manifest(root)
    assert manifest.table["path"].iloc[0] == str(path)
    assert manifest.unlisted_files == 1


# -- real data -------------------------------------------------------------------------------------

POSITIVES_V2020 = {
    "Infiltration": 19894,
    "Effusion": 13317,
    "Atelectasis": 11559,
    "Nodule": 6331,
    "Mass": 5782,
    "Pneumothorax": 5302,
    "Consolidation": 4667,
    "Pleural_Thickening": 3385,
    "Cardiomegaly": 2776,
    "Emphysema": 2516,
    "Edema": 2303,
    "Fibrosis": 1686,
    "Pneumonia": 1431,
    "Hernia": 227,
}


@real_data
def test_the_whole_of_nih_has_the_published_counts() -> None:
    manifest = read_manifest(REAL / "nih_full_metadata")
    table = manifest.table
    assert len(table) == 112_120
    assert table["patient_id"].nunique() == 30_805
    assert table[list(FINDINGS)].sum().to_dict() == POSITIVES_V2020
    assert int((table[list(FINDINGS)].sum(axis=1) == 0).sum()) == 60_361
    assert {side: len(names) for side, names in manifest.given.items()} == {
        "train_val": 86_524,
        "test": 25_596,
    }
    assert manifest.dropped == {}


@real_data
def test_the_originals_are_found_below_their_archives_folders() -> None:
    manifest = read_manifest(REAL / "nih1024")
    assert len(manifest.table) == 160
    assert (manifest.table["path"] != "").all()
    assert manifest.unlisted_files == 0


@real_data
def test_the_ai4m_test_csv_has_769_positives() -> None:
    manifest = read_manifest(REAL / "ai4m")
    test = manifest.table.set_index("image").loc[list(manifest.given["test"]), list(FINDINGS)]
    assert test.shape == (420, 14)
    assert int(test.to_numpy().sum()) == 769
