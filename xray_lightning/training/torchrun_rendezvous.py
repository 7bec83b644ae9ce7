"""Rendezvous of the launching processes on several hosts, before each of them starts torchrun.

The process with `strategy.node_rank=0` makes the run folder, and tells the others its path. It uses
the address and port that torchrun's own rendezvous uses afterwards.
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
    """Serve the run's folders until every other host has asked for them.

    Args:
        folders: paths by the run's name.
        timeout: seconds within which every host has to ask.

    Raises:
        UserError: the port is in use, or a host has not asked in time.
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
            with suppress(OSError, ValueError, TypeError, LookupError):
                guest, _ = server.accept()
                with guest:
                    missing -= _answer(guest, nodes=nodes, missing=missing, folders=folders)


def _answer(
    guest: socket.socket, *, nodes: int, missing: set[int], folders: Mapping[str, str]
) -> set[int]:
    """Answer one host; returns a set of its node rank, empty if its configuration does not fit."""
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
        UserError: it does not answer, has another configuration, or its folder is not found here.
    """
    deadline, told = monotonic() + timeout, b""
    while not told:
        try:
            with socket.create_connection((address, port), timeout=5 * TRY_SECONDS) as host:
                host.sendall(json.dumps({"nodes": nodes, "node_rank": node_rank}).encode())
                told = host.makefile("rb").read(MOST_BYTES)
                if not told:
                    raise ConnectionError("it closes the connection without an answer")
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            if unknown or monotonic() > deadline:
                raise UserError(
                    f"strategy.address={address} does not answer on port {port} ({error}); start "
                    "the same command with strategy.node_rank=0 on the host that it names"
                ) from error
            sleep(TRY_SECONDS)
    try:
        answer = json.loads(told)
        problem, folders = answer["problem"], dict(answer["folders"])
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(
            f"strategy.port={port}: what answers on {address} is no host of this run; give a free "
            "port, the same on every host"
        ) from error
    if problem:
        raise UserError(str(problem))
    for folder in folders.values():
        if not Path(folder).is_dir():
            raise not_shared(socket.gethostname(), folder, of=address)
    return folders


def not_shared(host: str, folder: object, *, of: str) -> UserError:
    """The error of a host that lacks another one's run folder."""
    return UserError(
        f"host {host} does not find the run folder {folder} of {of}; put it on storage that all "
        "hosts share (hydra.run.dir=FOLDER)"
    )
