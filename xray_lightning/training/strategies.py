"""How many processes train together, what starts them, and what Lightning is told about it."""

import atexit
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from xray_lightning.errors import UserError, check_whole
from xray_lightning.training.world import INSTALL_MPI, World

DEFAULT_CPU_PROCESSES = 2


class Strategy(Protocol):
    """One way of running; the strategy group's files name the classes below."""

    name: str

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        """What to put before `train.py ARGS` to start the ranks; None when this process is one.

        Args:
            devices: GPUs on this machine that the run may use, 0 on a CPU.

        Raises:
            UserError: the launcher is missing, or the world is not the one asked for.
        """
        ...

    def trainer_options(self, accelerator: str) -> dict[str, Any]:
        """Keyword arguments of `lightning.Trainer`; called on every rank, once its world is up."""
        ...


def _processes(asked: int | None, *, devices: int) -> int:
    """As asked, else one a GPU, else two: the smallest number that shows the machinery."""
    if asked is None:
        return devices or DEFAULT_CPU_PROCESSES
    check_whole("strategy.processes", asked, least=1)
    return asked


def _refuse_other_world(strategy: str, world: World, *, asked: int | None, launcher: str) -> None:
    if world.launcher not in ("none", launcher):
        raise UserError(
            f"strategy={strategy} was started under {world.launcher}; use the strategy that "
            "belongs to the launcher, or start `python train.py` plainly"
        )
    if world.launcher == launcher and asked is not None and asked != world.size:
        raise UserError(
            f"strategy.processes={asked}, but the {world.launcher} world has {world.size} "
            "processes; leave strategy.processes out, or start as many"
        )


@dataclass
class Single:
    """One process on one device."""

    name: str = "single"

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        if world.size > 1:
            raise UserError(
                f"strategy=single was started {world.size} times by {world.launcher}; use "
                "strategy=mpi under mpirun, strategy=ddp under torchrun"
            )
        return None

    def trainer_options(self, accelerator: str) -> dict[str, Any]:
        from lightning.pytorch.plugins.environments import LightningEnvironment

        # Named, because Lightning's detection of an environment initialises MPI.
        return {"devices": 1, "plugins": [LightningEnvironment()]}


@dataclass
class Torchrun:
    """DistributedDataParallel under torchrun, on this machine.

    Args:
        processes: ranks; None takes one a GPU, or 2 on a CPU.
        timeout: seconds after which a collective that a rank does not join fails.
        sync_batchnorm: batch statistics over all ranks instead of each rank's own.
    """

    processes: int | None = None
    timeout: float = 600
    sync_batchnorm: bool = False
    name: str = "ddp"

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        _refuse_other_world(self.name, world, asked=self.processes, launcher="torchrun")
        if world.launcher == "torchrun":
            return None
        processes = _processes(self.processes, devices=devices)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*torchrun, f"--nproc-per-node={processes}"]

    def trainer_options(self, accelerator: str) -> dict[str, Any]:
        from lightning.pytorch.plugins.environments import TorchElasticEnvironment

        local, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return _ddp(TorchElasticEnvironment(), self, devices=local, nodes=size // local)


@dataclass
class Mpirun:
    """DistributedDataParallel in an MPI world: mpirun or srun starts it, or this class does.

    Args:
        processes: ranks; None takes the world's, or one a GPU, or 2 on a CPU.
        hosts: where to start them, as `mpirun --host` takes it (`node1:2,node2:2`); None starts
            all here.
        address: name or IP address of rank 0's host, for the rendezvous of the process group.
        port: TCP port there; None takes a free one.
        mpirun_args: further arguments of mpirun.
        timeout: seconds after which a collective that a rank does not join fails.
        sync_batchnorm: batch statistics over all ranks instead of each rank's own.
    """

    processes: int | None = None
    hosts: str | None = None
    address: str | None = None
    port: int | None = None
    mpirun_args: Sequence[str] = ()
    timeout: float = 600
    sync_batchnorm: bool = False
    name: str = "mpi"

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        _refuse_other_world(self.name, world, asked=self.processes, launcher="mpi")
        if world.launcher == "mpi":
            return None
        mpirun = shutil.which("mpirun")
        if mpirun is None:
            raise UserError(f"strategy=mpi finds no mpirun on PATH; {INSTALL_MPI}")
        processes = _processes(self.processes, devices=devices)
        command = [mpirun, "-n", str(processes), "--bind-to", "none"]
        if self.hosts:
            command += ["--host", self.hosts]
        # Under `-m mpi4py` an exception that escapes a rank ends all of them.
        return [*command, *self.mpirun_args, sys.executable, "-m", "mpi4py"]

    def trainer_options(self, accelerator: str) -> dict[str, Any]:
        from xray_lightning.training.mpi import XrayMPIEnvironment

        environment = XrayMPIEnvironment(address=self.address, port=self.port)
        local, nodes, size = (
            environment.local_size,
            len(environment.hosts),
            environment.world_size(),
        )
        if local * nodes != size:
            raise UserError(
                f"{size} MPI processes on {nodes} hosts, {local} of them here: start equally many "
                "on each host"
            )
        return _ddp(environment, self, devices=local, nodes=nodes)


def _ddp(
    environment: Any, strategy: Torchrun | Mpirun, *, devices: int, nodes: int
) -> dict[str, Any]:
    if devices * nodes == 1:  # a world of one has nothing to reduce
        return {"devices": 1, "plugins": [environment]}
    from lightning.pytorch.strategies import DDPStrategy

    from xray_lightning.models.batchnorm import PortableSyncBatchNorm

    atexit.register(_leave_group)
    ddp = DDPStrategy(
        cluster_environment=environment,
        timeout=timedelta(seconds=strategy.timeout),
        gradient_as_bucket_view=True,  # gradients live in the buckets: one copy less a step
    )
    return {
        "strategy": ddp,
        "devices": devices,
        "num_nodes": nodes,
        "plugins": [PortableSyncBatchNorm()] if strategy.sync_batchnorm else [],
    }


def _leave_group() -> None:
    """Join the process group's threads: one that asks Python for something at its end aborts it.

    Lightning does so for NCCL alone. Not earlier than at the exit: a multirun's jobs share a group.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
