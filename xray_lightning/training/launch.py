"""Start the ranks of a job with mpirun or torchrun, watch over them, and tell how it ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from time import monotonic
from types import FrameType
from typing import IO

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    EXIT_TERMINATED,
    RunFailedError,
)
from xray_lightning.training.results import RUNNING, RunRecord
from xray_lightning.training.settle import STOP_FILE, Failure, interrupted

LINGER_SECONDS = 30.0  # how long a launcher may stay after the run's record was settled
POLL_SECONDS = 0.2
LAST_LINES = 40  # of the launcher's own messages, kept to find out what ended a rank

# prterun's and MPICH's words for a rank that died, and torchrun's.
_DEATHS = (
    re.compile(
        r"process rank (?P<rank>\d+) with PID \d+ on node (?P<host>\S+) exited on\s+signal"
        r" (?P<cause>\d+ \([^)]*\))"
    ),
    re.compile(
        r"host\s*: (?P<host>\S+) rank\s*: (?P<rank>\d+) .{0,40}exitcode\s*: (?P<cause>-\d+)"
    ),
)


def launch(command: Sequence[str], *, folder: Path, environ: Mapping[str, str]) -> None:
    """Run the job's ranks to their end.

    A launcher's exit code says little: mpirun may return 0 when a host is lost. A run has
    succeeded when the launcher returned 0 and rank 0 has written a finished record.

    Raises:
        InterruptedRunError: it was stopped by Ctrl-C or SIGTERM.
        RunFailedError, UserError: what the failing rank said.
    """
    for name in (STOP_FILE, Failure.FILE_NAME):
        (folder / name).unlink(missing_ok=True)
    watch = _Watch(folder)
    with watch.signals():
        # In a session of its own: Ctrl-C reaches this process alone, which lets the ranks save.
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = Thread(target=watch.copy_errors, args=(process.stderr,), daemon=True)
        reader.start()
        exit_code = watch.wait(process)
        reader.join(timeout=2)
    (folder / STOP_FILE).unlink(missing_ok=True)
    _raise_unless_finished(folder, exit_code, watch)


class _Watch:
    """Waits for the launcher, forwards the wish to stop, and ends a launcher that lingers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._settled_at: float | None = None
        self.stop_code = 0
        self.lines: list[str] = []

    def signals(self) -> "contextlib.ExitStack":
        """Answer SIGINT and SIGTERM while the ranks run."""
        stack = contextlib.ExitStack()
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._on_signal)
            stack.callback(signal.signal, number, before)
        return stack

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_code:  # the second time: at once
            self._kill()
            return
        self.stop_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        (self._folder / STOP_FILE).write_text(str(self.stop_code))

    def copy_errors(self, stream: IO[str]) -> None:
        """Pass the ranks' stderr on, and remember the launcher's last words."""
        for line in stream:
            self.lines = [*self.lines[-LAST_LINES:], line]
            if not self._settled():
                sys.stderr.write(line)

    def wait(self, process: subprocess.Popen[str]) -> int:
        self._process = process
        while True:
            try:
                return process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self._settled() and self._settled_at is None:
                    self._settled_at = monotonic()
                if self._settled_at and monotonic() > self._settled_at + LINGER_SECONDS:
                    self._kill()

    def _settled(self) -> bool:
        return (self._folder / Failure.FILE_NAME).exists()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _raise_unless_finished(folder: Path, exit_code: int, watch: _Watch) -> None:
    failure = Failure.read(folder)
    (folder / Failure.FILE_NAME).unlink(missing_ok=True)
    record = RunRecord.load(folder)
    death = _death(watch.lines)
    # A launcher ends the other ranks of one that has failed by SIGTERM: that is no cause.
    ended = failure is not None and "signal 15" in death
    if death and not watch.stop_code and not ended:
        raise RunFailedError(death)  # what the other ranks say came of it
    if failure is not None:
        raise failure.error()
    if watch.stop_code:
        raise interrupted(watch.stop_code)
    if record is None or record.status == RUNNING or exit_code:
        code = exit_code or EXIT_RUN_FAILED
        raise RunFailedError(f"the ranks ended with exit code {code} before rank 0 was done")


def _death(lines: Sequence[str]) -> str:
    """What the launcher said of a rank that a signal ended; empty if it said nothing."""
    text = " ".join(" ".join(lines).split())
    for pattern in _DEATHS:
        found = pattern.search(text)
        if found:
            return (
                f"rank {found['rank']} on {found['host']} was ended by signal "
                f"{found['cause'].lstrip('-')}; was it out of memory, or killed?"
            )
    return ""
