"""Training on several hosts: mpirun and torchrun between network namespaces of this machine.

Each host has its own network, name and mounts. As on Debian it resolves its own name to a loopback
address, and it has a further network in which all have the same address.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import IMAGES, TRAIN_PY, Ended, Once, environment, flags_first, small_run
from test_faults import FAULTS, FAULTY, failed, steps
from test_ranks import EXACT, distance, untrained, weights

from benchmarks.network_hosts import Host, lacking, network, wait_for
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking()), reason=f"makes hosts of its own: {lacking()}"),
]

LIMIT = 240.0  # seconds in which every job must have ended, on a busy machine
FITTED = (*EXACT, "data.batch_size=15", "data.cache=off")
SYNCED = "strategy.sync_batchnorm=true"
SLOW = (
    *("+callbacks.fault.kind=slow", "data.batch_size=6", "data.cache=off"),
    "strategy.heartbeat=10",
)
MPICH = os.environ.get("XRAY_TEST_MPICH", "")  # `pip install mpich --target` this folder


class Jobs:
    """Starts one command on one host or more, and waits for its end on each."""

    def __init__(self, folder: Path, phantoms: Path) -> None:
        self.folder = folder
        self.phantoms = phantoms
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self,
        host: Host,
        *overrides: str,
        before: Sequence[str] = (),
        defaults: bool = True,
        **env: str,
    ) -> None:
        small = small_run(self.phantoms, self.folder) if defaults else []
        command = [*before, sys.executable, TRAIN_PY, *flags_first([*small, *overrides])]
        process = host.start(command, folder=self.folder, env=environment(**env))
        self.started.append(process)

    def ended(self) -> list[Ended]:
        done = []
        for process in self.started:
            out, err = process.communicate(timeout=LIMIT)
            done.append(Ended(process.returncode, out, err, self.folder))
        self.started = []
        return done


@pytest.fixture
def jobs(tmp_path: Path, phantoms: Path) -> Iterator[Jobs]:
    (tmp_path / "faults.py").write_text(FAULTS)
    made = Jobs(tmp_path, phantoms)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Three hosts, on which nothing may run at the end of a test that has passed."""
    with network(3) as made:
        yield made


@pytest.fixture(scope="session")
def alone(once: Once, phantoms: Path) -> Path:
    """The run folder of one process, for its weights."""

    def fill(folder: Path) -> None:
        options = [*small_run(phantoms, folder), *FITTED, "hydra.run.dir=run"]
        ended = Ended.of([sys.executable, TRAIN_PY, *options], folder)
        assert ended.exit_code == 0, ended.stderr

    return once("alone", fill) / "run"


def nothing_runs_on(hosts: Sequence[Host]) -> bool:
    # The daemons of a host that was cut off find out a moment later.
    return wait_for(lambda: not any(host.processes() for host in hosts), seconds=40)


def equals(run: Path, alone: Path) -> None:
    """Assert that a run has reached the weights of one process."""
    path = distance(weights(alone), untrained())
    assert path > 1e-3
    assert distance(weights(alone), weights(run)) < 1e-2 * path


def trained(ended: Ended, alone: Path, *, hosts: int) -> None:
    assert ended.exit_code == 0, ended.stderr
    (result,) = ended.results  # one run folder, rank 0's
    assert result["status"] == "finished"
    assert result["environment"]["world_size"] == hosts
    assert result["environment"]["hosts"] == [f"node{n}" for n in range(1, hosts + 1)]
    equals(ended.runs[0], alone)


def over_mpi(hosts: Sequence[Host], *further: str) -> list[str]:
    names = ",".join(host.name for host in hosts)
    return [
        "strategy=mpi",
        f"strategy.hosts=[{names}]",
        f"strategy.agent={hosts[0].agent}",
        *further,
    ]


def test_two_hosts_over_mpi_reach_the_weights_of_one_process(
    hosts: list[Host], jobs: Jobs, alone: Path
) -> None:
    jobs.start(hosts[0], *FITTED, *over_mpi(hosts[:2], SYNCED))
    (ended,) = jobs.ended()
    trained(ended, alone, hosts=2)
    shown = [line.split("│") for line in ended.stdout.splitlines() if "10.77.0." in line]
    assert [(row[1].strip(), row[2].strip(), row[4].strip()) for row in shown] == [
        ("0", "node1", "10.77.0.1"),
        ("1", "node2", "10.77.0.2"),
    ]
    assert nothing_runs_on(hosts)


