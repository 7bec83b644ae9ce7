"""Jobs of a real Slurm: tasks of srun, sweeps, and jobs that are cut and queued again."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN_PY
from slurm_cluster import Slurm, lacking, started
from slurm_stand_ins import EXAMPLE, beside_train_py

from xray_lightning.models.checkpoint import read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking()), reason=f"no Slurm: {lacking()}"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        cluster = started()
        with cluster as slurm:
            yield slurm
    except RuntimeError as error:
        pytest.skip(f"no Slurm: {error}")


def results(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("runs/**/results.json"))
    return [json.loads(path.read_text()) for path in paths]


def train(*overrides: str) -> list[str]:
    return [sys.executable, TRAIN_PY, *overrides]


@pytest.mark.parametrize("mpi", ["none", "pmi2"])
def test_two_tasks_of_srun_without_mpi_are_one_run(
    mpi: str, slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    srun = ("srun", "--nodes=2", "--ntasks=2", f"--mpi={mpi}")
    done = slurm.run(*srun, *train(*small, "strategy=ddp"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["status"] == "finished"
    assert result["environment"]["world_size"] == 2
    assert result["environment"]["mpi"] is None
    assert done.stdout.count("macro over") == 1  # rank 0 alone speaks


@pytest.mark.parametrize("strategy", ["mpi", "ddp"])  # PMIx may be a cluster's default
def test_two_tasks_of_srun_with_pmix_are_one_mpi_world(
    strategy: str, slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    if not slurm.has_pmix():
        pytest.skip("srun --mpi=pmix finds no PMIx (libpmix-dev)")
    srun = ("srun", "--nodes=2", "--ntasks=2", "--mpi=pmix")
    done = slurm.run(*srun, *train(*small, f"strategy={strategy}"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["environment"]["world_size"] == 2
    assert "Open MPI" in result["environment"]["mpi"]


def test_mpi_that_srun_has_not_started_is_refused_in_one_line(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    srun = ("srun", "--nodes=2", "--ntasks=2")
    done = slurm.run(*srun, *train(*small, "strategy=mpi"), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("xray: error:")]
    assert "srun --mpi=pmix" in line


def test_a_shell_in_an_allocation_trains_in_one_process(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    salloc = ("salloc", "--nodes=2", "--ntasks=2")
    done = slurm.run(*salloc, *train(*small, "stages=[fit]"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["environment"]["world_size"] == 1
    assert result["environment"]["slurm"]["restarts"] == 0


def test_a_sweep_of_two_jobs_is_two_batch_jobs_with_a_run_folder_each(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    options = ("nodes=2", "ntasks_per_node=1", "time=0:05:00")
    launcher = ("hydra/launcher=slurm", *(f"hydra.launcher.sbatch.{one}" for one in options))
    sweep = ("-m", "seed=0,1", "hydra.launcher.poll_seconds=1", "strategy=ddp", "stages=[fit]")
    done = slurm.run(*train(*sweep, *launcher, *small), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is Slurm job") == 2
    found = results(tmp_path)
    assert [result["seed"] for result in found] == [0, 1]
    assert {result["status"] for result in found} == {"finished"}
    assert [result["environment"]["world_size"] for result in found] == [2, 2]
    jobs = {result["environment"]["slurm"]["name"] for result in found}
    assert len(jobs) == 2
    (folder,) = tmp_path.glob("runs/*_sweep")
    assert {path.name for path in folder.iterdir() if path.name[0] != "." and path.is_dir()} == {
        "0_phantom_resnet18",
        "1_phantom_resnet18",
    }


def test_options_that_sbatch_refuses_and_jobs_that_fail_are_told(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    sweep = ("-m", "seed=0", "hydra/launcher=slurm", "hydra.launcher.poll_seconds=1")
    done = slurm.run(*train(*sweep, "hydra.launcher.sbatch.time=soon"), cwd=tmp_path)
    assert done.returncode == 2
    assert "xray: error: hydra.launcher.sbatch: sbatch: error: Invalid --time" in done.stderr
    done = slurm.run(*train(*sweep, *small, "data.root=/nosuch"), cwd=tmp_path)
    assert done.returncode == 1
    assert "is failed" in done.stdout


# Slows the steps down, so that a job has some left when it is cut, and tells of them.
STEPS = """
import os, time
from lightning.pytorch import Callback

