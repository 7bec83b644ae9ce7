"""Long work is shown after two seconds, short work never; log lines go above a live bar."""

import io
import logging
import subprocess
import sys
import time

import pytest

from xray_lightning import progress
from xray_lightning.progress import StdoutHandler, display


def test_short_work_shows_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with display("decoding images", 10) as advance:
        advance(10)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_long_work_leaves_two_lines_in_a_log_and_no_bar(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with display("decoding images", 30) as advance:
        advance(10)
        while not caplog.messages:  # it shows itself, also while nothing is done
            time.sleep(0.001)
        advance(20)
    first, last = caplog.messages
    assert first == "decoding images: 30 ..."
    assert last.startswith("decoding images: 30 in ")
    assert last.endswith(" images/s")
    assert capfd.readouterr() == ("", "")


def test_work_that_fails_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 60.0)
    with pytest.raises(ValueError, match="odd"), display("decoding images", 30):
        raise ValueError("odd")


def test_a_log_line_goes_to_what_stdout_is_at_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.Logger("test")
    logger.addHandler(StdoutHandler())
    for _ in range(2):
        now = io.StringIO()
        monkeypatch.setattr(sys, "stdout", now)
        logger.warning("here")
        assert now.getvalue() == "here\n"


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, xray_lightning.progress, xray_lightning.files\n"
        "heavy = {'torch', 'lightning', 'pandas', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
