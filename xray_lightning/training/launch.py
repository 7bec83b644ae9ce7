"""Launcher of ranks; gives a run a single outcome, whichever rank fails.

It starts mpirun or torchrun with a strategy's command line: see `training.mpi_command` and
`training.strategies`.
"""

import json
import logging
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from types import FrameType
from typing import IO, ClassVar, TextIO

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    EXIT_TERMINATED,
    EXIT_USER_ERROR,
    EXIT_WARNED,
    STOPPED,
    InterruptedRunError,
    RunFailedError,
    UserError,
    XrayError,
    one_line,
)
from xray_lightning.files import go_on_without
from xray_lightning.runs.results_json import RUNNING, RunRecord
from xray_lightning.training.mpi_command import TAG
from xray_lightning.training.strategies import World, die_with_parent

log = logging.getLogger(__name__)

# By this file in the run folder the launching process asks its ranks to stop: a signal to mpirun
# would kill the ranks before they could save.
STOP_FILE = ".stop"


def given_command() -> str:
    """The user's command line of the job, also in ranks that another train.py has started."""
    return os.environ.get("XRAY_COMMAND", shlex.join(["python", *sys.argv]))


def quoted(path: object) -> str:
    """A path as the value of one of Hydra's overrides."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


def job_command(
    program: str,
    *,
    config_name: object,
    overrides: Iterable[object],
    folder: object,
    options: Iterable[str] = (),
) -> list[str]:
    """The command line of a single job (no multirun) with the given run folder."""
    return [
        program,
        f"--config-name={config_name}",
        *options,
        *map(str, overrides),
        f"hydra.run.dir={quoted(folder)}",
        "hydra.mode=RUN",
    ]


exit_codes: list[int] = []  # of this process's jobs: one, or one for each job of a multirun

_NAMES = {EXIT_INTERRUPTED: "Ctrl-C", EXIT_TERMINATED: "SIGTERM", EXIT_WARNED: "SIGUSR1"}
SIGNALS = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
if sys.platform != "win32":
    SIGNALS[signal.SIGUSR1] = EXIT_WARNED


def interrupted(exit_code: int) -> InterruptedRunError:
    """The error of a run that was asked to stop, by the signal that the exit code names."""
    return InterruptedRunError(f"interrupted by {_NAMES[exit_code]}", exit_code=exit_code)


asked_to_stop: list[int] = []  # exit codes of the signals that `interruptible` has seen


def interruptible() -> None:
    """Make SIGTERM and SIGUSR1 raise InterruptedRunError, until `Interruption` handles them.

    By default they would end the process without a message. Ctrl-C is left to Python.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        asked_to_stop.append(SIGNALS[signal.Signals(number)])
        raise interrupted(asked_to_stop[-1])

    for number in SIGNALS.keys() - {signal.SIGINT}:
        signal.signal(number, stop)


def cause_of(error: BaseException) -> BaseException:
    """`error`, or the interruption by a signal that compiled code may have turned into it."""
    return interrupted(asked_to_stop[0]) if asked_to_stop else error


