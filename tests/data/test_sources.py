"""Every fault of a table has one kind and one message: training raises it, the check keeps it."""

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from xray_lightning.data import sources
from xray_lightning.data.check import check_data
from xray_lightning.data.faults import Faults, FirstFault
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.sources import Source, known_sources, recognised
from xray_lightning.data.sources.nih import read_box_rows
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

NIH = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
AI4M = ",".join(["Image", "PatientId", *FINDINGS])
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
GOOD = {
    "Data_Entry_2017.csv": (NIH, "1.png,Mass,0,1,50,M,PA"),
    "train-small.csv": (AI4M, "1.png,1" + ",0" * 14),
    "BBox_List_2017.csv": (BOXES, "1.png,Mass,0,0,9,9"),
}


def faulty(root: Path, file: str, row: str) -> Path:
    """A table whose third line is this row, between two sound ones."""
    header, good = GOOD[file]
    (root / file).write_text("\n".join([header, good, row, good.replace("1", "2")]))
    return root


@pytest.mark.parametrize(
    ("file", "row", "kind", "message"),
    [
        ("Data_Entry_2017.csv", "x.png,Mass", "short_row", "2 cells where the header needs 7"),
        ("Data_Entry_2017.csv", ",Mass,0,1,50,M,PA", "row_without_image", "no image name"),
        ("Data_Entry_2017.csv", "x.png,Mass,0,,50,M,PA", "row_without_patient", "no patient"),
        ("Data_Entry_2017.csv", "x.png,Spot,0,1,50,M,PA", "unknown_label", "label 'Spot'"),
        ("Data_Entry_2017.csv", "x.png,Mass|No Finding,0,1,5,M,PA", "contradictory_label", "with"),
        ("Data_Entry_2017.csv", "x.png,|,0,1,50,M,PA", "no_label", "labels '|': no label"),
        ("Data_Entry_2017.csv", "x.png,Mass,0,1,old,M,PA", "age_unreadable", "not an age such as"),
        ("Data_Entry_2017.csv", "x.png,Mass,.,1,5,M,PA", "follow_up_unreadable", "not a whole"),
        ("Data_Entry_2017.csv", "1.png,Edema,0,1,50,M,PA", "conflicting_row", "Mass, Edema"),
        ("train-small.csv", "x.png,1", "short_row", "2 cells where the header needs 16"),
        ("train-small.csv", ",1" + ",0" * 14, "row_without_image", "no image name"),
        ("train-small.csv", "x.png," + ",0" * 14, "row_without_patient", "no patient"),
        ("train-small.csv", "x.png,1,2" + ",0" * 13, "label_not_0_or_1", "Atelectasis '2': a"),
        ("train-small.csv", "1.png,1,1" + ",0" * 13, "conflicting_row", "another Atelectasis"),
        ("BBox_List_2017.csv", "1.png,Mass", "short_row", "2 cells where the header needs 6"),
        ("BBox_List_2017.csv", "1.png,Mass,5,five,9,9", "box_unreadable", "y 'five': could not"),
        ("BBox_List_2017.csv", "1.png,Mass,5,5,nan,9", "box_unreadable", "not a finite number"),
        ("BBox_List_2017.csv", "1.png,Mass,5,5,0,9", "box_outside", "a box that covers nothing"),
        ("BBox_List_2017.csv", "1.png,Spot,5,5,9,9", "box_of_unknown_finding", "is no finding"),
    ],
)
def test_a_fault_is_raised_by_one_sink_and_kept_by_the_other(
    file: str, row: str, kind: str, message: str, tmp_path: Path
) -> None:
    root = faulty(tmp_path, file, row)

    def read(faults: Faults) -> int:
        if file == "BBox_List_2017.csv":
            return len(read_box_rows(root / file, faults))
        source = recognised(root)
        assert source is not None
        return len(source.read(root, faults).table)

    with pytest.raises(UserError, match=f"line 3: .*{re.escape(message)}") as caught:
        read(FirstFault())
    assert str(root / file) in str(caught.value)
    every = Faults()
    assert read(every) >= 2
    assert [one.kind for one in every.remarks if one.problem] == [kind]
    assert every.count(kind) == 1
    (told,) = (one for one in every.remarks if one.kind == kind)
    assert "line 3" in f"{told.names} {told.details}"


def test_every_known_data_set_is_found_by_its_module() -> None:
    assert [source.dialect for source in known_sources()] == ["nih", "nih", "ai4m"]


def clinic() -> Source:
    """The example of docs/extending.md."""
    text = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n# xray_lightning/data/sources/clinic.py\n(.*?)```", text, re.S
    )
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("clinic", None))  # type: ignore[arg-type]
    exec(code, module.__dict__)
    source: Source = module.SOURCE
    return source


def test_the_example_of_a_data_set_is_read_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = clinic()
    known_sources.cache_clear()
    everyone = (*known_sources(), example)
    monkeypatch.setattr(sources, "known_sources", lambda: everyone)
    table = tmp_path / "exams.csv"
    table.write_text("File,Patient,Fracture,Effusion\na.png,1,yes,no\nb.png,2,no,no\n")
    manifest = read_manifest(tmp_path)
    assert (manifest.dialect, manifest.findings) == ("clinic", ("Fracture", "Effusion"))
    assert manifest.table["Fracture"].tolist() == [1, 0]
    with table.open("a") as stream:
        stream.write("c.png,3,maybe,no\n")
    with pytest.raises(UserError, match="line 4: Fracture 'maybe': a finding is yes or no here"):
        read_manifest(tmp_path)
    health = check_data(tmp_path, decode=False)
    assert {one.kind for one in health.problems} == {"label_not_0_or_1", "missing_file"}
    assert health.counts["rows"] == 3
