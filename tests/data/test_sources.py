"""Every fault of a table has one kind and one message: training raises it, the check keeps it."""

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY
from tables import AI4M_HEADER, BOXES_HEADER, NIH_HEADER, write

from xray_lightning.data import sources
from xray_lightning.data.check import check_data
from xray_lightning.data.faults import Faults, FirstFault
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.sources import Source, known_sources, recognised
from xray_lightning.data.sources.nih import read_box_rows
from xray_lightning.errors import UserError

NIH, AI4M, BOXES = "Data_Entry_2017.csv", "train-small.csv", "BBox_List_2017.csv"
GOOD = {
    NIH: (NIH_HEADER, "1.png,Mass,0,1,50,M,PA"),
    AI4M: (AI4M_HEADER, "1.png,1" + ",0" * 14),
    BOXES: (BOXES_HEADER, "1.png,Mass,0,0,9,9"),
}


def both_sinks(root: Path, file: str) -> tuple[str, Faults]:
    """What is raised of a table, and what the other sink has when it was read to its end."""

    def read(faults: Faults) -> None:
        if file == BOXES:
            read_box_rows(root / file, faults)
        else:
            source = recognised(root)
            assert source is not None
            source.read(root, faults)

    with pytest.raises(UserError) as caught:
        read(FirstFault())
    message = str(caught.value)
    assert "\n" not in message
    every = Faults()
    read(every)
    return message, every


@pytest.mark.parametrize(
    ("file", "row", "kind", "message"),
    [
        (NIH, "x.png,Mass", "short_row", "2 cells where the header needs 7"),
        (NIH, ",Mass,0,1,50,M,PA", "row_without_image", "no image name"),
        (NIH, "x.png,Mass,0,,50,M,PA", "row_without_patient", "no patient"),
        (NIH, "x.png,Spot,0,1,50,M,PA", "unknown_label", "label 'Spot'"),
        (NIH, "x.png,Mass|Hart,0,1,50,M,PA", "unknown_label", "label 'Hart'"),
        (NIH, "x.png,mass,0,1,50,M,PA", "unknown_label", "label 'mass'"),
        (NIH, "x.png,Mass|No Finding,0,1,5,M,PA", "contradictory_label", "with a finding"),
        (NIH, "x.png,|,0,1,50,M,PA", "no_label", "labels '|': no label"),
        (NIH, "x.png,,0,1,50,M,PA", "no_label", "labels '': no label"),
        *(
            (NIH, f"x.png,Mass,0,1,{age},M,PA", "age_unreadable", "not an age such as")
            for age in ("old", "-4", "5_7", "\u0665\u0667")
        ),
        (NIH, "x.png,Mass,.,1,5,M,PA", "follow_up_unreadable", "not a whole number"),
        (NIH, "x.png,Mass,0.5,1,5,M,PA", "follow_up_unreadable", "not a whole number"),
        (NIH, "x.png,Mass,Edema,0,1,5,M,PA", "follow_up_unreadable", "not a whole number"),
        (NIH, "1.png,Edema,0,1,50,M,PA", "conflicting_row", "line 2, with another Mass, Edema"),
        (NIH, "1.png,Mass,0,9,50,M,PA", "conflicting_row", "line 2, with another patient_id"),
        (NIH, "1.png,Mass,0,1,58,M,PA", "conflicting_row", "line 2, with another age"),
        (NIH, "1.png,Mass,0,1,,M,PA", "conflicting_row", "line 2, with another age"),
        (NIH, "1.png,Mass,,1,50,M,PA", "conflicting_row", "line 2, with another follow_up"),
        (AI4M, "x.png,1", "short_row", "2 cells where the header needs 16"),
        (AI4M, ",1" + ",0" * 14, "row_without_image", "no image name"),
        (AI4M, "x.png," + ",0" * 14, "row_without_patient", "no patient"),
        *(
            (AI4M, f"x.png,1,{cell}" + ",0" * 13, "label_not_0_or_1", f"Atelectasis {cell!r}: a")
            for cell in ("2", "-1", "0.5", "", "yes", "nan")
        ),
        (AI4M, "1.png,1,1" + ",0" * 13, "conflicting_row", "another Atelectasis"),
        (BOXES, "1.png,Mass", "short_row", "2 cells where the header needs 6"),
        (BOXES, "1.png,Mass,5,five,9,9", "box_unreadable", "y 'five': could not"),
        (BOXES, "1.png,Mass,5,5,nan,9", "box_unreadable", "not a finite number"),
        (BOXES, "1.png,Mass,5,5,0,9", "box_outside", "a box that covers nothing"),
        (BOXES, "1.png,Spot,5,5,9,9", "box_of_unknown_finding", "is no finding"),
    ],
)
def test_fault_40_to_42_a_row_is_refused_by_one_sink_and_kept_by_the_other(
    file: str, row: str, kind: str, message: str, tmp_path: Path
) -> None:
    header, good = GOOD[file]
    path = write(tmp_path / file, header, good, row, good.replace("1", "2"))
    raised, every = both_sinks(tmp_path, file)
    assert raised.startswith(f"{path}, line 3: ")
    assert message in raised
    assert [one.kind for one in every.remarks if one.problem] == [kind]
    assert every.count(kind) == 1
    (told,) = (one for one in every.remarks if one.kind == kind)
    assert "line 3" in f"{told.names} {told.details}"


@pytest.mark.parametrize(
    ("file", "title"),
    [
        *((NIH, title) for title in ("Image Index", "Finding Labels", "Patient ID")),
        *((AI4M, title) for title in AI4M_HEADER.split(",")),
        *((BOXES, title) for title in ("Image Index", "Finding Label", "h]")),
    ],
)
def test_fault_39_a_missing_column_is_told_beside_what_was_found(
    file: str, title: str, tmp_path: Path
) -> None:
    header, good = GOOD[file]
    write(tmp_path / file, re.sub(rf"(^|,){re.escape(title)}(,|$)", r"\1Other\2", header), good)
    raised, every = both_sinks(tmp_path, file)
    assert f"{tmp_path / file}, line 1: no column '{title}'; expected " in raised
    assert "Other" in raised.partition("; found ")[2]
    assert [one.details[file] for one in every.remarks if one.problem] == [raised]


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
