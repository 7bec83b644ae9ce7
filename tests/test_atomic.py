"""Files that are whole at every moment, whatever fails while they are written."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended
from failing_disk import failures

from xray_lightning import files
from xray_lightning.files import hold, is_held, replacing, write_atomically


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


KILLED = """
import os, signal, sys
from pathlib import Path
from xray_lightning.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


def test_what_a_kill_leaves_goes_with_the_next_write_and_the_file_of_a_living_writer_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    others = [".a.json.swp", ".b.json.abcdefgh"]  # an editor's, another file's
    for name in others:
        (tmp_path / name).touch()
    ended = Ended.of([sys.executable, "-c", KILLED, str(path), "SIGKILL"], REPOSITORY)
    assert ended.exit_code == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 3
    with replacing(path) as stream:
        write_atomically(path, "quick")
        assert len(os.listdir(tmp_path)) == 4  # ours, quick's and the others'
        stream.write(b"slow")
    assert path.read_text() == "slow"
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", *others])


def test_fault_13_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))
        )
    write_atomically(tmp_path / "a.json", "{}")
    assert calls == ["fsync", "replace"]


HOLDS = """
import sys, time
from pathlib import Path
from xray_lightning.files import hold
print(hold(Path(sys.argv[1]), seconds=0.1), flush=True)
time.sleep(60)
"""


def test_a_file_is_held_until_its_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    assert is_held(path) is None
    path.touch()
    assert is_held(path) is False
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert is_held(path) is True
        assert hold(path, seconds=0.1) is False
        process.kill()
    assert is_held(path) is False
    assert hold(tmp_path / "none") is True  # where there is nothing to hold nobody is kept out


def test_a_file_that_is_released_at_the_last_moment_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.log"
    path.touch()
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"

        def released(asked: Path) -> bool | None:
            process.kill()
            process.wait()
            return is_held(asked)

        monkeypatch.setattr(files, "is_held", released)
        assert hold(path, seconds=0.0) is True
    monkeypatch.undo()
    with path.open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
