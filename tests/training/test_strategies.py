"""Strategies: the world a process belongs to, and what each strategy starts, joins and refuses."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.models.sync_batchnorm import PortableSyncBatchNorm
from xray_lightning.training.strategies import (
    Mpirun,
    Single,
    Strategy,
    Torchrun,
    World,
    detect,
    load_mpi,
    share,
)

ALONE = World("none")
MPI = World("mpi", 1, 2)
TORCHRUN = World("torchrun", 1, 2)


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PATH on which there is an mpirun and nothing else."""
    path = tmp_path / "mpirun"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return str(path)


def test_single_starts_nothing_and_names_its_environment() -> None:
    assert Single().launch_command(ALONE, devices=4) is None
    options = Single().trainer_options()
    assert options["devices"] == 1
    assert isinstance(options["plugins"][0], LightningEnvironment)


@pytest.mark.parametrize("devices, processes", [(0, 2), (1, 1), (8, 8)])
def test_a_process_a_gpu_or_two_on_a_cpu(devices: int, processes: int, mpirun: str) -> None:
    ddp = Torchrun().launch_command(ALONE, devices=devices) or []
    assert ddp[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert ddp[-1] == f"--nproc-per-node={processes}"
    assert "--nproc-per-node=3" in (Torchrun(3).launch_command(ALONE, devices=devices) or [])
    mpi = Mpirun().launch_command(ALONE, devices=devices) or []
    assert mpi[:3] == [mpirun, "-n", str(processes)]


def test_mpi_starts_mpirun_with_hosts_and_further_arguments(mpirun: str) -> None:
    strategy = Mpirun(processes=4, hosts="a:2,b:2", mpirun_args=["--mca", "btl", "self"])
    command = strategy.launch_command(ALONE, devices=0) or []
    assert command[:3] == [mpirun, "-n", "4"]
    assert command[command.index("--host") + 1] == "a:2,b:2"
    assert command[-6:] == ["--mca", "btl", "self", sys.executable, "-m", "mpi4py"]


@pytest.mark.parametrize(
    "strategy, world", [(Mpirun(), MPI), (Torchrun(), TORCHRUN), (Torchrun(), World("slurm", 1, 2))]
)
def test_a_strategy_joins_the_world_of_its_launcher(strategy: Strategy, world: World) -> None:
    assert strategy.launch_command(world, devices=0) is None


@pytest.mark.parametrize("strategy, world", [(Mpirun(3), MPI), (Torchrun(3), TORCHRUN)])
def test_fault_11_a_world_of_another_size_is_refused(strategy: Strategy, world: World) -> None:
    with pytest.raises(UserError, match=r"strategy.processes=3, but the \w+ world has 2") as told:
        strategy.launch_command(world, devices=0)
    assert told.value.exit_code == EXIT_USER_ERROR


@pytest.mark.parametrize(
    "strategy, world",
    [(Single(), MPI), (Single(), TORCHRUN), (Torchrun(), MPI), (Mpirun(), TORCHRUN)],
)
def test_fault_11_another_launchers_world_is_refused(strategy: Strategy, world: World) -> None:
    with pytest.raises(UserError, match=f"strategy={strategy.name} was started"):
        strategy.launch_command(world, devices=0)


def test_mpi_under_srun_without_mpi_says_what_to_use() -> None:
    with pytest.raises(UserError, match=r"use `srun --mpi=pmix`, or strategy=ddp"):
        Mpirun().launch_command(SLURM, devices=0)


@pytest.mark.parametrize("processes", [0, -1, True, "two", 1.5])
def test_a_number_of_processes_that_is_none_is_refused(processes: object, mpirun: str) -> None:
    for strategy in (Torchrun, Mpirun):
        with pytest.raises(UserError, match=f"strategy.processes={processes} must be"):
            strategy(processes=processes).launch_command(ALONE, devices=0)  # type: ignore[arg-type]


def test_fault_10_a_missing_mpirun_is_told_with_the_ways_to_install_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="no mpirun on PATH; install one: `uv sync --group mpi`"):
        Mpirun().launch_command(ALONE, devices=0)


def test_under_torchrun_lightning_gets_that_environment_and_all_its_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    for name, value in (marks | {"TORCHELASTIC_RUN_ID": "x"}).items():
        monkeypatch.setenv(name, value)
    options = Torchrun(timeout=7, sync_batchnorm=True).trainer_options()
    assert (options["devices"], options["num_nodes"]) == (2, 1)
    ddp = options["strategy"]
    assert isinstance(ddp, DDPStrategy)
    assert isinstance(ddp.cluster_environment, TorchElasticEnvironment)
    assert ddp._timeout.total_seconds() == 7
    assert isinstance(options["plugins"][0], PortableSyncBatchNorm)
    assert Torchrun().trainer_options()["plugins"] == []


SLURM = World("slurm", 1, 2)
STEP = "SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=8 SLURM_JOB_ID=77"
ALONE_STEP = STEP.replace("NUM_TASKS=2", "NUM_TASKS=1").replace("PROCID=1", "PROCID=0")


def environ(text: str) -> Mapping[str, str]:
    return dict(pair.split("=", 1) for pair in text.split())


@pytest.mark.parametrize(
    "marks, expected",
    [
        ("", ALONE),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4", World("mpi", 1, 4)),
        ("PMI_RANK=2 PMI_SIZE=3", World("mpi", 2, 3)),  # MPICH
        (STEP, SLURM),
        (f"PMIX_RANK=1 {STEP}", World("mpi", 1, 2)),
        # `srun --mpi=pmi2`, by which no MPI here can join, and an MPICH of the user's in a step.
        (f"PMI_JOBID=77.0 PMI_RANK=1 PMI_SIZE=2 {STEP}", SLURM),
        (f"PMI_RANK=2 PMI_SIZE=3 {STEP}", World("mpi", 2, 3)),
        (f"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 {STEP}", World("mpi", 1, 4)),
        (f"TORCHELASTIC_RUN_ID=x RANK=1 WORLD_SIZE=2 {STEP}", TORCHRUN),
        ("TORCHELASTIC_RUN_ID=x RANK=1 WORLD_SIZE=2", TORCHRUN),
        # What a user may have set is no world.
        ("OMPI_MCA_btl=self,tcp OMPI_ALLOW_RUN_AS_ROOT=1", ALONE),
        ("OMPI_COMM_WORLD_RANK=0", ALONE),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0", ALONE),
        ("SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0", ALONE),  # inside sbatch, no srun
        ("PMIX_RANK=0 SLURM_STEP_ID=batch", ALONE),
        (ALONE_STEP, ALONE),
        (STEP.replace("STEP_ID=0", "STEP_ID=4294967290"), ALONE),  # an interactive shell
    ],
)
def test_a_launcher_is_known_by_its_marks(marks: str, expected: World) -> None:
    assert detect(environ(marks)) == expected


def test_alone_a_text_is_shared_with_nobody() -> None:
    assert share(ALONE, "key", "text") == "text"


def test_fault_10_a_machine_without_an_mpi_library_is_told_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"mpi4py finds none .*; install one: `uv sync"):
        load_mpi()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system's clock of processes")
def test_a_process_started_before_python_imported_anything() -> None:
    code = """
import time
time.sleep(0.5)
from xray_lightning.training.strategies import process_start
print(time.monotonic() - process_start())
"""
    before = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    tick = 1 / os.sysconf("SC_CLK_TCK")  # the system tells a start to the tick before it
    assert 0.5 <= float(process.stdout) <= time.monotonic() - before + tick
