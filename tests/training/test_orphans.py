"""The end of a job of several ranks, whichever of its processes is killed or told to stop."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, Ended, Train, environment
from test_faults import LIMIT, RANKS, failed, steps

Started = Callable[..., subprocess.Popen[str]]

SLOW = """
import os, time
from lightning.pytorch import Callback

class Slow(Callback):
    def tell(self, *_):
        with open("steps", "a") as stream:
            stream.write(f"{os.getpid()}\\n")
        time.sleep(0.3)
    on_train_batch_start = on_test_batch_start = tell
"""


@pytest.fixture
def started(tmp_path: Path, small: list[str]) -> Iterator[Started]:
    """Start a slow job and wait for steps of both ranks; at the end nothing of it may be left."""
    (tmp_path / "slow.py").write_text(SLOW)
    seen: set[psutil.Process] = set()

    def start(*overrides: str) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            [
                *(sys.executable, str(REPOSITORY / "train.py"), *small, *overrides),
                *("+callbacks.slow._target_=slow.Slow", "data.batch_size=4"),
            ],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + LIMIT
        while len(set(steps(tmp_path))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        seen.update(psutil.Process(job.pid).children(recursive=True))
        return job

    yield start
    assert len(seen) >= 3  # a launcher and two ranks
    _, orphans = psutil.wait_procs(seen, timeout=20)
    for orphan in orphans:
        orphan.kill()
    assert not orphans


@pytest.mark.parametrize("strategy", RANKS)
def test_01_ranks_and_launcher_die_with_the_process_that_started_them(
    strategy: str, started: Started
) -> None:
    job = started(*RANKS[strategy], "stages=[fit]")
    job.kill()
    job.communicate(timeout=LIMIT)
    assert job.returncode == -signal.SIGKILL


@pytest.mark.parametrize("strategy", RANKS)
def test_01_ranks_die_with_their_launcher_and_the_run_has_failed(
    strategy: str, started: Started, tmp_path: Path
) -> None:
    job = started(*RANKS[strategy], "stages=[fit]")
    (launcher,) = psutil.Process(job.pid).children()
    launcher.kill()
    stdout, stderr = job.communicate(timeout=LIMIT)
    failed(Ended(job.returncode, stdout, stderr, tmp_path), exit_code=1, status="failed")


@pytest.mark.parametrize("strategy", RANKS)
def test_04_ctrl_c_while_the_test_runs_interrupts_the_run(
    strategy: str, started: Started, train: Train, tmp_path: Path
) -> None:
    trained = train("stages=[fit]", "hydra.run.dir=trained")
    assert trained.exit_code == 0, trained.stderr
    best = tmp_path / "trained" / "checkpoints" / "best.ckpt"
    job = started(*RANKS[strategy], "stages=[test]", f"ckpt_path={best}", "data.batch_size=2")
    job.send_signal(signal.SIGINT)
    stdout, stderr = job.communicate(timeout=LIMIT)
    failed(Ended(job.returncode, stdout, stderr, tmp_path), exit_code=130, status="interrupted")
