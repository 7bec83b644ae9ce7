"""Slurm job and job step of this process: tasks, rendezvous address, and requeueing.

Nothing here needs PMI: plain `srun` tells each task its rank, and the tasks meet on the step's
first node. A job that is stopped before its end asks Slurm to requeue it; when it is started again,
it finds its run by the job number.
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

RESERVED_STEPS = 0xFFFFFFF0  # from here on: numbers of Slurm's own steps, such as a shell's
FIRST_PORT, PORTS = 15000, 10000
SCONTROL_SECONDS = 30.0
# A SIGTERM this close to the job's time limit is Slurm's warning (`#SBATCH --signal=TERM@60`).
WARNING_SECONDS = 900.0
NOTES = Path("runs") / ".slurm"  # notes of which run folder a job's command uses
# File in a run folder: in this start of the job a rank has decided whether to requeue it.
SETTLED = ".settled"
AWAITED_SECONDS = 10.0  # in which the first rank to stop decides on requeueing, else another does


@dataclass(frozen=True)
class Step:
    """The tasks that one `srun` has started, and which of them this process is.

    Attributes:
        job: the job's number.
        number: the step's number within the job.
        nodes: the step's nodes in Slurm's notation: `node[1-4,7]`.
        tasks: number of tasks on each node in Slurm's notation: `2(x3),1`.
    """

    job: int
    number: int
    rank: int
    size: int
    nodes: str
    tasks: str

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "Step | None":
        """The step of this process; None outside of a step, and in Slurm's own steps."""
        number = environ.get("SLURM_STEP_ID", "")
        if not number.isdecimal() or int(number) >= RESERVED_STEPS:
            return None
        try:
            return cls(
                job=int(environ["SLURM_JOB_ID"]),
                number=int(number),
                rank=int(environ["SLURM_PROCID"]),
                # SLURM_NTASKS may be the job's number of tasks, not the step's.
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
        except OSError:  # the name does not resolve here; Slurm may know an address
            said = scontrol("show", "node", name)
            found = re.search(r"NodeAddr=(\S+)", said)
            return found[1] if found else name
        return name

    @property
    def port(self) -> int:
        """MASTER_PORT, or a port that every task derives from the job and step numbers."""
        chosen = os.environ.get("MASTER_PORT", "")
        if chosen.isdecimal():
            return int(chosen)
        return FIRST_PORT + (self.job + 1009 * self.number) % PORTS


def first_node(nodes: str) -> str:
    """The first node of a list in Slurm's notation: `gpu07` of `gpu[07-09],cpu1`."""
    found = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def scontrol(*arguments: str) -> str:
    """What `scontrol` prints.

    Raises:
        OSError: it cannot be run, does not answer, or fails; the message quotes its stderr.
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
            # One task's SLURM_JOB_ID is that of the whole array.
            name = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
        else:
            name = environ.get("SLURM_JOB_ID", "")
        if re.fullmatch(r"\d+(_\d+)?", name) is None:
            return None
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        return cls(name, int(restarts) if restarts.isdecimal() else 0)

    def requeue(self, *, warned: bool, folder: Path | None = None) -> str:
        """Requeue the job, which ends it; returns the outcome as a message for the log.

        Args:
            folder: the run folder, by a file in which the other ranks learn of the decision.
            warned: whether the signal was SIGUSR1, which asks for requeueing. SIGTERM may also come
                from `scancel`: then the job is requeued only near its time limit or if preempted.
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
        """Wait for another rank's `requeue`: if this task ended now, srun might kill that rank.

        Returns:
            Whether that rank has decided; False without a folder.
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
