"""Strategies: how many processes train together, the command that starts them (mpirun, torchrun),
and the Trainer options for them."""

import atexit
import ctypes
import os
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from xray_lightning.errors import RunFailedError, UserError, check_whole
from xray_lightning.training.host_list import read_hosts, with_ranks
from xray_lightning.training.host_network import LOOPBACK, agree, use_interface
from xray_lightning.training.mpi_command import (
    INSTALL_MPI,
    check_agent,
    find_mpirun,
    mpirun_command,
)
from xray_lightning.training.slurm import Step

STEP_SECONDS = 120.0  # in which all tasks of an srun must connect
STORE_SECONDS = 3.0  # before rank 0 exits, since others may still read from its store

# Rank and size as the launchers set them: Open MPI, then MPICH. The prefix OMPI_ alone says
# nothing, since users set OMPI_MCA_* and OMPI_ALLOW_* outside of a world too.
_MPI_MARKS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


@dataclass(frozen=True)
class World:
    """The processes of one job, and which of them this one is."""

    launcher: Literal["none", "mpi", "torchrun", "slurm"]
    rank: int = 0
    size: int = 1


def process_start() -> float:
    """Start time of this process, before any import, on the clock of time.monotonic().

    Where the system does not tell it (other than Linux), the current time.
    """
    try:
        # Field 22, in clock ticks since the machine started; field 2, the name, may hold spaces.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        age = 0.0
    return time.monotonic() - age


def starting_node(arguments: Sequence[str]) -> World:
    """The World of a launching process: its rank is `strategy.node_rank`, 0 on the lead host."""
    ranks = [text.partition("=")[2] for text in arguments if text.startswith(NODE_RANK)]
    return World("none", rank=int(ranks[-1]) if ranks and ranks[-1].isdecimal() else 0)


