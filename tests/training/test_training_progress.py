"""What a person sees on a terminal while a model trains."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import TRAIN_PY, environment


def on_terminal(command: list[str], *, folder: Path, columns: int) -> str:
    """Everything that a command writes to a terminal so wide."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(TERM="xterm-256color"),
        stdin=its,
        stdout=its,
        stderr=its,
    ) as process:
        os.close(its)
        written = b""
        try:
            while block := os.read(ours, 65536):
                written += block
        except OSError:  # Linux says EIO when the last writer is gone
            pass
        os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


@pytest.mark.slow
def test_the_bar_tells_speed_and_time_left_and_no_log_line_runs_into_it(
    tmp_path: Path, small: list[str]
) -> None:
    command = [sys.executable, TRAIN_PY, *small, "trainer.max_epochs=2"]
    written = on_terminal(command, folder=tmp_path, columns=100)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written)
    bars = re.findall(r"epoch (\d)/2\S* .*?(\d+)/(\d+) (\d+ images/s)? +(\S+) left", plain)
    assert {epoch for epoch, *_ in bars} == {"1", "2"}
    assert any(rate for *_, rate, _ in bars)
    assert {"validating", "testing"} <= set(re.findall(r"validating|testing", plain))
    # Each line of the log starts a line of the screen: after a line feed, or one that was erased.
    assert len(re.findall(r"\[\d\d:\d\d:\d\d\] ", plain)) == len(
        re.findall(r"(?:^|\n|\x1b\[2K)\[\d\d:\d\d:\d\d\] ", plain)
    )
    assert "Epoch" not in plain  # no second bar of Lightning's
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")  # the cursor is there again
    log = next(tmp_path.glob("runs/*/train.log")).read_text()
    assert re.findall(r"epoch (\d)/2  loss .* left\n", log) == ["1", "2"]
    assert "\x1b" not in log