class Steps(Callback):
    def on_train_batch_start(self, trainer, *_):
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        with open("steps", "a") as stream:
            stream.write(f"{restarts} {trainer.global_step}\\n")
        time.sleep(0.5 if restarts else 4)
"""
SLOW = "+callbacks.cut._target_=cut.Steps"


def steps(folder: Path, *, restart: int) -> list[int]:
    """The steps that the ranks have begun since so many restarts."""
    path = folder / "steps"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(f"{restart} ")]


def await_steps(slurm: Slurm, number: str, folder: Path, *, restart: int) -> None:
    deadline = time.monotonic() + 120
    while len(steps(folder, restart=restart)) < 4:
        assert time.monotonic() < deadline, slurm.job(number)
        time.sleep(0.1)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])


def test_a_job_cut_in_four_equals_an_uncut_one_bit_by_bit(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    place: dict[str, Any] = {"cwd": folder, **beside_train_py(folder, cut=STEPS)}
    options = (*small, "data.batch_size=15", "trainer.max_epochs=10")
    # Slurm looks each half-minute whether 10 s are left, or will be before it looks again.
    limit = ("--time=2", "--signal=USR1@10")
    number = slurm.submit(EXAMPLE, *options, SLOW, options=limit, **place)
    whole = tmp_path / "uncut"
    uncut = slurm.submit(EXAMPLE, *options, cwd=whole, **beside_train_py(whole))
    slurm.wait(number, "PENDING", restarts=1)
    (result,) = results(folder)
    assert (result["status"], result["reason"]) == ("interrupted", "interrupted by SIGUSR1")
    slurm.run("scontrol", "update", f"job={number}", "TimeLimit=10")
    for restart, name in ((1, "USR1"), (2, "TERM")):
        await_steps(slurm, number, folder, restart=restart)
        slurm.run("scancel", f"--signal={name}", number)
        slurm.wait(number, "PENDING", restarts=restart + 1)
    slurm.wait(number, "COMPLETED", restarts=3)
    slurm.wait(uncut, "COMPLETED")
    (result,) = results(folder)
    (expected,) = results(whole)
    assert result["status"] == "finished"
    assert result["environment"]["slurm"] == {"name": number, "restarts": 3}
    for row, other in zip(result["history"], expected["history"], strict=True):
        for key in ("epoch", "train_loss", "val_loss", "val_auroc_macro", "images"):
            assert row[key] == pytest.approx(other[key], rel=1e-6), key
    (one,), (two,) = (
        [weights(run) for run in (tmp_path / name).glob("runs/2*")] for name in ("cut", "uncut")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    begun = {restart: sorted(set(steps(folder, restart=restart))) for restart in range(4)}
    assert [step for part in begun.values() for step in part] == list(range(40))  # none twice
    assert all(begun.values())
    assert not list(folder.glob("runs/.slurm/*"))


def test_a_cancelled_job_of_an_array_leaves_a_checkpoint_and_is_not_queued_again(
    slurm: Slurm, small: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "cancelled"
    place: dict[str, Any] = {"cwd": folder, **beside_train_py(folder, cut=STEPS)}
    options = (*small, "data.batch_size=15", "trainer.max_epochs=10")
    number = slurm.submit(EXAMPLE, *options, SLOW, options=("--array=3",), **place)
    await_steps(slurm, number, place["cwd"], restart=0)
    slurm.run("scancel", number)
    slurm.wait(f"{number}_3", "CANCELLED")
    (out,) = place["cwd"].glob("slurm-*.out")
    deadline = time.monotonic() + 60
    while "is not queued again" not in out.read_text():
        assert time.monotonic() < deadline, out.read_text()
        time.sleep(0.2)
    assert f"Slurm job {number}_3 was cancelled" in out.read_text()
    (result,) = results(place["cwd"])
    assert (result["status"], result["reason"]) == ("interrupted", "interrupted by SIGTERM")
    (run,) = place["cwd"].glob("runs/2*")
    assert weights(run)