def boot_id() -> str:
    """The kernel's boot ID, or "-" if unavailable.

    Processes with the same ID have comparable `time.monotonic()`.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return "-"


def same_clock(told: str | None, *, default: float) -> float:
    """The seconds of a text "SECONDS BOOT_ID" if it has the current boot ID, else `default`."""
    seconds, _, boot = (told or "").partition(" ")
    return float(seconds) if boot == boot_id() else default


def detect(environ: Mapping[str, str] = os.environ) -> World:
    """The World that this process was started in; "none" if no launcher's variables are set."""
    # `srun --mpi=pmi2` sets MPICH's variables too, with Slurm's job number in PMI_JOBID, but no MPI
    # library here can join by PMI2.
    pmi2 = environ.get("PMI_JOBID", "").startswith(f"{environ.get('SLURM_JOB_ID')}.")
    for rank, size in _MPI_MARKS[: 1 if pmi2 else 2]:
        if rank in environ and size in environ:
            return World("mpi", int(environ[rank]), int(environ[size]))
    if "TORCHELASTIC_RUN_ID" in environ:  # also where srun has started torchrun
        return World("torchrun", int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    step = Step.of(environ)
    if step is not None and "PMIX_RANK" in environ:
        return World("mpi", step.rank, step.size)
    if step is not None and step.size > 1:
        return World("slurm", step.rank, step.size)
    return World("none")


NODE_RANK = "strategy.node_rank="
TORCHRUN_PORT = 29500  # torchrun's own default
WAIT_SECONDS = 0.02
_gathered: dict[str, int] = {}  # number of `gather` calls, by key


def share(world: World, key: str, text: str) -> str:
    """Rank 0's text on every rank. A collective: every rank calls it, in the same order."""
    if world.launcher == "mpi":
        return str(load_mpi().COMM_WORLD.bcast(text, root=0))
    if world.launcher in ("torchrun", "slurm"):
        store = _store(world)
        if world.rank == 0:
            store.set(f"xray/{key}", text)
        try:
            return str(store.get(f"xray/{key}").decode())
        except RuntimeError as error:
            raise RunFailedError("rank 0 ended before the run had begun") from error
    return text


def gather(world: World, key: str, text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank. A collective; may take long."""
    if world.launcher == "mpi":
        comm = load_mpi().COMM_WORLD
        waiting = comm.Ibarrier()  # a blocking call would spin on a core that another rank may need
        while not waiting.Test():
            time.sleep(WAIT_SECONDS)
        return [str(one) for one in comm.allgather(text)]
    if world.launcher in ("torchrun", "slurm"):
        store = _store(world)
        _gathered[key] = _gathered.get(key, 0) + 1
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        name = f"xray/{key}/{attempt}/{_gathered[key]}"
        store.set(f"{name}/{world.rank}", text)
        names = [f"{name}/{rank}" for rank in range(world.size)]
        while not store.check(names):  # `get` gives up after five minutes
            time.sleep(WAIT_SECONDS)
        return [store.get(one).decode() for one in names]
    return [text]


@cache
def _store(world: World) -> Any:
    """The key-value store for the ranks' rendezvous, kept for the life of this process."""
    from torch.distributed import TCPStore

    if world.launcher == "torchrun":  # its agent serves the store before any rank starts
        return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    step = Step.of()
    if step is None:
        raise UserError("srun has not told this task its step")
    try:
        # Rank 0 serves it, and waits for all ranks; its process group later shares the same server.
        return TCPStore(
            step.address,
            step.port,
            world.size,
            is_master=world.rank == 0,
            multi_tenant=True,
            timeout=timedelta(seconds=STEP_SECONDS),
        )
    except RuntimeError as error:
        raise UserError(
            f"task {world.rank} on {socket.gethostname()} cannot meet the others of its srun at "
            f"{step.address}:{step.port} ({str(error).splitlines()[0]}); set MASTER_ADDR or "
            "MASTER_PORT to a name and a free port of the first node"
        ) from error


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


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, so that no rank is orphaned.

    Args:
        parent: its process ID, if known: if that process is already dead, this one exits.
    """
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def end(world: World, exit_code: int) -> None:
    """End this process and, on failure, every other rank of its world. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code and world.launcher == "mpi" and world.size > 1 and "mpi4py.MPI" in sys.modules:
        load_mpi().COMM_WORLD.Abort(exit_code)
    if world.launcher == "slurm" and world.rank == 0:
        time.sleep(STORE_SECONDS)
    # torchrun ends the other ranks itself as soon as one exits with an error. A failed rank
    # leaves at once: its exit handlers could wait for ranks that will never answer.
    if exit_code and world.size > 1:
        os._exit(exit_code)
    sys.exit(exit_code)


class Strategy(ABC):
    """Base class of the strategies that the files in conf/strategy/ instantiate."""

    name: ClassVar[str]

    @abstractmethod
    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        """What to put before `train.py ARGS` to start the ranks; None when this process is one.

        Args:
            devices: GPUs on this machine that the run may use, 0 on a CPU.

        Raises:
            UserError: the launcher is missing, or the world is not the one asked for.
        """

    @abstractmethod
    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments of `lightning.Trainer`; called on every rank, once its world is up."""


class Single(Strategy):
    """One process on one device."""

    name = "single"

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        if world.size > 1:
            raise UserError(
                f"strategy=single was started {world.size} times by {world.launcher}; use "
                "strategy=mpi under mpirun, strategy=ddp under torchrun or srun"
            )
        return None

    def trainer_options(self) -> dict[str, Any]:
        from lightning.pytorch.plugins.environments import LightningEnvironment

        # Named, because Lightning's detection of an environment initialises MPI.
        return {"devices": 1, "plugins": [LightningEnvironment()]}


@dataclass
class Distributed(Strategy):
    """DistributedDataParallel of several ranks.

    Args:
        processes: ranks; None takes the world's, or one a GPU, or 2 on a CPU.
        timeout: seconds after which a collective that a rank does not join fails.
        sync_batchnorm: batch statistics over all ranks instead of each rank's own.
        compression: type in which gradients are sent, `bf16` or `fp16`; None for as they are.
        heartbeat: seconds of silence after which a rank counts as lost, at most `timeout`; 0 for
            no such watch.
        address: name or IP address of rank 0's host, by which the others reach it.
        port: TCP port there; None takes a free one.
    """

    processes: int | None = None
    timeout: float = 600
    sync_batchnorm: bool = False
    compression: str | None = None
    heartbeat: float = 30
    address: str | None = None
    port: int | None = None

    launcher: ClassVar[str]

    def __post_init__(self) -> None:
        self.own_address = LOOPBACK  # by which other hosts reach this one, once it is known

    def launch_command(self, world: World, *, devices: int) -> list[str] | None:
        if world.launcher != "none" and not self._joins(world):
            if self.launcher == "mpi" and world.launcher == "slurm":
                raise UserError(
                    "strategy=mpi was started by srun without MPI; use `srun --mpi=pmix`, or "
                    "strategy=ddp, which needs no MPI"
                )
            raise UserError(
                f"strategy={self.name} was started under {world.launcher}; use the strategy that "
                "belongs to the launcher, or start `python train.py` plainly"
            )
        if self.compression not in (None, "bf16", "fp16"):
            raise UserError(
                f"strategy.compression={self.compression} must be bf16, fp16, or null for none"
            )
        if world.launcher == "none":
            if self.processes is not None:
                check_whole("strategy.processes", self.processes, least=1)
            return self._start(devices)
        if self.processes not in (None, world.size):
            raise UserError(
                f"strategy.processes={self.processes}, but the {world.launcher} world has "
                f"{world.size} processes; leave strategy.processes out, or start as many"
            )
        return None

    def _joins(self, world: World) -> bool:
        """Whether this strategy can run in the World that this process was started in."""
        return world.launcher == self.launcher

    @abstractmethod
    def _start(self, devices: int) -> list[str]:
        """The launcher's command, on a machine with `devices` GPUs."""

    def _options(self, environment: Any, *, devices: int, nodes: int) -> dict[str, Any]:
        if devices * nodes == 1:  # a world of one has nothing to reduce
            return {"devices": 1, "plugins": [environment]}
        from xray_lightning.models.sync_batchnorm import PortableSyncBatchNorm

        atexit.register(_leave_group)
        ddp = _ddp(
            self.compression,
            cluster_environment=environment,
            timeout=timedelta(seconds=self.timeout),
            gradient_as_bucket_view=True,  # gradients live in the buckets: one copy less a step
        )
        plugins = [PortableSyncBatchNorm()] if self.sync_batchnorm else []
        return {"strategy": ddp, "devices": devices, "num_nodes": nodes, "plugins": plugins}


def _ddp(compression: str | None, **options: Any) -> Any:
    """Lightning's DDPStrategy; given `compression`, torch's hook sends gradients in that type."""
    from lightning.pytorch.strategies import DDPStrategy
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    if compression is None:
        return DDPStrategy(**options)
    hooks = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
    hook = hooks[compression]

    class Compressed(DDPStrategy):
        def configure_ddp(self) -> None:
            super().configure_ddp()
            model: Any = self.model  # Lightning registers a hook on CUDA alone; Gloo takes it too
            model.register_comm_hook(None, hook)

    return Compressed(**options)


@dataclass
class Torchrun(Distributed):
    """DistributedDataParallel under torchrun, on this machine or on several, or Slurm's srun.

    Args:
        nodes: number of hosts. On each, `train.py` is started once, with equal arguments except:
        node_rank: index of this host; 0 is the one with rank 0 and the run folder.
    """

    nodes: int = 1
    node_rank: int = 0

    name = "ddp"
    launcher = "torchrun"

    def _joins(self, world: World) -> bool:
        return super()._joins(world) or world.launcher == "slurm" or self._is_pmix_step(world)

    @staticmethod
    def _is_pmix_step(world: World) -> bool:
        """Whether the MPI world is an srun step, as on clusters where PMIx is srun's default."""
        step = Step.of()
        same = step is not None and (step.rank, step.size) == (world.rank, world.size)
        return world.launcher == "mpi" and same

    def _start(self, devices: int) -> list[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        check_whole("strategy.nodes", self.nodes, least=1)
        check_whole("strategy.node_rank", self.node_rank, least=0, most=self.nodes - 1)
        if self.nodes == 1:
            ranks = self.processes or devices or 2
            return [*torchrun, "--standalone", f"--nproc-per-node={ranks}"]
        ranks, rest = divmod(self.processes or self.nodes * (devices or 1), self.nodes)
        if ranks < 1 or rest:
            raise UserError(
                f"strategy.processes={self.processes} are all ranks, and cannot be shared out to "
                f"strategy.nodes={self.nodes}; give a multiple"
            )
        address, port = rendezvous(self)
        place = [f"--nnodes={self.nodes}", f"--node-rank={self.node_rank}"]
        place += [f"--master-addr={address}", f"--master-port={port}"]
        return [*torchrun, *place, f"--nproc-per-node={ranks}"]

    def trainer_options(self) -> dict[str, Any]:
        from lightning.pytorch.plugins.environments import TorchElasticEnvironment

        if "TORCHELASTIC_RUN_ID" not in os.environ:
            from xray_lightning.training.slurm_environment import SlurmStepEnvironment

            step = SlurmStepEnvironment()
            if step.nodes > 1:
                self._find_network(detect(), given=step.main_address)
            return self._options(step, devices=step.local_size, nodes=step.nodes)
        local, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        environment: Any = TorchElasticEnvironment()
        if size > local:
            world = World("torchrun", int(os.environ["RANK"]), size)
            environment.hosts = self._find_network(world, given=os.environ["MASTER_ADDR"])
        return self._options(environment, devices=local, nodes=size // local)

    def _find_network(self, world: World, *, given: str) -> list[str]:
        """Choose the network that the hosts share; returns their names. A collective."""
        meeting = agree(partial(gather, world, "addresses"), given=given)
        if meeting.own:
            self.own_address = meeting.own
            use_interface(meeting.own)
        return sorted(set(meeting.hosts))


def rendezvous(strategy: Any) -> tuple[str, int]:
    """Address and port of the host with rank 0, for a `Torchrun` strategy with several hosts.

    Raises:
        UserError: the address is missing, or the port is out of range.
    """
    if not strategy.address:
        raise UserError(
            f"strategy.nodes={strategy.nodes} needs strategy.address, the name or IP address of "
            "the host that is started with strategy.node_rank=0"
        )
    port = TORCHRUN_PORT if strategy.port is None else strategy.port
    check_whole("strategy.port", port, least=1, most=65535)
    return str(strategy.address), int(port)


@dataclass
class Mpirun(Distributed):
    """DistributedDataParallel in an MPI world: mpirun or srun starts it, or this class does.

    Args:
        hosts: where to start them: a list (`[node1,node2:2]`), the same as a text, or the path of
            a hostfile; None starts all here.
        agent: what starts a command on another host; None for ssh.
        mpirun_args: further arguments of mpirun.
    """

    hosts: str | Sequence[str] | None = None
    agent: str | None = None
    mpirun_args: Sequence[str] = ()

    name = "mpi"
    launcher = "mpi"

    def _start(self, devices: int) -> list[str]:
        mpirun, processes = find_mpirun(), self.processes or devices or 2
        hosts = read_hosts(self.hosts) if self.hosts else []
        if hosts:
            hosts = with_ranks(hosts, processes=self.processes, devices=devices)
            if not self.mpirun_args:  # which may name an agent too
                check_agent(self.agent, hosts)
            processes = self.processes or sum(host.ranks or 0 for host in hosts)
        command = mpirun_command(
            mpirun, processes, hosts=hosts, agent=self.agent, further=self.mpirun_args
        )
        # Under `-m mpi4py` an exception that escapes a rank ends all of them.
        return [*command, sys.executable, "-m", "mpi4py"]

    def trainer_options(self) -> dict[str, Any]:
        from xray_lightning.training.mpi_environment import XrayMPIEnvironment

        environment = XrayMPIEnvironment(address=self.address, port=self.port)
        self.own_address = environment.meeting.own or self.own_address
        local, nodes = environment.local_size, len(environment.hosts)
        size = environment.world_size()
        if local * nodes != size:
            raise UserError(
                f"{size} MPI processes on {nodes} hosts, {local} of them here: start equally many "
                "on each host"
            )
        return self._options(environment, devices=local, nodes=nodes)


def _leave_group() -> None:
    """Destroy the process group: its threads, if still alive, could abort the exiting interpreter.

    Lightning does so for NCCL only. It runs at exit, since the jobs of a multirun share a group.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
