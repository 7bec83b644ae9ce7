"""What can go wrong while several ranks train. The numbers are the fault matrix's.

Faults are injected through a callback of the test's own, named on the command line like any other.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TRAIN_PY, Ended, Train, environment

from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.runs.run_folder import GONE, read_run

LIMIT = 90.0  # seconds in which every faulty job must have ended, on a busy machine

FAULTS = """
import os, signal, time
import torch
from lightning.pytorch import Callback

def rank():
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0")))

class Fault(Callback):
    def __init__(self, kind, rank=1, step=2, testing=False):
        self.kind, self.rank, self.step, self.testing = kind, rank, step, testing
    def on_train_batch_start(self, trainer, *_):
        with open("steps", "a") as stream:
            stream.write(f"{os.getpid()} {trainer.global_step}\\n")
        if self.kind == "slow":
            time.sleep(0.3)
        elif self.kind == "stuck" and trainer.global_step == self.step:
            time.sleep(600)
        elif rank() != self.rank or trainer.global_step < self.step:
            return
        elif self.kind == "exception":
            raise ValueError("the sky has fallen")
        elif self.kind == "exit":
            os._exit(3)
        elif trainer.global_step == self.step:
            os.kill(os.getpid(), getattr(signal, self.kind))
    def on_test_batch_start(self, trainer, *args):
        if self.testing:
            open("tests", "a").close()
            time.sleep(3)
        self.on_train_batch_start(trainer, *args)
"""
FAULTY = ("trainer.max_epochs=50", "stages=[fit]", "+callbacks.fault._target_=faults.Fault")
RANKS = {
    "mpi": ("strategy=mpi", "strategy.processes=2"),
    "ddp": ("strategy=ddp", "strategy.processes=2"),
}
SLOW = pytest.mark.slow  # run by CI after the rest: a job of ranks takes a quarter of a minute
BOTH = ["mpi", pytest.param("ddp", marks=SLOW)]

Faulty = Callable[..., Ended]
Start = Callable[..., subprocess.Popen[str]]


def steps(folder: Path) -> list[tuple[int, int]]:
    """Process and number of each step of any rank."""
    path = folder / "steps"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[set[int]]:
    """Those that a test knows of: at its end none of them, and no rank, may live on."""
    (tmp_path / "faults.py").write_text(FAULTS)
    known: set[int] = set()
    yield known
    known |= {process for process, _ in steps(tmp_path)}
    deadline = time.monotonic() + 20  # the kernel may still be at it
    while any(alive(process) for process in known) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = [process for process in known if alive(process)]
    for process in orphans:  # nothing of a failed test may live on
        os.kill(process, signal.SIGKILL)
    assert not orphans


@pytest.fixture
def faulty(processes: set[int], train: Train, tmp_path: Path) -> Faulty:
    """Train with a fault of this kind, for so many steps that it comes."""

    def run(kind: str, *overrides: str, before: tuple[str, ...] = ()) -> Ended:
        keys = (*FAULTY, f"+callbacks.fault.kind={kind}", *overrides)
        return train(*keys, before=before, env={"PYTHONPATH": str(tmp_path)}, timeout=LIMIT)

    return run


@pytest.fixture
def start(processes: set[int], small: list[str], tmp_path: Path) -> Start:
    """Start a slow job of two ranks, or of one, and wait for some steps of each."""
    least = {"slow": 4, "stuck": 3}  # steps to wait for

    def run(*overrides: str, ranks: int = 2, kind: str = "slow") -> subprocess.Popen[str]:
        slow = (f"+callbacks.fault.kind={kind}", "data.batch_size=4", *overrides)
        job = subprocess.Popen(
            [sys.executable, TRAIN_PY, *small, *FAULTY, *slow],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + LIMIT
        seen = steps(tmp_path)
        while (len(dict(seen)) < ranks or len(seen) < least[kind]) and time.monotonic() < deadline:
            time.sleep(0.1)
            seen = steps(tmp_path)
        children = psutil.Process(job.pid).children(recursive=True)
        processes.update(child.pid for child in children)
        return job

    return run


def end_of(job: subprocess.Popen[str], folder: Path) -> Ended:
    stdout, stderr = job.communicate(timeout=LIMIT)
    return Ended(job.returncode, stdout, stderr, folder)


def alive(process: int) -> bool:
    """Whether it still runs; what is dead and only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def failed(ended: Ended, *, exit_code: int, status: str) -> str:
    """Assert how a job ended, the same in its exit code and in its record; return its line."""
    assert ended.exit_code == exit_code, ended.stderr
    (result,) = ended.results
    assert result["status"] == status
    assert ended.error.endswith(result["reason"])
    return ended.error


