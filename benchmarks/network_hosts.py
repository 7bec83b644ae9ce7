"""Simulated hosts on this machine: network namespaces with host names, connected by a bridge.

    with network(2) as hosts:
        hosts[0].run(["ping", "-c", "1", "node2"])

A host has its own network, hostname, mounts and /etc/hosts, and shares this machine's files,
processes and cores. No name is visible outside its namespace, so that several networks can exist at
once. The hosts and all processes on them end with the process that made them, even if it is killed.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

NETWORK = "10.77.0"
INTERFACE = "eth0"
PROGRAMS = ("hostname", "ip", "mount", "nsenter", "unshare")
NAMESPACES = ("--net", "--uts", "--mount", "--ipc")

# The keeper runs until its stdin closes, when the process that made the network ends. Then it kills
# all processes in the namespaces, which would keep these alive.
KEEPER = """
import ctypes, os, shutil, signal, subprocess, sys, time
die = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with this process
count, folder, *kinds = sys.argv[1:]
holders = [
    subprocess.Popen(["unshare", *kinds, "sleep", "infinity"], preexec_fn=die, stdin=-3)
    for _ in range(int(count))
]
own = os.stat("/proc/self/ns/net").st_ino
def network(pid):
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return own
def unshared():
    try:
        return all(open(f"/proc/{one.pid}/comm").read() == "sleep\\n" for one in holders)
    except OSError:
        return False
while not unshared():
    if any(one.poll() is not None for one in holders):
        sys.exit(1)
    time.sleep(0.005)
networks = {network(one.pid) for one in holders} - {own}
print(*(one.pid for one in holders), flush=True)
sys.stdin.read()
for _ in range(50):
    left = [int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and network(pid) in networks]
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for one in holders:
        one.poll()
    if not left:
        break
    time.sleep(0.05)
shutil.rmtree(folder, ignore_errors=True)
"""

# Called as ssh is: options, a host, and a command for its shell, which gets a clean environment.
AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
pid=$(cat "FOLDER/$1.pid") || exit 255
shift
exec nsenter -t "$pid" -n -u -m -i -- env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME="$HOME" \\
    /bin/sh -c "cd; $*"
"""


@dataclass(frozen=True)
class Host:
    """One of the network's hosts.

    Attributes:
        pid: a process that holds its namespaces, for `nsenter`.
        interface: the name of its veth inside it, for `tc`.
        port: the name of the other end in the namespace of the bridge.
        bridge: a process that holds that namespace.
        folder: holds the network's files, such as `agent`, a stand-in for ssh.
    """

    name: str
    address: str
    pid: int
    interface: str
    port: str
    bridge: int
    folder: Path

    @property
    def agent(self) -> str:
        """Path of a program that takes `HOST COMMAND` as ssh does."""
        return str(self.folder / "agent")

    def command(self, arguments: Sequence[str], *, folder: Path | None = None) -> list[str]:
        """The command line that runs `arguments` on this host, in `folder` or the caller's."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", "-i"]
        return [*inside, f"--wd={folder or Path.cwd()}", "--", *arguments]

    def run(self, arguments: Sequence[str]) -> str:
        """Run a command on this host to its end; returns its stdout.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        return _run(self.command(arguments))

    def start(
        self, arguments: Sequence[str], *, folder: Path, env: Mapping[str, str], **further: Any
    ) -> "subprocess.Popen[str]":
        """Start a command on this host, its output piped."""
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "text": True, "env": dict(env)} | further
        return subprocess.Popen(self.command(arguments, folder=folder), **options)

    def processes(self) -> list[int]:
        """The processes that run on this host."""
        own, found = os.stat(f"/proc/{self.pid}/ns/net").st_ino, []
        for entry in os.listdir("/proc"):
            with suppress(OSError):  # it has ended meanwhile
                if entry.isdecimal() and os.stat(f"/proc/{entry}/ns/net").st_ino == own:
                    state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(entry)] if state != "Z" else []
        return [pid for pid in found if pid != self.pid]

    def cut(self) -> None:
        """Drop every packet from and to this host, silently: its own interface stays up."""
        _inside(self.bridge, f"ip link set {self.port} nomaster")

    def join(self) -> None:
        """Undo `cut`."""
        _inside(self.bridge, f"ip link set {self.port} master br0")


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _inside(pid: int, *lines: str) -> None:
    """Run lines of a shell in the namespaces of a process."""
    _run(["nsenter", "-t", str(pid), "-n", "-u", "-m", "-i", "sh", "-ec", "\n".join(lines)])