def test_three_hosts_of_a_hostfile_over_mpi_and_ssh_reach_the_weights_of_one_process(
    hosts: list[Host], jobs: Jobs, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "hostfile").write_text("node1 slots=1\n# the others\nnode2:1\nnode3\n")
    with ssh_daemons(hosts, tmp_path / "ssh") as agent:
        options = ["strategy=mpi", "strategy.hosts=hostfile", f"strategy.agent='{agent}'"]
        jobs.start(hosts[0], *FITTED, *options, SYNCED)
        (ended,) = jobs.ended()
    trained(ended, alone, hosts=3)


@contextmanager
def ssh_daemons(hosts: Sequence[Host], folder: Path) -> Iterator[str]:
    """An sshd on each host, with keys of its own; yields the client's command."""
    for program in ("ssh", "ssh-keygen", "sshd"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH")
    folder.mkdir()
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    settings = (
        *("-f", "/dev/null", "-h", str(folder / "host")),
        *("-o", f"AuthorizedKeysFile={folder / 'user.pub'}", "-o", "StrictModes=no"),
        *("-o", "PermitRootLogin=yes", "-o", "UsePAM=no", "-o", "PidFile=none"),
    )
    daemons = []
    for host in hosts:
        if not Path("/run/sshd").exists():  # where it would run unprivileged
            host.run(["sh", "-c", "mount -t tmpfs none /run && mkdir /run/sshd"])
        daemon = [str(shutil.which("sshd")), "-D", *settings]
        daemons.append(host.start(daemon, folder=folder, env=os.environ))
    log_in = ("-i", str(folder / "user"), "-F", "none", "-o", "StrictHostKeyChecking=no")
    known = f"UserKnownHostsFile={folder / 'known'}"
    try:
        yield shlex.join(["ssh", *log_in, "-o", known, "-o", "LogLevel=ERROR"])
    finally:
        for process in daemons:
            process.kill()
            process.communicate()


def test_two_hosts_over_torchrun_reach_the_weights_of_one_process(
    hosts: list[Host], jobs: Jobs, alone: Path
) -> None:
    for rank, host in enumerate(hosts[:2]):
        options = ("strategy=ddp", "strategy.nodes=2", f"strategy.node_rank={rank}", SYNCED)
        jobs.start(host, *FITTED, *options, "strategy.address=node1")
    first, second = jobs.ended()
    trained(first, alone, hosts=2)
    assert second.exit_code == 0, second.stderr
    assert nothing_runs_on(hosts)


def test_three_hosts_of_ones_own_torchrun_reach_the_weights_of_one_process(
    hosts: list[Host], jobs: Jobs, alone: Path
) -> None:
    meeting = ("--rdzv-backend=c10d", "--rdzv-endpoint=node1:29400", "--rdzv-id=run")
    torchrun = ("torchrun", "--no-python", "--nnodes=3", "--nproc-per-node=1", *meeting)
    for host in hosts:
        jobs.start(host, *FITTED, "strategy=ddp", SYNCED, before=torchrun)
    ended = jobs.ended()
    trained(ended[0], alone, hosts=3)
    assert [one.exit_code for one in ended] == [0, 0, 0]


@pytest.mark.skipif(
    not MPICH, reason="XRAY_TEST_MPICH names no folder of `pip install mpich --target FOLDER`"
)
def test_two_hosts_over_mpich_reach_the_weights_of_one_process(
    hosts: list[Host], jobs: Jobs, alone: Path
) -> None:
    path = f"{MPICH}/bin{os.pathsep}{environment()['PATH']}"
    jobs.start(
        hosts[0],
        *FITTED,
        *over_mpi(hosts[:2], SYNCED),
        PATH=path,
        LD_LIBRARY_PATH=f"{MPICH}/lib",
        MPI4PY_LIBMPI=f"{MPICH}/lib/libmpi.so.12",
    )
    (ended,) = jobs.ended()
    trained(ended, alone, hosts=2)
    assert "MPICH" in ended.results[0]["environment"]["mpi"]


def in_fit(jobs: Jobs, ranks: int) -> dict[int, int]:
    """The processes of the ranks, once all of them train."""
    wait_for(
        lambda: (
            len(dict(steps(jobs.folder))) >= ranks
            or any(process.poll() is not None for process in jobs.started)
        ),
        seconds=LIMIT,
    )
    found = dict(steps(jobs.folder))
    assert len(found) == ranks, [process.poll() for process in jobs.started]
    return found


def test_fault_05_a_host_that_is_cut_off_ends_the_job_and_resume_goes_on_with_those_left(
    hosts: list[Host], jobs: Jobs
) -> None:
    options = (*SLOW, "trainer.max_epochs=50", "+trainer.val_check_interval=2")
    jobs.start(hosts[0], *FAULTY, *options, *over_mpi(hosts), PYTHONPATH=str(jobs.folder))
    in_fit(jobs, 3)
    checkpoint = "runs/*/checkpoints/last.ckpt"
    assert wait_for(lambda: any(jobs.folder.glob(checkpoint)), seconds=LIMIT)
    hosts[2].cut()
    (ended,) = jobs.ended()
    error = failed(ended, exit_code=1, status="failed")
    assert "node3 has not answered" in error  # its rank, or to mpirun its daemon
    assert nothing_runs_on(hosts)
    (run,) = ended.runs
    assert f"resume={run.relative_to(jobs.folder)}" in error
    left = over_mpi(hosts[:2], f"resume={run}", "~callbacks.fault", "trainer.max_epochs=3")
    jobs.start(hosts[0], *left, defaults=False)
    (resumed,) = jobs.ended()
    assert resumed.exit_code == 0, resumed.stderr
    (result,) = resumed.results
    assert result["environment"]["hosts"] == ["node1", "node2"]
    assert [row["epoch"] for row in result["history"]][-1] == 2


def test_a_host_that_mpirun_misses_first_is_named(hosts: list[Host], jobs: Jobs) -> None:
    late = ("strategy.heartbeat=60", *over_mpi(hosts[:2]))
    jobs.start(hosts[0], *FAULTY, *SLOW[:-1], *late, PYTHONPATH=str(jobs.folder))
    in_fit(jobs, 2)
    hosts[1].cut()
    (ended,) = jobs.ended()
    error = failed(ended, exit_code=1, status="failed")
    (run,) = ended.runs
    assert "node2 has not answered mpirun: its host or network is gone; go on with" in error
    assert f"resume={run.relative_to(jobs.folder)} on the hosts that are left" in error


def test_fault_05_the_first_of_two_hosts_that_is_cut_off_ends_torchrun_on_both(
    hosts: list[Host], jobs: Jobs
) -> None:
    for rank, host in enumerate(hosts[:2]):
        options = ("strategy=ddp", "strategy.nodes=2", f"strategy.node_rank={rank}")
        place = ("strategy.address=node1", "strategy.port=29511")
        jobs.start(host, *FAULTY, *SLOW, *options, *place, PYTHONPATH=str(jobs.folder))
    in_fit(jobs, 2)
    hosts[0].cut()
    for ended in jobs.ended():  # each says it as it sees it
        assert ended.exit_code == 1
        assert "has not answered rank" in ended.error
    assert ended.results[0]["status"] == "failed"
    assert nothing_runs_on(hosts)


def test_fault_05_a_stopped_rank_on_another_host_is_named_and_ended(
    hosts: list[Host], jobs: Jobs
) -> None:
    jobs.start(hosts[0], *FAULTY, *SLOW, *over_mpi(hosts[:2]), PYTHONPATH=str(jobs.folder))
    ranks = in_fit(jobs, 2)
    (second,) = set(hosts[1].processes()) & set(ranks)
    os.kill(second, signal.SIGSTOP)
    (ended,) = jobs.ended()
    error = failed(ended, exit_code=1, status="failed")
    assert "rank 1 on node2 has not answered rank 0 on node1" in error
    assert nothing_runs_on(hosts)


def test_hosts_with_other_data_are_refused_with_what_differs(
    hosts: list[Host], jobs: Jobs, phantoms: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ensure_phantoms(other, PhantomSpec(images=IMAGES, size=64, seed=8))
    hosts[1].run(["mount", "--bind", str(other), str(phantoms)])
    jobs.start(hosts[0], "data=nih", *over_mpi(hosts[:2]))
    (ended,) = jobs.ended()
    error = failed(ended, exit_code=2, status="failed")
    for part in ("the hosts differ: data manifest ", " on node1, ", " on node2; split "):
        assert part in error
    assert nothing_runs_on(hosts)


@pytest.mark.parametrize("strategy", ["mpi", "ddp"])
def test_a_host_without_the_data_ends_the_job_with_its_one_line(
    strategy: str, hosts: list[Host], jobs: Jobs, phantoms: Path
) -> None:
    hosts[1].run(["mount", "-t", "tmpfs", "none", str(phantoms)])
    if strategy == "mpi":
        jobs.start(hosts[0], "data=nih", *over_mpi(hosts[:2]))
    else:
        for rank, host in enumerate(hosts[:2]):
            options = ("strategy.nodes=2", f"strategy.node_rank={rank}", "strategy.address=node1")
            jobs.start(host, "data=nih", "strategy=ddp", *options)
    for ended in jobs.ended():
        error = failed(ended, exit_code=2, status="failed")
        assert "host node2: " in error
        assert str(phantoms) in error
    assert nothing_runs_on(hosts)
