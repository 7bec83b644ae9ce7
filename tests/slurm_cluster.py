"""A real Slurm on this machine alone: its own munged, controller and two nodes, in a folder.

Everything listens on free ports and on sockets of the folder, and ends with the `with` block.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from conftest import environment

from xray_lightning.training.strategies import die_with_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
NODES = ("node1", "node2")
START_SECONDS = 60.0

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,requeue_setup_env_fail
ReturnToService=2
OverTimeLimit=0
KillWait=30
JobRequeue=1
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Why no Slurm can be started here; empty where one can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"no {', '.join(absent)} here (slurm-wlm and munge)"
    return "" if os.geteuid() == 0 else "slurmd wants to be root"


def free_ports(count: int) -> list[int]:
    with_all = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in with_all]
    for one in with_all:
        one.close()
    return ports


@dataclass(frozen=True)
class Slurm:
    """A running cluster of two nodes with four CPUs each, which they share with this machine."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """What its commands need, and nothing of a job that may be around this process."""
        bare = {k: v for k, v in environment().items() if not k.startswith(("SLURM_", "PMI"))}
        path = f"{bare['PATH']}:/usr/sbin:/sbin"
        return bare | {"SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def run(
        self, *command: str, cwd: Path | None = None, timeout: float = 240, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, such as `srun`, to its end; one that does not end is killed."""
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=self.environ | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"{command} did not end: {out[-2000:]}{err[-2000:]}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def has_pmix(self) -> bool:
        """Whether `srun --mpi=pmix` finds its library."""
        return self.run("srun", "--mpi=pmix", "-n1", "true", timeout=60).returncode == 0

    def submit(
        self, script: Path, *arguments: str, options: Sequence[str] = (), cwd: Path, **env: str
    ) -> str:
        """Submit a batch script with its arguments; returns the job's number."""
        command = ["sbatch", "--parsable", *options, str(script), *arguments]
        done = self.run(*command, cwd=cwd, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ..."""
        said = self.run("scontrol", "show", "job", "--oneliner", number).stdout
        return dict(pair.split("=", 1) for pair in said.split() if "=" in pair)

    def wait(self, number: str, state: str, *, restarts: int = 0, timeout: float = 240) -> None:
        """Wait until a job that was queued again so often is in a state."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            job = self.job(number)
            if (job.get("JobState"), job.get("Restarts")) == (state, str(restarts)):
                return
            time.sleep(0.3)
        raise AssertionError(f"job {number} is {job.get('JobState')}: {self.logs()}")

    def logs(self) -> str:
        """The ends of what the daemons have logged."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


def _configure(folder: Path) -> None:
    for name in ("state", *(f"{kind}/{node}" for kind in ("spool", "tmp") for node in NODES)):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    port, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} CPUs=4"
        for node, own in zip(NODES, ports, strict=True)
    )
    text = CONFIGURATION.format(host=host, port=port, folder=folder, nodes=nodes)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)


def _daemons(folder: Path) -> list[Sequence[str]]:
    munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid"}
    munge |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    return [
        ["munged", "--foreground", *(f"--{key}={folder}/{name}" for key, name in munge.items())],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]


def _end(slurm: Slurm, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the daemons, and what they have started: all with this cluster's configuration."""
    for daemon in reversed(daemons):
        daemon.terminate()
    deadline = time.monotonic() + 10
    for daemon in daemons:
        with suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=max(0.1, deadline - time.monotonic()))
        daemon.kill()
        daemon.wait()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_CONF", "").startswith(f"{slurm.folder}/"):
                os.kill(process.pid, signal.SIGKILL)


@contextmanager
def started() -> Iterator[Slurm]:
    """A cluster that is ready for jobs.

    Raises:
        RuntimeError: it does not come up; the message has what the daemons say.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # munge wants an open path
    folder.chmod(0o755)
    slurm, daemons = Slurm(folder), []
    try:
        _configure(folder)
        for command in _daemons(folder):
            log = folder / f"{command[0]}{command[-1] if len(command) > 2 else ''}.log"
            name = log.name if command[0] != "munged" else "munged.log"
            with (folder / name).open("wb") as stream:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env=slurm.environ,
                        stdout=stream,
                        stderr=stream,
                        preexec_fn=partial(die_with_parent, parent=os.getpid()),
                    )
                )
            while command[0] == "munged" and not (folder / "munge.socket").exists():
                if daemons[-1].poll() is not None:
                    raise RuntimeError(f"munged ended: {slurm.logs()}")
                time.sleep(0.05)
        _await_nodes(slurm)
        yield slurm
    finally:
        _end(slurm, daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _await_nodes(slurm: Slurm) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        done = slurm.run("sinfo", "--noheader", "--Node", "--format=%T")
        if done.stdout.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.2)
    raise RuntimeError(f"Slurm's nodes do not come up: {done.stderr} {slurm.logs()}")