@cache
def lacking() -> str:
    """Why this machine cannot make hosts; empty if it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"no {program} on PATH"
    try:
        _run(["unshare", *NAMESPACES, "sh", "-ec", "ip link add br0 type bridge; hostname x"])
    except (OSError, subprocess.SubprocessError) as error:
        told = str(getattr(error, "stderr", "") or error).strip()
        return f"namespaces of one's own are not allowed here: {told}"
    return ""


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """Make `count` connected hosts: `node1` at 10.77.0.1 and so on.

    As on Debian, each resolves its own name to 127.0.1.1. As with a container engine, each has
    another interface, docker0, with the same address on all hosts.
    """
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    keeper, (bridge, *pids) = _keeper(count, folder)
    assert keeper.stdin is not None  # noqa: S101 - as asked for
    assert keeper.stdout is not None  # noqa: S101
    try:
        _inside(bridge, "ip link add br0 type bridge", "ip link set br0 up")
        (folder / "agent").write_text(AGENT.replace("FOLDER", shlex.quote(str(folder))))
        (folder / "agent").chmod(0o755)
        hosts = [
            Host(f"node{n}", f"{NETWORK}.{n}", pid, INTERFACE, f"port{n}", bridge, folder)
            for n, pid in enumerate(pids, start=1)
        ]
        for host in hosts:
            _connect(host, hosts)
        yield hosts
    finally:
        keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(timeout=10)
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def _keeper(count: int, folder: Path) -> "tuple[subprocess.Popen[str], list[int]]":
    """The keeper process, and a PID in each namespace: first the bridge's, then the hosts'."""
    for _ in range(3):  # on a busy machine, making the namespaces may need another attempt
        keeper = subprocess.Popen(
            [sys.executable, "-S", "-c", KEEPER, str(count + 1), str(folder), *NAMESPACES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # signals to the caller's process group do not reach it
        )
        assert keeper.stdout is not None  # noqa: S101
        if pids := [int(pid) for pid in keeper.stdout.readline().split()]:
            return keeper, pids
        keeper.communicate()
    raise RuntimeError("the namespaces of the hosts could not be made")


def _connect(host: Host, hosts: Sequence[Host]) -> None:
    names = [("127.0.0.1", "localhost"), ("127.0.1.1", host.name)]
    names += [(other.address, other.name) for other in hosts if other != host]
    table, switch = (host.folder / f"{host.name}.{name}" for name in ("hosts", "nsswitch"))
    table.write_text("".join(f"{address} {name}\n" for address, name in names))
    # Without DNS: a name server that cannot be reached costs seconds at each look-up.
    switch.write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    (host.folder / f"{host.name}.pid").write_text(str(host.pid))
    _inside(
        host.bridge,
        f"ip link add {host.port} type veth peer name {host.interface} netns {host.pid}",
        f"ip link set {host.port} master br0 up",
    )
    _inside(
        host.pid,
        f"hostname {host.name}",
        "ip link set lo up",
        f"ip addr add {host.address}/24 dev {host.interface}",
        f"ip link set {host.interface} up",
        "ip link add docker0 type bridge",
        "ip addr add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        f"mount --bind {table} /etc/hosts",
        f"mount --bind {switch} /etc/nsswitch.conf",
    )


def wait_for(true: Callable[[], bool], *, seconds: float) -> bool:
    """Whether a condition becomes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def shape(host: Host, *, mbit: float | None) -> None:
    """Limit what a host sends and receives to `mbit` Mbit/s each; None for no limit."""
    for pid, interface in ((host.pid, host.interface), (host.bridge, host.port)):
        with suppress(subprocess.CalledProcessError):  # there was no limit
            _inside(pid, f"tc qdisc del dev {interface} root")
        if mbit is not None:
            burst = max(32, round(mbit))  # kilobytes: a packet of the veth has up to 64
            limit = f"rate {mbit}mbit burst {burst + 64}k latency 50ms"
            _inside(pid, f"tc qdisc add dev {interface} root tbf {limit}")


def stop(processes: Sequence[int]) -> None:
    """Kill processes that may be gone already."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
