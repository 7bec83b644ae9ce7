"""Which world a process belongs to, told from its environment."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from xray_lightning.errors import UserError
from xray_lightning.training.strategies import World, detect, load_mpi, share

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "3"}
SRUN = {
    "PMIX_RANK": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "77",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, World("none", 0, 1)),
        (OPEN_MPI, World("mpi", 1, 4)),
        (MPICH, World("mpi", 2, 3)),
        (SRUN, World("mpi", 0, 2)),
        (TORCHRUN, World("torchrun", 1, 2)),
    ],
    ids=["alone", "Open MPI", "MPICH", "srun", "torchrun"],
)
def test_a_launcher_is_known_by_its_marks(environ: Mapping[str, str], expected: World) -> None:
    assert detect({"PATH": "/bin", **environ}) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"OMPI_MCA_btl": "self,tcp", "OMPI_ALLOW_RUN_AS_ROOT": "1"},
        {"OMPI_COMM_WORLD_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # inside sbatch, no srun
        {"PMIX_RANK": "0", "SLURM_STEP_ID": "batch"},
    ],
    ids=["Open MPI settings", "a rank alone", "torch's names", "sbatch", "a batch step"],
)
def test_what_a_user_may_have_set_is_no_world(environ: Mapping[str, str]) -> None:
    assert detect(environ) == World("none")


def test_alone_a_text_is_shared_with_nobody() -> None:
    assert share(World("none"), "key", "text") == "text"


def test_a_machine_without_an_mpi_library_is_told_how_to_get_one(
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
