"""Cells of a CSV come by title as stripped text, and every fault names its file and line."""

from pathlib import Path

import pytest
from tables import write

from xray_lightning.data import csv_table as module
from xray_lightning.data.csv_table import Titles, fail_at, read_cells, shown
from xray_lightning.errors import UserError

TITLES: Titles = {"image": ("Image Index",), "patient": ("Patient ID",), "sex": ("Sex", "Gender")}
REQUIRED = ("image", "patient")
HEADER = "Image Index,Patient ID,Gender,Extra"
ROWS = ("a.png,1,M,x", "b.png,2,F,x", "c.png,3,,x")


def table(folder: Path, *lines: str) -> Path:
    return write(folder / "table.csv", *lines)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_cells(path, TITLES, required=REQUIRED)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_columns_are_found_by_title_and_rows_know_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "table.csv",
        "Gender,PATIENT_ID,Other,imageindex",
        "M , 1,x,a.png",
        "F,2,y, b.png",
    )
    cells = read_cells(path, TITLES, required=REQUIRED)
    assert cells.drop(columns="file").to_dict("list") == {
        "image": ["a.png", "b.png"],
        "patient": ["1", "2"],
        "sex": ["M", "F"],
        "line": [2, 3],
    }
    assert set(cells["file"]) == {str(path)}


def test_a_column_that_is_not_required_may_be_absent(tmp_path: Path) -> None:
    path = table(tmp_path, "Image Index,Patient ID", "a.png,1")
    assert "sex" not in read_cells(path, TITLES, required=REQUIRED)


def test_blank_lines_are_no_rows_and_keep_line_numbers_right(tmp_path: Path) -> None:
    path = table(tmp_path, HEADER, ROWS[0], "", ROWS[1], ",,,", ROWS[2], "")
    assert list(read_cells(path, TITLES, required=REQUIRED)["line"]) == [2, 4, 6]


def test_a_quoted_line_break_keeps_line_numbers_right(tmp_path: Path) -> None:
    path = table(tmp_path, HEADER, '"a\n.png",1,M,x', ROWS[1])
    cells = read_cells(path, TITLES, required=REQUIRED)
    assert list(cells["image"]) == ["a\n.png", "b.png"]
    assert list(cells["line"]) == [2, 4]
    assert str(fail_at(cells, 1, "odd")) == f"{path}, line 4: odd"


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    message = refused(table(tmp_path, HEADER.replace("Extra", "PatientID"), *ROWS))
    assert "column 'Patient ID' is there 2 times" in message


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    assert "line 3: not readable as CSV" in refused(table(tmp_path, HEADER, ROWS[0], '"b.png,2,M'))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (HEADER.encode(), "no rows"),
        (HEADER.encode() + b"\n\n,,,,,,\n", "no rows"),
        ((HEADER + "\n" + ROWS[0] + "\n").encode() + b"a\0b.png,1,M,x", "line 3: NUL byte"),
        ((HEADER + "\n" + ROWS[0] + "\n").encode() + b"\xe9.png,1,M,x", "line 3: not UTF-8"),
        ((HEADER + "\n" + ROWS[0]).encode("utf-16"), "NUL byte"),
        (b"<!DOCTYPE html><p>404", "no column 'Image Index'"),
    ],
)
def test_fault_42_a_file_that_is_no_table_is_refused(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    assert cause in refused(path)


def test_fault_42_a_huge_table_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)  # sparse
    assert "10,240 MiB" in refused(path)


def test_fault_42_a_very_long_line_is_refused_and_not_echoed(tmp_path: Path) -> None:
    message = refused(table(tmp_path, HEADER, ROWS[0], "x" * 2_000_000))
    assert "line 3" in message
    assert len(message) < 500


def test_fault_42_more_rows_than_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    assert "line 4: more than 2 rows" in refused(table(tmp_path, HEADER, *ROWS))


def test_a_long_value_is_cut_in_a_message() -> None:
    assert shown("y" * 100_000) == repr("y" * 77 + "...")
