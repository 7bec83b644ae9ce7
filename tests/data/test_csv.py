"""A table of one's own: what its columns mean, and every fault with its file and line."""

from pathlib import Path
from typing import Any

import pytest
from tables import touch

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.splits import make_split
from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.findings import FINDINGS, check_findings

TABLE = """image,patient,Effusion,Fracture
a.png,1,0,1
b.png,1,1,0
c.png,2,0,0
"""


def written(root: Path, text: str = TABLE, *, name: str = "films.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root


def read(
    root: Path,
    findings: tuple[str, ...] | None = ("Effusion", "Fracture"),
    images: Path | None = None,
    **options: Any,
) -> Manifest:
    return read_manifest(root, images=images, findings=findings, own=OwnTable(**options))


def fault(root: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(root, *arguments, **options)
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_USER_ERROR
    assert len(message.splitlines()) == 1
    return message


def values(manifest: Manifest) -> list[list[int]]:
    return manifest.table[list(manifest.findings)].to_numpy().tolist()


# -- what is read ----------------------------------------------------------------------------------


def test_the_findings_asked_for_are_read_in_that_order(tmp_path: Path) -> None:
    manifest = read(written(tmp_path), ("Fracture", "Effusion"))
    assert (manifest.dialect, manifest.findings) == ("csv", ("Fracture", "Effusion"))
    assert values(manifest) == [[1, 0], [0, 1], [0, 0]]
    assert list(manifest.table["patient_id"]) == ["1", "1", "2"]
    assert manifest.table["age"].isna().all()
    assert manifest.dropped == {}


def test_without_a_list_the_findings_of_nih_that_the_table_has_are_read(tmp_path: Path) -> None:
    text = TABLE.replace("Fracture", "Infiltrate")
    assert read(written(tmp_path, text), None).findings == ("Effusion", "Infiltration")
    assert read(written(tmp_path), None).findings == ("Effusion",)


def test_a_column_of_labels_stands_for_many(tmp_path: Path) -> None:
    text = "image,patient,Finding Labels\na.png,1,Mass|effusion\nb.png,1,No Finding\nc.png,2,Mass\n"
    assert read(written(tmp_path, text), None).findings == ("Effusion", "Mass")
    chosen = read(tmp_path, ("Mass", "Fracture"))
    assert values(chosen) == [[1, 0], [0, 0], [1, 0]]
    assert chosen.dropped == {"label 'effusion' (not among data.findings)": 1}


def test_labels_beyond_counting_are_counted_together(tmp_path: Path) -> None:
    names = "|".join(f"x{n}" for n in range(50))
    text = f"image,patient,labels\na.png,1,Mass|{names}\n"
    dropped = read(written(tmp_path, text), ("Mass",)).dropped
    assert len(dropped) == 21
    assert dropped["other labels (not among data.findings)"] == 30


@pytest.mark.parametrize(
    "header",
    ["Image Index,Patient ID", "file,PatientId", "Path,subject_id", "file_name,Subject"],
)
def test_columns_are_guessed_by_their_letters_and_digits(header: str, tmp_path: Path) -> None:
    text = TABLE.replace("image,patient", header)
    assert list(read(written(tmp_path, text)).table["image"]) == ["a.png", "b.png", "c.png"]


def test_columns_may_be_named(tmp_path: Path) -> None:
    text = TABLE.replace("image,patient", "Röntgenbild,Fall")
    columns = {"image": "Röntgenbild", "patient": "Fall", "age": None}
    assert len(read(written(tmp_path, text), columns=columns).table) == 3


def test_fault_38_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    expected = read(written(tmp_path)).table
    (tmp_path / "films.csv").write_bytes(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())
    assert read(tmp_path).table.equals(expected)


def test_who_was_imaged_is_read_where_it_is_there(tmp_path: Path) -> None:
    text = (
        "image,patient,Mass,Age,Gender,View Position,Follow-up #\n"
        "a.png,7,1,058Y,Female,AP,2\nb.png,8,0,,m,lateral,\nc.png,unknown,0,414,?,PA,0\n"
    )
    manifest = read(written(tmp_path, text), None)
    table = manifest.table
    assert table["age"].fillna(-1).tolist() == [58, -1, -1]
    assert table["sex"].tolist() == ["F", "M", ""]
    assert table["view"].tolist() == ["AP", "", "PA"]
    assert table["follow_up"].fillna(-1).tolist() == [2, -1, 0]
    assert table["patient_id"].tolist() == ["7", "8", "unknown: c.png"]
    assert set(manifest.dropped.values()) == {1}
    assert len(manifest.dropped) == 4


# -- labels that are neither 0 nor 1 ---------------------------------------------------------------


@pytest.mark.parametrize(
    "options, first, dropped",
    [
        ({"uncertain": "negative", "empty": "negative"}, [0, 0], {"negative"}),
        ({"uncertain": "positive", "empty": "negative"}, [1, 0], {"negative", "positive"}),
    ],
)
def test_uncertain_and_empty_labels_mean_what_the_caller_says(
    options: dict[str, str], first: list[int], dropped: set[str], tmp_path: Path
) -> None:
    manifest = read(written(tmp_path, TABLE.replace("1,0,1", "1,-1.0,")), **options)
    assert values(manifest)[0] == first
    assert manifest.dropped == {
        f"label -1 (taken as {options['uncertain']})": 1,
        "empty label (taken as negative)": 1,
    }


@pytest.mark.parametrize(
    "cell, told",
    [
        ("-1", "data.uncertain=negative or positive"),
        ("", "data.empty=negative"),
        ("2", "a finding is 0 or 1"),
        ("0.5", "a finding is 0 or 1"),
        ("yes", "a finding is 0 or 1"),
    ],
)
def test_other_cells_are_refused_by_their_line(cell: str, told: str, tmp_path: Path) -> None:
    message = fault(written(tmp_path, TABLE.replace("b.png,1,1,0", f"b.png,1,1,{cell}")))
    assert f"films.csv, line 3: Fracture '{cell}': " in message
    assert told in message


# -- images ----------------------------------------------------------------------------------------


def test_images_are_found_in_subfolders_by_path_or_by_name(tmp_path: Path) -> None:
    for path in ("a.png", "x/a.png", "x/deep/b.png", "x/c.dcm", "x/unlisted.png", "d"):
        touch(tmp_path / "films" / path)
    rows = ("a.png", "./x//a.png", "b.png", "x/c.dcm", "d", "missing/e.png")
    text = "image,patient,Mass\n" + "".join(f"{row},1,0\n" for row in rows)
    manifest = read(written(tmp_path, text), None, images=tmp_path / "films")
    names = ["a.png", "x/a.png", "b.png", "x/c.dcm", "d", "missing/e.png"]
    assert list(manifest.table["image"]) == names
    found = ["a.png", "x/a.png", "x/deep/b.png", "x/c.dcm", "d"]
    expected = [str(tmp_path / "films" / name) for name in found]
    assert list(manifest.table["path"]) == [*expected, ""]
    assert manifest.unlisted_files == 1


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "x/../../a.png", ".."])
def test_no_image_lies_outside_the_folder(name: str, tmp_path: Path) -> None:
    message = fault(written(tmp_path, TABLE.replace("b.png", name)))
    assert f"films.csv, line 3: image '{name}': " in message


