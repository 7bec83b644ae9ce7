"""List of a job's hosts, from the configuration or a hostfile, and the ranks of each."""

import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xray_lightning.errors import UserError, check_whole
from xray_lightning.training.host_network import own_addresses

KEY = "strategy.hosts"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a host, or its IPv4 address
_SLOTS = re.compile(r"(?P<name>[^\s:]+)\s*(?::\s*|\s+slots\s*=\s*)?(?P<ranks>[^\s:=]*)(\s.*)?")


@dataclass(frozen=True)
class Host:
    """A host of a job, and its number of ranks; None if that is not given."""

    name: str
    ranks: int | None = None


def read_hosts(hosts: str | Sequence[str]) -> list[Host]:
    """The hosts that a list, a text such as `node1:2,node2:2`, or the path of a hostfile names.

    A hostfile has one host per line, as for Open MPI (`node1 slots=2`) or MPICH (`node1:2`).

    Raises:
        UserError: an entry is not a host (named with its key or line), none is given, one is given
            twice, or the hostfile cannot be read.
    """
    if isinstance(hosts, str) and ("/" in hosts or Path(hosts).is_file()):
        try:
            text = Path(hosts).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{KEY}={hosts}: the hostfile cannot be read ({error})") from error
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        entries = [(f"{hosts}, line {n}", line) for n, line in enumerate(lines, start=1) if line]
    else:
        parts = hosts.split(",") if isinstance(hosts, str) else [str(part) for part in hosts]
        entries = [(KEY, part.strip()) for part in parts]
    found = [_host(entry, place=place) for place, entry in entries]
    names = [host.name for host in found]
    if not names:
        raise UserError(f"{KEY}={hosts} names no host; give [node1,node2], or null for this one")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{KEY} names {twice[0]} twice; give it once, with all its ranks")
    return found


def _host(entry: str, *, place: str) -> Host:
    parts = _SLOTS.fullmatch(entry)
    # A name that began with a dash would be an option of mpirun or ssh.
    if parts is None or not _NAME.fullmatch(parts["name"]):
        raise UserError(f"{place}: {entry!r} is no host; give its name, and :N for N ranks there")
    if not parts["ranks"]:
        return Host(parts["name"])
    ranks = int(parts["ranks"]) if parts["ranks"].isdecimal() else parts["ranks"]
    check_whole(f"{place}: ranks of {parts['name']}", ranks, least=1)
    return Host(parts["name"], int(ranks))


def with_ranks(hosts: Sequence[Host], *, processes: int | None, devices: int) -> list[Host]:
    """The hosts, each with its number of ranks.

    Hosts without a number share out `processes` evenly. Without `processes`, each gets as many
    ranks as this machine has GPUs, or one; this machine then has to be one of the hosts.

    Args:
        processes: `strategy.processes`.
        devices: GPUs of this machine.

    Raises:
        UserError: the number cannot be determined, or differs between hosts.
    """
    given = sum(host.ranks or 0 for host in hosts)
    open_ = [host for host in hosts if host.ranks is None]
    if not open_:
        ranks = 0
    elif processes is not None:
        ranks, rest = divmod(processes - given, len(open_))
        if ranks < 1 or rest:
            raise UserError(
                f"strategy.processes={processes} cannot be shared out to {len(hosts)} hosts; give "
                f"a multiple of {len(hosts)}, or the ranks of each host as {hosts[0].name}:N"
            )
    elif any(is_here(host.name) for host in hosts):
        ranks = devices or 1
    else:
        raise UserError(
            f"{KEY}: how many GPUs {open_[0].name} has cannot be known from here, which is none of "
            f"the hosts; give the ranks of each as {open_[0].name}:N, or strategy.processes"
        )
    full = [Host(host.name, host.ranks or ranks) for host in hosts]
    if len({host.ranks for host in full}) > 1:
        told = ", ".join(f"{host.name}:{host.ranks}" for host in full)
        raise UserError(f"{KEY}: {told}: give each host equally many ranks")
    return full


def is_here(name: str) -> bool:
    """Whether a host's name or address is this machine's."""
    own = socket.gethostname()
    if name in (own, own.partition(".")[0]):
        return True
    with suppress(OSError):
        address = socket.gethostbyname(name)
        addresses = {text.partition("/")[0] for text in own_addresses().values()}
        return address.startswith("127.") or address in addresses
    return False
