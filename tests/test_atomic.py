"""Files that are whole at every moment, whatever fails while they are written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from xray_lightning import files as atomic
from xray_lightning.files import write_atomically


def test_a_new_file_holds_its_content_and_all_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_fault_14_25_a_failure_at_any_step_keeps_the_old_file_and_leaves_nothing_beside_it(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomically(path, "content")
    assert path.read_text() == "content"
