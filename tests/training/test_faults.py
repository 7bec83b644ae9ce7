"""What can go wrong while several ranks train. The numbers are the fault matrix's.

Faults are injected through a callback of the test's own, named on the command line like any other.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, Ended, Train, environment

from xray_lightning.models.checkpoint import read_checkpoint

LIMIT = 90.0  # seconds in which every faulty job must have ended, on a busy machine

FAULTS = '''
import os, signal, time
import torch
from lightning.pytorch import Callback

def rank():
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0")))

class Fault(Callback):
    """Do something on one rank in one training step."""
    def __init__(self, kind, rank=1, step=2):
        self.kind, self.rank, self.step = kind, rank, step
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open("steps", "a") as stream:
            stream.write(f"{os.getpid()} {rank()} {trainer.global_step}\\n")
        if rank() != self.rank or trainer.global_step < self.step:
            return
        if self.kind == "exception":
            raise ValueError("the sky has fallen")
        if self.kind == "exit":
            os._exit(3)
        if self.kind == "slow":
            time.sleep(0.5)
        elif trainer.global_step == self.step:
            os.kill(os.getpid(), getattr(signal, self.kind))
'''


@pytest.fixture
def fault(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Overrides that put the fault callback into a run of enough steps."""
    (tmp_path / "faults.py").write_text(FAULTS)
    yield ("trainer.max_epochs=50", "+callbacks.fault._target_=faults.Fault", "stages=[fit]")
    ranks = {int(line.split()[0]) for line in steps(tmp_path)}
    deadline = time.monotonic() + 10  # the kernel may still be at it
    while any(alive(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    orphans = [rank for rank in ranks if alive(rank)]
    for rank in orphans:  # nothing of a failed test may live on
        os.kill(rank, signal.SIGKILL)
    assert not orphans


def alive(process: int) -> bool:
    """Whether it still runs; what is dead and only waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def steps(folder: Path) -> list[str]:
    path = folder / "steps"
    return path.read_text().splitlines() if path.exists() else []


RANKS = {
    "mpi": ("strategy=mpi", "strategy.processes=2"),
    "ddp": ("strategy=ddp", "strategy.processes=2"),
}


def failed(ended: Ended, *, exit_code: int, status: str) -> str:
    """Assert how a job ended, the same in its exit code and in its record; return its line."""
    assert ended.exit_code == exit_code, ended.stderr
    (result,) = ended.results
    assert result["status"] == status
    assert ended.error.endswith(result["reason"])
    return ended.error


@pytest.mark.parametrize("strategy", RANKS)
def test_01_a_killed_rank_ends_the_job_and_is_named(
    strategy: str, train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        *RANKS[strategy],
        *fault,
        "+callbacks.fault.kind=SIGKILL",
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    error = failed(ended, exit_code=1, status="failed")
    assert "rank 1" in error
    assert "signal 9" in error


@pytest.mark.parametrize("strategy", RANKS)
def test_02_sigterm_to_one_rank_stops_all_at_one_step_with_a_checkpoint(
    strategy: str, train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        *RANKS[strategy],
        *fault,
        "+callbacks.fault.kind=SIGTERM",
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    failed(ended, exit_code=143, status="interrupted")
    checkpoint = read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 3
    assert {line.split()[1:][1] for line in steps(tmp_path)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("strategy", "number", "exit_code"),
    [
        ("single", signal.SIGTERM, 143),
        ("single", signal.SIGINT, 130),
        ("mpi", signal.SIGTERM, 143),
        ("ddp", signal.SIGINT, 130),
    ],
)
def test_03_04_a_signal_to_the_job_stops_it_with_a_checkpoint(
    strategy: str,
    number: signal.Signals,
    exit_code: int,
    small: list[str],
    fault: tuple[str, ...],
    tmp_path: Path,
) -> None:
    ranks = RANKS.get(strategy, ("strategy=single",))
    process = subprocess.Popen(
        [
            *(sys.executable, str(REPOSITORY / "train.py"), *small, *ranks, *fault),
            *("+callbacks.fault.kind=slow", "+callbacks.fault.rank=0"),
        ],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT
    while len(steps(tmp_path)) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=LIMIT)
    ended = Ended(process.returncode, stdout, stderr, tmp_path)
    failed(ended, exit_code=exit_code, status="interrupted")
    assert read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")["global_step"] > 0


def test_05_a_rank_that_hangs_ends_the_job_at_the_configured_timeout(
    train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        *RANKS["mpi"],
        *fault,
        "+callbacks.fault.kind=SIGSTOP",
        "strategy.timeout=5",
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    failed(ended, exit_code=1, status="failed")


@pytest.mark.parametrize("strategy", RANKS)
def test_06_an_exception_on_one_rank_ends_the_job_with_that_message(
    strategy: str, train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        *RANKS[strategy],
        *fault,
        "+callbacks.fault.kind=exception",
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    error = failed(ended, exit_code=1, status="failed")
    assert "rank 1 on " in error
    assert "ValueError: the sky has fallen" in error


def test_06_an_exception_on_one_rank_ends_a_job_under_the_users_own_mpirun(
    train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        "strategy=mpi",
        *fault,
        "+callbacks.fault.kind=exception",
        before=("mpirun", "-n", "2"),
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    error = failed(ended, exit_code=1, status="failed")
    assert "ValueError: the sky has fallen" in error


def test_06_a_rank_that_just_leaves_ends_the_job(
    train: Train, fault: tuple[str, ...], tmp_path: Path
) -> None:
    ended = train(
        *RANKS["mpi"],
        *fault,
        "+callbacks.fault.kind=exit",
        env={"PYTHONPATH": str(tmp_path)},
        timeout=LIMIT,
    )
    failed(ended, exit_code=1, status="failed")


def test_09_an_address_that_cannot_be_resolved_is_refused(train: Train) -> None:
    ended = train(*RANKS["mpi"], "strategy.address=nowhere.invalid", timeout=LIMIT)
    error = failed(ended, exit_code=2, status="failed")
    assert "nowhere.invalid" in error
    assert "strategy.address" in error


def test_11_a_world_of_another_size_is_refused_before_data_is_read(train: Train) -> None:
    ended = train(
        "strategy=mpi",
        "strategy.processes=3",
        "data.root=/nowhere",
        before=("mpirun", "-n", "2"),
        timeout=LIMIT,
    )
    assert "strategy.processes=3, but the mpi world has 2 processes" in failed(
        ended, exit_code=2, status="failed"
    )