@SLOW
def test_fault_01_ranks_and_launcher_die_with_the_process_that_started_them(
    start: Start, processes: set[int], tmp_path: Path
) -> None:
    job = start(*RANKS["mpi"])
    assert len(processes) >= 3  # a launcher and two ranks
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_run(folder).status == "running"
    job.kill()
    ended = end_of(job, tmp_path)
    assert ended.exit_code == -signal.SIGKILL
    assert ended.results[0]["status"] == "running"  # nobody was left to write another
    run = read_run(folder)
    assert (run.status, run.reason) == ("interrupted", GONE)


@SLOW
@pytest.mark.parametrize("strategy", RANKS)
def test_fault_01_ranks_die_with_their_launcher_and_the_run_has_failed(
    strategy: str, start: Start, tmp_path: Path
) -> None:
    job = start(*RANKS[strategy])
    (launcher,) = psutil.Process(job.pid).children()
    launcher.kill()
    failed(end_of(job, tmp_path), exit_code=1, status="failed")


@SLOW
def test_fault_04_ctrl_c_while_the_test_runs_interrupts_the_run(
    first: Ended, start: Start, tmp_path: Path
) -> None:
    best = first.runs[0] / "checkpoints" / "best.ckpt"
    test = ("stages=[test]", f"ckpt_path={best}", "data.batch_size=2")
    job = start(*RANKS["mpi"], *test)
    job.send_signal(signal.SIGINT)
    failed(end_of(job, tmp_path), exit_code=130, status="interrupted")


@SLOW
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_while_ranks_test_ends_all_after_a_batch_and_resume_tests_anew(
    number: signal.Signals, start: Start, train: Train, tmp_path: Path
) -> None:
    options = ("stages=[fit,test]", "trainer.max_epochs=1", "+callbacks.fault.testing=true")
    job = start(*RANKS["mpi"], *options, "data.batch_size=16", ranks=0, kind="slow")
    deadline = time.monotonic() + LIMIT
    while not (tmp_path / "tests").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(number)
    ended = end_of(job, tmp_path)
    failed(ended, exit_code=128 + number, status="interrupted")
    (run,) = ended.runs
    assert not (run / "predictions_test.csv").exists()
    again = train(f"resume={run}", "strategy=single", "~callbacks.fault", defaults=False)
    assert again.exit_code == 0, again.stderr
    (result,) = again.results
    assert result["status"] == "finished"
    assert len(result["history"]) == 1  # nothing was trained again


@SLOW
def test_ranks_whose_time_is_up_stop_after_the_same_step_and_test_the_best_epoch(
    faulty: Faulty,
) -> None:
    options = ("stages=[fit,test]", "trainer.max_time=00:00:00:03", "data.batch_size=4")
    ended = faulty("slow", *RANKS["mpi"], *options)
    assert ended.exit_code == 0, ended.stderr
    (result,) = ended.results
    assert result["status"] == "finished"
    assert result["metrics"]["test"] is not None
    trained = steps(ended.folder)
    checkpoint = read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")
    ranks = {process for process, _ in trained}
    assert len(ranks) == 2
    for rank in ranks:
        own = [step for process, step in trained if process == rank]
        assert max(own) == checkpoint["global_step"]  # which its test batches tell, too


@pytest.mark.parametrize("strategy", BOTH)  # each launcher has its own words for it
def test_fault_01_a_killed_rank_ends_the_job_and_is_named(strategy: str, faulty: Faulty) -> None:
    error = failed(faulty("SIGKILL", *RANKS[strategy]), exit_code=1, status="failed")
    assert "rank 1" in error
    assert "signal 9" in error


