"""Slurm job and step that this process is part of: their tasks, where these meet, and requeueing.

Nothing here needs PMI: plain `srun` tells each task its rank, and they meet on the step's first
node. A job that is stopped before its end asks Slurm to queue it again, and finds its run by the
job's number when it is started again.
"""

import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep

from xray_lightning.errors import UserError, one_line
from xray_lightning.files import write_atomically

RESERVED_STEPS = 0xFFFFFFF0  # from here on: Slurm's own steps, such as an interactive shell's
FIRST_PORT, PORTS = 15000, 10000
SCONTROL_SECONDS = 30.0
# A SIGTERM so shortly before a job's end is its warning (`#SBATCH --signal=TERM@60`).
WARNING_SECONDS = 900.0
NOTES = Path("runs") / ".slurm"  # which run a job is at
# In a run folder: a rank has asked for the job to be queued again, or not, in this start of it.
SETTLED = ".settled"
AWAITED_SECONDS = 10.0  # in which the rank that leads settles it, else others do


@dataclass(frozen=True)
class Step:
    """The tasks that one `srun` has started, and which of them this process is.

    Attributes:
        job: the job's number.
        number: of the step in its job.
        nodes: the step's, as Slurm writes them: `node[1-4,7]`.
        tasks: of each node, as Slurm writes them: `2(x3),1`.
    """

    job: int
    number: int
    rank: int
    size: int
    nodes: str
    tasks: str

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "Step | None":
        """The step of this process; None outside of one, and in Slurm's own."""
        number = environ.get("SLURM_STEP_ID", "")
        if not number.isdecimal() or int(number) >= RESERVED_STEPS:
            return None
        try:
            return cls(
                job=int(environ["SLURM_JOB_ID"]),
                number=int(number),
                rank=int(environ["SLURM_PROCID"]),
                # Beside it, SLURM_NTASKS may be the job's.
                size=int(environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]),
                nodes=environ.get("SLURM_STEP_NODELIST", ""),
                tasks=environ.get("SLURM_STEP_TASKS_PER_NODE", ""),
            )
        except (KeyError, ValueError):
            return None

    @property
    def tasks_per_node(self) -> list[int]:
        """How many tasks each node has.

        Raises:
            UserError: Slurm does not say.
        """
        counts: list[int] = []
        for part in self.tasks.split(","):
            found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
            if found is None:
                raise UserError(f"SLURM_STEP_TASKS_PER_NODE={self.tasks} is not understood")
            counts += [int(found[1])] * int(found[2] or 1)
        return counts

    @property
    def address(self) -> str:
        """Where the tasks meet: MASTER_ADDR, or the step's first node."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if len(self.tasks_per_node) == 1:
            return "127.0.0.1"
        name = first_node(self.nodes)
        try:
            socket.getaddrinfo(name, None)
        except OSError:  # Slurm itself may know the node by another name
            said = scontrol("show", "node", name)
            found = re.search(r"NodeAddr=(\S+)", said)
            return found[1] if found else name
        return name

    @property
    def port(self) -> int:
        """MASTER_PORT, or one that each task can tell from the job's number."""
        chosen = os.environ.get("MASTER_PORT", "")
        if chosen.isdecimal():
            return int(chosen)
        return FIRST_PORT + (self.job + 1009 * self.number) % PORTS


def first_node(nodes: str) -> str:
    """`gpu07` of `gpu[07-09],cpu1`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def scontrol(*arguments: str) -> str:
    """What `scontrol` prints.

    Raises:
        OSError: it cannot be run, or refuses; the message has its words.
    """
    try:
        done = subprocess.run(
            ["scontrol", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SCONTROL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"scontrol has not answered for {SCONTROL_SECONDS:.0f} s") from error
    if done.returncode:
        raise OSError(" ".join(done.stderr.split()) or f"scontrol ended with {done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process is part of.

    Attributes:
        name: its number, `12`, or `12_3` in an array.
        restarts: how often it was queued again.
    """

    name: str
    restarts: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "SlurmJob | None":
        """The job of this process; None outside of one."""
        if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
            # A task's own number may be the whole array's.
            name = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
        else:
            name = environ.get("SLURM_JOB_ID", "")
        if re.fullmatch(r"\d+(_\d+)?", name) is None:
            return None
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        return cls(name, int(restarts) if restarts.isdecimal() else 0)

    def requeue(self, *, warned: bool, folder: Path | None = None) -> str:
        """Have the job queued again, which ends it; returns what came of it, for the log.

        Args:
            folder: of the run, where the other ranks wait for this.
            warned: by SIGUSR1, which means this. Otherwise it was SIGTERM, which may also be
                `scancel`: then the job is queued again only where its time is up.
        """
        again = "" if folder is None else f"; resume={os.path.relpath(folder)} goes on"
        try:
            if not warned and not self._time_is_up():
                return f"Slurm job {self.name} was cancelled, and is not queued again{again}"
            scontrol("requeue", self.name)
        except OSError as error:
            return f"Slurm job {self.name} is not queued again ({one_line(error)}){again}"
        finally:
            if folder is not None:
                with suppress(OSError):
                    (folder / SETTLED).write_text(self._start)
        return f"Slurm job {self.name} is queued again, and goes on with this run"

    def await_requeue(self, folder: Path | None, *, seconds: float) -> bool:
        """Wait for another rank's `requeue`: where one task of srun ends, the others may be killed.

        Returns:
            Whether it came; without a folder that is not known.
        """
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            with suppress(OSError):
                if folder is not None and (folder / SETTLED).read_text() == self._start:
                    return True
            sleep(0.1)
        return False

    @property
    def _start(self) -> str:
        return f"{self.name} {self.restarts}"

    def _time_is_up(self) -> bool:
        said = scontrol("show", "job", "--oneliner", self.name)
        fields = dict(re.findall(r"(\w+)=(\S*)", said))
        if fields.get("JobState") != "RUNNING":
            return fields.get("JobState") in ("TIMEOUT", "PREEMPTED")
        try:
            end = datetime.fromisoformat(fields["EndTime"])
        except (KeyError, ValueError):  # no limit
            return False
        return (end - datetime.now()).total_seconds() < WARNING_SECONDS

    def _note(self, command: str) -> Path:
        # A job may run several commands, one after another or in several steps.
        return NOTES / f"{self.name}-{sha256(command.encode()).hexdigest()[:12]}.json"

    def note(self, command: str, folder: Path) -> None:
        """Remember the run folder of a command of this job."""
        path = self._note(command)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"folder": str(folder)}) + "\n")

    def noted(self, command: str) -> Path | None:
        """The run folder that the command had when the job was stopped; None at its first start."""
        if not self.restarts:
            return None
        try:
            folder = Path(json.loads(self._note(command).read_text(encoding="utf-8"))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return folder if (folder / ".hydra" / "overrides.yaml").is_file() else None

    def forget(self, command: str) -> None:
        """Drop the note of a command that is done."""
        self._note(command).unlink(missing_ok=True)