def test_one_file_is_never_the_image_of_two_rows(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.png")
    table = read(written(tmp_path, TABLE.replace("c.png", "x/a.png"))).table
    assert list(table["path"]) == ["", "", str(tmp_path / "x" / "a.png")]


def test_two_files_of_a_name_without_a_folder_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    for folder in ("x", "y"):
        touch(tmp_path / folder / "a.png")
    assert "two files are named 'a.png'" in fault(tmp_path)
    (tmp_path / "a.png").touch()
    manifest = read(tmp_path)
    assert manifest.table["path"][0] == str(tmp_path / "a.png")
    assert manifest.unlisted_files == 2


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("image,", "picture,", "no column 'image'; found 'picture, patient, Effusion, Fracture'"),
        ("patient,", "who,", "data.columns.patient=TITLE"),
        ("Fracture", "Broken", "no column of data.findings Fracture; found 'image, patient"),
        ("image,patient", "image,path,patient", "'image' and 'path' may each be the column"),
        ("Effusion,Fracture", "Effusion,Fracture,fracture", "column 'Fracture' is there 2 times"),
        ("b.png,1,1,0", "b.png,1,1", "line 3: 3 cells where the header needs 4"),
        ("b.png,1,1,0", "b.png,,1,0", "line 3: patient_id '': no patient"),
        ("b.png,1,1,0", ",1,1,0", "line 3: no image name"),
        ("b.png,1,1,0", "a.png,1,1,0", "line 3: 'a.png' is already at"),
        ("b.png,1,1,0", "b.png,1,1,\0", "line 3: NUL byte"),
        ("b.png,1,1,0", '"b.png,1,1,0', "not readable as CSV"),
    ],
)
def test_fault_39_to_42_a_faulty_table_is_one_line(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    assert told in fault(written(tmp_path, TABLE.replace(old, new)))


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "image,patient,labels\na.png,1,Mass\nb.png,1,Efusion\n",
            "line 3: unknown label",
        ),
        ("image,patient,labels\na.png,1,Mass|No Finding\n", "line 2: labels 'Mass|No Finding': "),
        ("image,patient,labels\na.png,1,\n", "line 2: labels '': no label"),
        ("image,patient,labels\na.png,1,No Finding\n", "no image has any of Atelectasis"),
        ("image,patient,Fracture\na.png,1,0\n", "name those to learn: data.findings=[A,B]"),
    ],
)
def test_fault_41_labels_that_are_none_are_refused(text: str, told: str, tmp_path: Path) -> None:
    assert told in fault(written(tmp_path, text), None)


