"""Files that are whole at every moment, whatever fails while they are written."""

import os
import stat
from pathlib import Path

import pytest
from failing_disk import failures

from xray_lightning.files import write_atomically


def test_a_new_file_holds_its_content_and_all_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("late", [False, True])
def test_fault_14_25_a_failure_at_any_call_keeps_the_old_file_and_leaves_nothing_beside_it(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    found = []
    for told in failures(late, lambda: write_atomically(path, "new"), monkeypatch):
        assert isinstance(told, OSError)
        assert os.listdir(tmp_path) == ["a.json"]
        found.append(path.read_text())
        write_atomically(path, "old")
    # make, write, flush, sync, close, set the mode, rename
    assert found == ["old"] * 6 + ["new" if late else "old"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomically(path, "content")
    assert path.read_text() == "content"