@dataclass(frozen=True)
class Failure:
    """The first failure of a job, written to the run folder by the rank on which it occurred."""

    FILE_NAME: ClassVar[str] = ".failure.json"

    reason: str
    exit_code: int

    @classmethod
    def of(cls, error: BaseException, world: World) -> "Failure":
        """The one line and the exit code of an error on this rank."""
        if isinstance(error, KeyboardInterrupt):
            error = interrupted(EXIT_INTERRUPTED)
        if isinstance(error, UserError | InterruptedRunError):
            return cls(one_line(error), error.exit_code)
        reason = one_line(error)
        if not isinstance(error, XrayError):
            reason = f"{type(error).__name__}: {reason}"
        if world.size > 1:
            reason = f"rank {world.rank} on {socket.gethostname()}: {reason}"
        return cls(reason, EXIT_RUN_FAILED)

    @property
    def status(self) -> str:
        return "interrupted" if self.exit_code in STOPPED else "failed"

    def claim(self, folder: Path) -> bool:
        """Write this failure to the folder; False if another rank has already written one.

        The file appears complete or not at all, since another rank, or another thread of this
        one, may read it and end the job at once.
        """
        path, content = folder / self.FILE_NAME, json.dumps(asdict(self)).encode()
        try:
            handle, own = tempfile.mkstemp(prefix=f"{self.FILE_NAME}.", dir=folder)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                try:
                    os.link(own, path)
                except FileExistsError:
                    return False
                except OSError:  # a file system without hard links
                    with path.open("xb") as stream:
                        stream.write(content)
            finally:
                os.unlink(own)
        except FileExistsError:
            return False
        except OSError:  # the folder cannot be written: report the failure all the same
            return True
        return True

    @classmethod
    def read(cls, folder: Path) -> "Failure | None":
        """The failure that a rank has written to the folder; None if there is none."""
        try:
            return cls(**json.loads((folder / cls.FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def error(self) -> XrayError | InterruptedRunError:
        """The error to raise where the world was started."""
        if self.exit_code == EXIT_USER_ERROR:
            return UserError(self.reason)
        if self.status == "interrupted":
            return InterruptedRunError(self.reason, exit_code=self.exit_code)
        return RunFailedError(self.reason)

    def record(self, folder: Path) -> None:
        """Put this failure into the folder's results.json, unless its status is already final."""
        record = RunRecord.load(folder)
        if record is not None and record.status == RUNNING:
            with suppress(OSError):  # the error line must still be printed
                record.end(self.status, self.reason)


LINGER_SECONDS = 10.0  # how long a launcher may run on after a rank has recorded a failure
SETTLE_SECONDS = 20.0  # in which rank 0's host has to set the record's final status
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
_LOST = re.compile(
    r"lost communication with a remote daemon\. .{0,200}Remote daemon: \S+ on node (?P<host>\S+)"
)


def launch(
    command: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    tagged: bool = False,
    leads: bool = True,
) -> None:
    """Run the job's ranks to their end.

    A launcher's exit code says little: mpirun may return 0 when a host is lost. A run has
    succeeded when the launcher returned 0 and rank 0 has written a finished record.

    Args:
        tagged: whether each line of output begins with its rank's tag. Rank 0's lines are passed
            on without it; those of other ranks go to the log with their rank.
        leads: whether this host has rank 0, and so removes leftover files from the folder.

    Raises:
        InterruptedRunError: it was stopped by Ctrl-C, SIGTERM or SIGUSR1.
        RunFailedError, UserError: what the failing rank said.
    """
    for name in (STOP_FILE, Failure.FILE_NAME) if leads else ():
        (folder / name).unlink(missing_ok=True)
    watch = _Watch(folder)
    with watch.signals():
        # In a session of its own: Ctrl-C reaches this process alone, which lets the ranks save.
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdout=subprocess.PIPE if tagged else None,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=partial(die_with_parent, parent=os.getpid()),
        )
        readers = [Thread(target=watch.copy_errors, args=(process.stderr,), daemon=True)]
        if tagged:
            readers += [Thread(target=_copy_output, args=(process.stdout,), daemon=True)]
        for reader in readers:
            reader.start()
        exit_code = watch.wait(process)
        for reader in readers:
            reader.join(timeout=2)
    if leads:
        (folder / STOP_FILE).unlink(missing_ok=True)
    _raise_unless_finished(folder, exit_code, watch, leads=leads)


def _copy_output(stream: IO[str]) -> None:
    for line in stream:
        _pass_on(line, sys.stdout)


def _pass_on(line: str, stream: TextIO) -> None:
    """Write a line of rank 0 or the launcher, without a tag; log another rank's with its rank."""
    tag = TAG.match(line)
    if tag is not None and tag["rank"] != "0":
        log.info("rank %s: %s", tag["rank"], line[tag.end() :].rstrip())
    else:
        try:
            stream.write(line[tag.end() :] if tag else line)
            stream.flush()
        except OSError as error:  # keep reading the ranks' lines: a full pipe would block them
            go_on_without(stream, error)


class _Watch:
    """Waits for the launcher, passes stop signals on by file, and kills a lingering launcher."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.stop_code = 0
        self.failure: Failure | None = None
        self.lines: list[str] = []

    def signals(self) -> ExitStack:
        """Answer SIGINT, SIGTERM and SIGUSR1 while the ranks run."""
        stack = ExitStack()
        for number in SIGNALS:
            before = signal.signal(number, self._on_signal)
            stack.callback(signal.signal, number, before)
        return stack

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        exit_code = SIGNALS[signal.Signals(number)]
        if self.stop_code == EXIT_WARNED and exit_code != EXIT_INTERRUPTED:
            return  # the cluster ends the job, as it has warned; the ranks are saving
        if self.stop_code:  # the second time: at once
            self._kill()
            return
        self.stop_code = exit_code
        try:
            (self._folder / STOP_FILE).write_text(str(self.stop_code))
        except OSError:  # a full disk: the ranks cannot be told, nor could they save
            self._kill()

    def copy_errors(self, stream: IO[str]) -> None:
        """Pass stderr on until a rank has recorded a failure; keep the last lines for diagnosis."""
        for line in stream:
            self.lines = [*self.lines[-LAST_LINES:], line]
            if not self._settled():
                _pass_on(line, sys.stderr)

    def wait(self, process: subprocess.Popen[str]) -> int:
        self._process = process
        deadline = math.inf
        while True:
            try:
                return process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if self._settled():
                    deadline = min(deadline, monotonic() + LINGER_SECONDS)
                if monotonic() > deadline:
                    self._kill()

    def _settled(self) -> bool:
        self.failure = self.failure or Failure.read(self._folder)
        return self.failure is not None

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _raise_unless_finished(folder: Path, exit_code: int, watch: _Watch, *, leads: bool) -> None:
    failure = Failure.read(folder) or watch.failure  # rank 0's host may have removed the file
    if leads:
        (folder / Failure.FILE_NAME).unlink(missing_ok=True)
    record = RunRecord.load(folder) if leads or failure is not None else _settled_record(folder)
    death = _death(watch.lines)
    # After one rank's failure a launcher ends the others by SIGTERM: that is not the cause.
    ended = failure is not None and "signal 15" in death
    if death and not watch.stop_code and not ended:
        raise RunFailedError(death)  # other ranks' errors are consequences of it
    if failure is not None:
        raise failure.error()
    if watch.stop_code:
        raise interrupted(watch.stop_code)
    if host := _lost_host(watch.lines):
        raise RunFailedError(
            f"{host} has not answered mpirun: its host or network is gone; go on with "
            f"resume={shortest(folder)} on the hosts that are left"
        )
    if record is None or record.status == RUNNING or exit_code:
        code = exit_code or EXIT_RUN_FAILED
        raise RunFailedError(f"the ranks ended with exit code {code} before rank 0 was done")


def _settled_record(folder: Path) -> RunRecord | None:
    """The record, once rank 0's host has set its final status, a moment after the ranks end."""
    deadline = monotonic() + SETTLE_SECONDS
    while True:
        record = RunRecord.load(folder)
        if record is None or record.status != RUNNING or monotonic() > deadline:
            return record
        sleep(POLL_SECONDS)


def shortest(folder: Path) -> Path:
    """The folder relative to the working directory if it is below that, else unchanged."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _lost_host(lines: Sequence[str]) -> str:
    """The host that Open MPI's mpirun reports as lost, perhaps before any rank does; else empty."""
    found = _LOST.search(" ".join(" ".join(lines).split()))
    return found["host"] if found else ""


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