def test_the_table_is_the_only_one_or_named(tmp_path: Path) -> None:
    assert "holds no CSV; name the table" in fault(tmp_path)
    written(tmp_path)
    written(tmp_path, "image,split\na.png,train\n", name="split.csv")
    assert "holds 2 CSVs (films.csv, split.csv)" in fault(tmp_path)
    for file in ("films.csv", str(tmp_path / "films.csv")):
        assert len(read(tmp_path, file=file).table) == 3
    assert "data.table='no.csv' is no file" in fault(tmp_path, file="no.csv")


@pytest.mark.parametrize(
    "options, told",
    [
        ({"columns": {"picture": "a"}}, "has other keys than image, patient"),
        ({"columns": {"image": 3}}, "data.columns.image='3' must be the title"),
        ({"columns": "image"}, "data.columns='image'"),
        ({"uncertain": "maybe"}, "data.uncertain='maybe' is unknown"),
        ({"empty": "positive"}, "data.empty='positive' is unknown"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        OwnTable(**options)


@pytest.mark.parametrize(
    "names, told",
    [
        ([], "a list of 1 to 200"),
        ("Mass", "a list of 1 to 200"),
        ([f"F{n}" for n in range(201)], "a list of 1 to 200"),
        (["Mass", "mass "], "cannot be a finding's name"),
        (["Mass", "MASS"], "'Mass' and 'MASS' are one finding"),
        (["A|B"], "cannot be a finding's name"),
        (["A,B"], "cannot be a finding's name"),
        (["<script>"], "cannot be a finding's name"),
        (["=cmd()"], "cannot be a finding's name"),
        ([""], "cannot be a finding's name"),
        (["a\nb"], "cannot be a finding's name"),
        ([1], "cannot be a finding's name"),
        (["No Finding"], "it means another"),
        (["patient_id"], "it means another"),
    ],
)
def test_hostile_lists_of_findings_are_refused(names: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        check_findings(names, what="data.findings")
    assert len(str(caught.value).splitlines()) == 1


def test_lists_of_one_and_of_two_hundred_findings_are_taken() -> None:
    many = [f"Finding {n}/x" for n in range(200)]
    assert check_findings(many, what="x") == tuple(many)
    assert check_findings(["Œdème"], what="x") == ("Œdème",)


# -- splits ----------------------------------------------------------------------------------------

SIDES = "image,patient,Mass,split\n" + "".join(
    f"{n}.png,{n},0,{('Train', 'valid', 'TESTING', '')[n % 4]}\n" for n in range(12)
)


def test_a_column_says_the_sides(tmp_path: Path) -> None:
    split = make_split(read(written(tmp_path, SIDES), None), "column")
    assert split.sides["val"] == ("1.png", "5.png", "9.png")
    assert {side: len(names) for side, names in split.sides.items()} == dict.fromkeys(
        ("train", "val", "test"), 3
    )
    assert split.unassigned == 3


def test_val_is_drawn_from_train_where_the_column_has_none(tmp_path: Path) -> None:
    text = SIDES.replace("valid", "train")
    split = make_split(read(written(tmp_path, text), None), "column", val_fraction=0.34)
    assert [len(split.sides[side]) for side in ("train", "val", "test")] == [4, 2, 3]


@pytest.mark.parametrize(
    "text, name, told",
    [
        (SIDES.replace("valid", "fold 2"), "column", "3 images .* with split 'fold 2'"),
        (TABLE, "column", "data.split=column needs data=csv and a column split"),
        (SIDES, "official", "choose data.split=patient_random"),
    ],
)
def test_a_split_that_the_table_does_not_have_is_refused(
    text: str, name: str, told: str, tmp_path: Path
) -> None:
    manifest = read(written(tmp_path, text), None if text != TABLE else ("Fracture",))
    with pytest.raises(UserError, match=told):
        make_split(manifest, name)


def test_the_number_of_findings_flows_from_the_data(tmp_path: Path) -> None:
    names = [f"p{n // 3}/{n % 3}.png" for n in range(36)]
    for name in names:
        touch(tmp_path / name)
    rows = [f"{name},{n // 3},{n % 2},0,1" for n, name in enumerate(names)]
    written(tmp_path, "\n".join(["File,Patient,Effusion,Rib Fracture,Nodule/Mass", *rows]))

    def module(findings: list[str] | None) -> XrayDataModule:
        return XrayDataModule(
            name="csv", root=str(tmp_path), columns={}, split="patient_random", findings=findings
        )

    data = module(["Nodule/Mass", "Effusion"])
    assert data.findings == ("Nodule/Mass", "Effusion")
    assert data.labels("train").shape[1] == 2
    assert list(data.describe()["positives"]["train"]) == ["Nodule/Mass", "Effusion"]
    assert module(None).findings == ("Effusion",)


@pytest.mark.parametrize("findings", [["Mass", "Hernia"], ["Edema"]])
def test_nihs_own_table_gives_the_findings_asked_for(findings: list[str], phantoms: Path) -> None:
    data = XrayDataModule(name="nih", root=str(phantoms), findings=findings)
    assert data.findings == tuple(findings)
    whole = XrayDataModule(name="nih", root=str(phantoms))
    columns = [FINDINGS.index(name) for name in findings]
    assert (data.labels("train") == whole.labels("train")[:, columns]).all()


def test_a_finding_that_nih_does_not_have_is_refused(phantoms: Path) -> None:
    with pytest.raises(UserError, match=r"data\.findings: Fracture is none of those"):
        XrayDataModule(name="nih", root=str(phantoms), findings=["Fracture"]).load()


def test_further_columns_are_taken_along_as_text_and_have_to_be_there(
    tmp_path: Path, phantoms: Path
) -> None:
    text = "image,patient,Effusion,Site\na.png,1,0, north \nb.png,1,1,\nc.png,2,0,7\n"

    def listed(*further: str) -> Manifest:
        own = OwnTable(uncertain="error")
        return read_manifest(written(tmp_path, text), own=own, further=further)

    assert listed("site").table["site"].tolist() == ["north", "", "7"]
    assert "site" not in listed().table
    for name, said in (
        ("ward", "evaluation.subgroups: films.csv in .* has no column 'ward'"),
        ("Effusion", "evaluation.subgroups: Effusion is a finding"),
    ):
        with pytest.raises(UserError, match=said):
            listed(name)
    with pytest.raises(UserError, match=r"Data_Entry_2017\S*\.csv in .* has no column 'site'"):
        XrayDataModule(name="nih", root=str(phantoms), further_columns=["site"]).load()
    ids = read_manifest(phantoms, further=("Patient Gender",)).table
    assert (ids["Patient Gender"] == ids["sex"]).all()
