"""Environment of an MPI world for Lightning: rank 0's address and port, and each host's ranks.

MPI only lets the ranks find each other and exchange texts; NCCL (CUDA) or Gloo (CPU) runs torch's
collectives, because torch's wheels have no MPI backend.
"""

import os
import socket

from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.environments import MPIEnvironment

from xray_lightning.errors import UserError
from xray_lightning.training.host_network import agree, use_interface
from xray_lightning.training.strategies import load_mpi


def library_version() -> str:
    """The MPI library's name and version, such as "Open MPI v5.0.11"."""
    return str(load_mpi().Get_library_version()).split(",")[0].strip("\0 \n")


class XrayMPIEnvironment(MPIEnvironment):
    """Lightning's MPI environment with all its collectives run in the constructor.

    In the parent class the first access to the address, the port or the local rank is a
    collective, and a rank that never accesses it leaves the others waiting.

    Args:
        address: host name or IP address of rank 0 that all others can reach; None takes the one
            on a network that all hosts share, or the loopback address when all ranks are on one.
        port: free TCP port there; None lets rank 0 choose one.

    Raises:
        UserError: an address that some rank cannot use, or a port that is in use.
    """

    def __init__(self, *, address: str | None = None, port: int | None = None) -> None:
        load_mpi()
        super().__init__()
        comm = self._comm_world
        self.meeting = agree(comm.allgather, given=address)
        self.hosts: list[str] = sorted(set(self.meeting.hosts))
        self._main_address = comm.bcast(self.meeting.main, root=0)
        self._main_port = comm.bcast(port or find_free_network_port(), root=0)
        self._init_comm_local()
        if self._comm_local is None:
            raise RuntimeError("MPI gave no communicator for this host")
        self.local_size: int = self._comm_local.Get_size()
        if len(self.hosts) > 1 and self.meeting.own:
            use_interface(self.meeting.own)
        problem = self._address_problem() or (self._port_problem(port) if port else "")
        problems = [text for text in comm.allgather(problem) if text]
        if problems:  # raise on every rank: raised on one only, the others would hang
            raise UserError(problems[0])

    def _port_problem(self, port: int) -> str:
        if self.global_rank() != 0:
            return ""
        try:
            with socket.create_server(("", port)):
                return ""
        except OSError as error:
            return (
                f"strategy.port={port} cannot be used on {socket.gethostname()} "
                f"({error.strerror}); give another port, or null for a free one"
            )

    def _address_problem(self) -> str:
        host = socket.gethostname()
        try:
            socket.getaddrinfo(self._main_address, self._main_port)
        except OSError as error:
            return (
                f"the main address {self._main_address} cannot be resolved on {host} ({error}); "
                "set strategy.address to a name or IP address of rank 0's host"
            )
        if len(self.hosts) > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
            try:
                own = socket.gethostbyname(host)
            except OSError:
                own = ""
            if own.startswith("127."):  # Debian's /etc/hosts; Gloo would advertise it and hang
                return (
                    f"host {host} resolves its own name to {own}, where no other host can reach "
                    "it; set GLOO_SOCKET_IFNAME to the network interface, such as eth0"
                )
        return ""
