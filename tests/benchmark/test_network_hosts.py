"""Hosts of network namespaces: that they are apart, can be cut off, and leave nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY

from benchmarks.network_hosts import lacking, network, shape, wait_for

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

GREET = "import socket; print(socket.gethostname(), socket.gethostbyname('node2'))"
CALL = "import socket; socket.create_connection(('node2', 7777), timeout=1).recv(9)"
ANSWER = """
import socket
server = socket.create_server(("", 7777))
print("ready", flush=True)
while True:
    server.accept()[0].sendall(b"here")
"""
MAKE = """
import os, subprocess, time
from benchmarks.network_hosts import network
with network(2) as hosts:
    left = hosts[1].start(["sleep", "600"], folder="/", env=os.environ)
    print(left.pid, hosts[0].pid, flush=True)
    time.sleep(600)
"""


def test_hosts_have_names_and_reach_each_other_until_one_is_cut() -> None:
    with network(2) as (one, two):
        assert one.run([sys.executable, "-c", GREET]).split() == ["node1", "10.77.0.2"]
        assert two.run([sys.executable, "-c", GREET]).split() == ["node2", "127.0.1.1"]
        told = one.run([one.agent, "-x", "node2", "hostname; env; echo $PWD"])
        assert told.startswith("node2\n")
        assert "PYTEST" not in told
        answering = two.start([sys.executable, "-c", ANSWER], folder=Path("/"), env=os.environ)
        assert answering.stdout is not None
        assert answering.stdout.readline() == "ready\n"
        assert answering.pid in two.processes()
        one.run([sys.executable, "-c", CALL])
        two.cut()
        with pytest.raises(subprocess.CalledProcessError):
            one.run([sys.executable, "-c", CALL])
        two.join()
        if shutil.which("tc"):
            shape(two, mbit=10)
        one.run([sys.executable, "-c", CALL])
    answering.communicate(timeout=30)
    assert answering.returncode == -signal.SIGKILL


def test_a_network_and_its_processes_end_with_the_process_that_made_it() -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    processes = [int(text) for text in maker.stdout.readline().split()]
    assert all(psutil.pid_exists(process) for process in processes)
    maker.kill()
    maker.communicate()
    assert wait_for(
        lambda: not any(psutil.pid_exists(process) for process in processes), seconds=30
    )