@SLOW
def test_fault_02_sigterm_to_one_rank_stops_all_at_one_step_with_a_checkpoint(
    faulty: Faulty,
) -> None:
    ended = faulty("SIGTERM", *RANKS["mpi"])
    failed(ended, exit_code=143, status="interrupted")
    checkpoint = read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 3
    assert {step for _, step in steps(ended.folder)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("strategy", "number", "exit_code"),
    [
        ("single", signal.SIGTERM, 143),
        pytest.param("single", signal.SIGINT, 130, marks=SLOW),
        pytest.param("mpi", signal.SIGTERM, 143, marks=SLOW),
        pytest.param("ddp", signal.SIGINT, 130, marks=SLOW),
        pytest.param("mpi", signal.SIGUSR1, 138, marks=SLOW),
    ],
)
def test_fault_03_04_a_signal_to_the_job_stops_it_with_a_checkpoint(
    strategy: str, number: signal.Signals, exit_code: int, start: Start, tmp_path: Path
) -> None:
    ranks = RANKS.get(strategy, ())
    job = start(*ranks, ranks=2 if ranks else 1)
    job.send_signal(number)
    ended = end_of(job, tmp_path)
    failed(ended, exit_code=exit_code, status="interrupted")
    assert read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_fault_04_a_second_ctrl_c_ends_a_run_that_is_stuck(start: Start, tmp_path: Path) -> None:
    job = start(ranks=1, kind="stuck")
    for _ in range(2):
        time.sleep(1)  # the first would wait for the end of the step
        assert job.poll() is None
        job.send_signal(signal.SIGINT)
    ended = end_of(job, tmp_path)
    assert ended.exit_code == 130
    (result,) = ended.results
    assert (result["status"], result["reason"]) == ("interrupted", "interrupted by Ctrl-C")


@SLOW
@pytest.mark.parametrize("strategy", RANKS)  # torchrun waits for a stopped rank, and is ended
def test_fault_05_a_rank_that_hangs_ends_the_job_at_the_configured_timeout(
    strategy: str, faulty: Faulty
) -> None:
    ended = faulty("SIGSTOP", *RANKS[strategy], "strategy.timeout=5")
    failed(ended, exit_code=1, status="failed")


@SLOW
@pytest.mark.parametrize(
    ("strategy", "before"),
    # With mpirun started by train.py, test_fault_09 has the same way.
    [("ddp", ()), ("mpi", ("mpirun", "-n", "2"))],
    ids=["ddp", "mpi under the user's own mpirun"],
)
def test_fault_06_an_exception_on_one_rank_ends_the_job_with_that_message(
    strategy: str, before: tuple[str, ...], faulty: Faulty
) -> None:
    error = failed(
        faulty("exception", *RANKS[strategy], before=before), exit_code=1, status="failed"
    )
    assert "rank 1 on " in error
    assert "ValueError: the sky has fallen" in error


@SLOW
def test_fault_06_a_rank_that_just_leaves_ends_the_job(faulty: Faulty) -> None:
    failed(faulty("exit", *RANKS["mpi"]), exit_code=1, status="failed")


@SLOW
def test_fault_08_a_port_in_use_is_refused(train: Train) -> None:
    with socket.create_server(("", 0)) as taken:
        key = f"strategy.port={taken.getsockname()[1]}"
        ended = train(*RANKS["mpi"], key, timeout=LIMIT)
    assert f"{key} cannot be used" in failed(ended, exit_code=2, status="failed")


@SLOW
def test_fault_09_an_address_that_cannot_be_resolved_is_refused(train: Train) -> None:
    ended = train(*RANKS["mpi"], "strategy.address=nowhere.invalid", timeout=LIMIT)
    error = failed(ended, exit_code=2, status="failed")
    assert "nowhere.invalid" in error
    assert "strategy.address" in error


@SLOW
def test_fault_11_a_world_of_another_size_is_refused_before_data_is_read(train: Train) -> None:
    options = ("strategy=mpi", "strategy.processes=3", "data.root=/nowhere")
    ended = train(*options, before=("mpirun", "-n", "2"), timeout=LIMIT)
    error = failed(ended, exit_code=2, status="failed")
    assert "strategy.processes=3, but the mpi world has 2 processes" in error
