"""Kills of an operation in a forked process: at its n-th call, or at the n-th byte of a file."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from kills.operations import Operation

# Audited events that change the disk; of `open`, those that write.
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link")
CALLS = ("write", "pwrite", "fsync", "close", "ftruncate")  # of os, which are not audited


@dataclass
class Tally:
    """What came of kills, and how many calls there were to kill at."""

    calls: int = 0
    kills: int = 0
    corrupt: list[str] = field(default_factory=list)
    not_gone_on: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


def killed_at_call(number: int, counted_in: Path | None = None) -> Callable[[], None]:
    """Arm this process: SIGKILL before its n-th call that changes the disk.

    Args:
        counted_in: grows by a byte a call.
    """

    def arm() -> None:
        left = number
        tally = None if counted_in is None else counted_in.open("wb", buffering=0)

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if tally is not None:
                tally.write(b".")

        def audited(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            if writes or event in EVENTS:
                count()

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **further: Any) -> Any:
                count()
                return real(*given, **further)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        sys.addaudithook(audited)

    return arm


def killed_at_byte(byte: int) -> Callable[[], None]:
    """Arm this process: the kernel ends it when a file would grow beyond so many bytes."""

    def arm() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores

    return arm


def in_child(work: Callable[[], object], arm: Callable[[], None] = lambda: None) -> int:
    """Do the work in a fork; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            arm()
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 - the parent tells
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@dataclass(frozen=True)
class Kills:
    """Kills of one operation, always in the same folder: a cache's key knows its place."""

    operation: Operation
    base: Path
    tally: Tally = field(default_factory=Tally)

    def begin(self) -> int:
        """Lay out the folder and keep a copy of it; do the operation once, and keep that too.

        Returns:
            How many calls it made that change the disk.
        """
        self.folder.mkdir(parents=True)
        self.operation.begin(self.folder)
        shutil.copytree(self.folder, self.base / "begun")
        count = self.base / "calls"
        arm = killed_at_call(sys.maxsize, counted_in=count)
        assert in_child(lambda: self.operation.act(self.folder), arm) == 0
        self.operation.state(self.folder)
        shutil.copytree(self.folder, self.base / "done")
        return count.stat().st_size

    @property
    def folder(self) -> Path:
        return self.base / "folder"

    def kill_and_go_on(self, arm: Callable[[], None], where: str) -> bool:
        """One kill, and the operation again; returns False where it ended before it was killed."""
        done = self.state_of_done()
        self.restore("begun")
        code = in_child(lambda: self.operation.act(self.folder), arm)
        if code == 0:
            return False
        assert code in (-signal.SIGKILL, -signal.SIGXFSZ), f"{where}: exit code {code}"
        self.tally.kills += 1
        try:
            self.operation.state(self.folder)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises, the file is none
            self.tally.corrupt.append(f"{where}: {error!r}")
        again = in_child(lambda: self.operation.act(self.folder))
        try:
            right = again == 0 and self.operation.state(self.folder) == done
        except Exception:  # noqa: BLE001
            right = False
        if not right:
            self.tally.not_gone_on.append(where)
        strays = files_in(self.folder) - files_in(self.base / "done")
        self.tally.strays += [f"{where}: {name}" for name in sorted(strays)]
        return True

    def state_of_done(self) -> object:
        self.restore("done")
        return self.operation.state(self.folder)

    def restore(self, copy: str) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.base / copy, self.folder)


def kills_of(operation: Operation, base: Path, *, most: int, seed: int = 0) -> Tally:
    """Kill an operation at each of its calls, and then in the middle of a write, `most` times.

    Of more calls than that, so many are drawn.
    """
    kills = Kills(operation, base)
    kills.tally.calls = kills.begin()
    calls = range(1, kills.tally.calls + 1)
    random = Random(seed)
    for call in calls if len(calls) <= most else sorted(random.sample(calls, most)):
        kills.kill_and_go_on(killed_at_call(call), f"call {call}")
    sizes = [p.stat().st_size for p in (base / "done").rglob("*") if p.is_file()]
    tries = 0
    while kills.tally.kills < most and tries < 3 * most:
        byte = random.randrange(1, max(sizes))
        kills.kill_and_go_on(killed_at_byte(byte), f"byte {byte}")
        tries += 1
    return kills.tally
