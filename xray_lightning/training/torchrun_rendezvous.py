"""Rendezvous of the processes that start torchrun on several hosts, before they do.

The one with `strategy.node_rank=0` has the run folder; it tells the others where that is, at the
address and port at which torchrun's own processes meet afterwards.
"""

import json
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from xray_lightning.errors import UserError

log = logging.getLogger(__name__)

TRY_SECONDS = 1.0  # between two attempts to connect
MOST_BYTES = 65536


def hold_meeting(port: int, *, nodes: int, folders: Mapping[str, str], timeout: float) -> None:
    """Tell every other host the run's folders, and wait until all know.

    Args:
        folders: of this run, by name.
        timeout: seconds in which they have to ask.

    Raises:
        UserError: the port is in use, or a host does not ask.
    """
    deadline, missing = monotonic() + timeout, {*range(1, nodes)}
    try:
        server = socket.create_server(("", port), backlog=nodes)
    except OSError as error:
        raise UserError(
            f"strategy.port={port} cannot be used on {socket.gethostname()} ({error.strerror}); "
            "give another port, the same on every host"
        ) from error
    with server:
        while missing:
            if (left := deadline - monotonic()) <= 0:
                raise UserError(
                    f"strategy.nodes={nodes}: no word of node_rank={min(missing)} within "
                    f"{timeout:g} s; start the same command on that host, with "
                    f"strategy.node_rank={min(missing)}"
                )
            server.settimeout(min(left, TRY_SECONDS))
            with suppress(OSError, ValueError, TypeError):
                guest, _ = server.accept()
                with guest:
                    missing -= _answer(guest, nodes=nodes, missing=missing, folders=folders)


def _answer(
    guest: socket.socket, *, nodes: int, missing: set[int], folders: Mapping[str, str]
) -> set[int]:
    """Answer one host; returns its node rank, or nothing where it has another configuration."""
    guest.settimeout(TRY_SECONDS)
    asked = json.loads(guest.recv(MOST_BYTES))
    rank, problem = asked["node_rank"], ""
    if asked["nodes"] != nodes:
        problem = f"strategy.nodes={asked['nodes']} here, but {nodes} on {socket.gethostname()}"
    elif rank not in missing:
        problem = f"strategy.node_rank={rank} is another host's already; give each its own"
    guest.sendall(json.dumps({"folders": dict(folders), "problem": problem}).encode())
    guest.shutdown(socket.SHUT_WR)
    guest.recv(1)  # the guest closes first: the port is free at once for torchrun
    return set() if problem else {rank}


def join_meeting(
    address: str, port: int, *, nodes: int, node_rank: int, timeout: float
) -> dict[str, str]:
    """Ask the host with `strategy.node_rank=0` for the run's folders, by name.

    Raises:
        UserError: it does not answer, has another configuration, or shares no storage with this.
    """
    deadline, told = monotonic() + timeout, b""
    while not told:
        try:
            with socket.create_connection((address, port), timeout=5 * TRY_SECONDS) as host:
                host.sendall(json.dumps({"nodes": nodes, "node_rank": node_rank}).encode())
                told = host.makefile("rb").read(MOST_BYTES)
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            if unknown or monotonic() > deadline:
                raise UserError(
                    f"strategy.address={address} does not answer on port {port} ({error}); start "
                    "the same command with strategy.node_rank=0 on the host that it names"
                ) from error
            sleep(TRY_SECONDS)
    answer = json.loads(told)
    if answer["problem"]:
        raise UserError(str(answer["problem"]))
    for folder in answer["folders"].values():
        if not Path(folder).is_dir():
            raise not_shared(socket.gethostname(), folder, of=address)
    return dict(answer["folders"])


def not_shared(host: str, folder: object, *, of: str) -> UserError:
    """The error of a host that lacks another one's run folder."""
    return UserError(
        f"host {host} does not find the run folder {folder} of {of}; put it on storage that all "
        "hosts share (hydra.run.dir=FOLDER)"
    )
