"""How a run ends: one line, one exit code, one status in results.json, whichever rank fails."""

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    EXIT_TERMINATED,
    EXIT_USER_ERROR,
    InterruptedRunError,
    RunFailedError,
    UserError,
    XrayError,
    one_line,
)
from xray_lightning.training.results import RUNNING, RunRecord
from xray_lightning.training.world import World

# The parent of launched ranks leaves its wish to stop in this file of the run folder: a signal to
# mpirun would kill the ranks before they could save.
STOP_FILE = ".stop"

_SIGNALS = {EXIT_INTERRUPTED: "Ctrl-C", EXIT_TERMINATED: "SIGTERM"}


def interrupted(exit_code: int) -> InterruptedRunError:
    """The error of a run that was asked to stop, by the signal that the exit code names."""
    return InterruptedRunError(f"interrupted by {_SIGNALS[exit_code]}", exit_code=exit_code)


@dataclass(frozen=True)
class Failure:
    """The first failure of a world, left in the run folder by the rank that met it."""

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
        stopped = self.exit_code in (EXIT_INTERRUPTED, EXIT_TERMINATED)
        return "interrupted" if stopped else "failed"

    def claim(self, folder: Path) -> bool:
        """Leave this failure in the folder; False when another rank was first."""
        try:
            handle = os.open(folder / self.FILE_NAME, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError:  # a folder that cannot be written: say it all the same
            return True
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(asdict(self), stream)
        return True

    @classmethod
    def read(cls, folder: Path) -> "Failure | None":
        """The failure that a rank has left in the folder."""
        try:
            return cls(**json.loads((folder / cls.FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def error(self) -> XrayError:
        """The error to raise where the world was started."""
        if self.exit_code == EXIT_USER_ERROR:
            return UserError(self.reason)
        if self.status == "interrupted":
            return InterruptedRunError(self.reason, exit_code=self.exit_code)
        return RunFailedError(self.reason)

    def record(self, folder: Path) -> None:
        """Put this failure into the folder's results.json, unless the run was settled before."""
        record = RunRecord.load(folder)
        if record is not None and record.status == RUNNING:
            with suppress(OSError):  # the line on the terminal must still come
                record.end(self.status, self.reason)
