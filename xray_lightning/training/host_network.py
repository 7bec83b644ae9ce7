"""Networks of a host: its addresses, and the network by which the hosts of a job reach each other.

A host's name is not enough where it resolves to a loopback address on the host itself (Debian's
default), or where the host has further networks (as container engines create them).
"""

import ipaddress
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"

# By default, NCCL takes the first interface it finds, Gloo that of the host name's address.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFNETMASK = 0x8913, 0x8915, 0x891B
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8

Addresses = Mapping[str, str]  # of one host: "eth0" -> "10.0.0.7/24"


@dataclass(frozen=True)
class Meeting:
    """Addresses by which the ranks of a job reach each other.

    Attributes:
        hosts: each rank's host name, in rank order.
        main: rank 0's address, as given or as found.
        own: this rank's address, by which others reach it; None if it is unknown.
    """

    hosts: list[str]
    main: str
    own: str | None


def agree(exchange: Callable[[str], list[str]], *, given: str | None = None) -> Meeting:
    """Choose by which addresses the ranks of a job reach each other. A collective.

    Args:
        exchange: all-gather: takes this rank's text, returns every rank's text in rank order.
        given: rank 0's address, if the user has given it.
    """
    host = socket.gethostname()
    told = [json.loads(text) for text in exchange(json.dumps([host, own_addresses()]))]
    hosts = [name for name, _ in told]
    if len({*hosts}) == 1:
        return Meeting(hosts, given or LOOPBACK, LOOPBACK)
    # Rank 0's host may resolve its own name to loopback, so only the other hosts look it up.
    seen = exchange("" if host == hosts[0] else _resolved(given or hosts[0]))
    resolved = next((one for one in seen if one), "")
    by_host = dict(reversed(told))  # addresses from each host's first rank
    network = shared_network([by_host[name] for name in dict.fromkeys(hosts)], address=resolved)
    if network is not None:
        main = given or address_in(network, by_host[hosts[0]]) or hosts[0]
        return Meeting(hosts, main, address_in(network, by_host[host]))
    main = given or resolved or hosts[0]
    return Meeting(hosts, main, address_towards(resolved or main))


def _resolved(name: str) -> str:
    """The address that a name resolves to; empty if it does not, or to a loopback address."""
    with suppress(OSError):
        address = socket.gethostbyname(name)
        return "" if address.startswith("127.") else address
    return ""


def own_addresses() -> dict[str, str]:
    """The IPv4 address and prefix length of each interface that is up, except loopback.

    The result is empty on systems other than Linux.
    """
    try:
        import fcntl

        names = [name for _, name in socket.if_nameindex()]
    except (ImportError, OSError):
        return {}
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in names:
            with suppress(OSError):  # it has no IPv4 address, or this is not Linux
                request = struct.pack("256s", name.encode()[:15])
                answers = [
                    fcntl.ioctl(probe, number, request)
                    for number in (_SIOCGIFFLAGS, _SIOCGIFADDR, _SIOCGIFNETMASK)
                ]
                (flags,) = struct.unpack_from("H", answers[0], 16)
                address, mask = (socket.inet_ntoa(answer[20:24]) for answer in answers[1:])
                if flags & _IFF_UP and not flags & _IFF_LOOPBACK:
                    found[name] = str(ipaddress.ip_interface(f"{address}/{mask}"))
    return found


def shared_network(hosts: Sequence[Addresses], *, address: str = "") -> str | None:
    """The network, such as `10.0.0.0/24`, in which every host has an address of its own.

    Of several, the one that contains `address`, else the first in the first host's order. None if
    the hosts share no network, as behind routers.
    """
    candidates = []
    for text in hosts[0].values() if hosts else ():
        network = ipaddress.ip_interface(text).network
        members = [address_in(str(network), host) for host in hosts]
        if None not in members and len({*members}) == len(members):
            candidates.append(network)
    with suppress(ValueError):  # `address` is a name, or empty
        preferred = ipaddress.ip_address(address)
        candidates.sort(key=lambda network: preferred not in network)
    return str(candidates[0]) if candidates else None


def address_in(network: str, host: Addresses) -> str | None:
    """A host's address in a network."""
    for text in host.values():
        one = ipaddress.ip_interface(text)
        if str(one.network) == network:
            return str(one.ip)
    return None


def interface_of(address: str, host: Addresses) -> str | None:
    """The name of the host's interface with this address; None if it has none."""
    return next((name for name, text in host.items() if text.split("/")[0] == address), None)


def address_towards(name: str) -> str | None:
    """This host's source address towards another host; None without a route, or if loopback."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((name, 9))  # no packet is sent: the system looks its route up
        own = str(probe.getsockname()[0])
        return None if own.startswith("127.") else own
    return None


def use_interface(address: str) -> None:
    """Have Gloo and NCCL use the interface with this address, unless the user has named one."""
    interface = interface_of(address, own_addresses())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)
