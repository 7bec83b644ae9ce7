"""Hosts of one run meet before torchrun starts: whatever else calls or answers on that port."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xray_lightning.errors import UserError
from xray_lightning.training.torchrun_rendezvous import hold_meeting, join_meeting

SECONDS = 30.0  # against a hang alone


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def say(port: int, text: bytes) -> None:
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as host:
                host.sendall(text)
                host.shutdown(socket.SHUT_WR)
                host.makefile("rb").read()
            return
        except ConnectionRefusedError:
            continue


@contextmanager
def answering(text: bytes) -> Iterator[int]:
    """A service that answers every caller by the text, and closes; yields its port."""
    with socket.create_server(("", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    guest, _ = server.accept()
                except OSError:
                    return
                with guest:
                    guest.recv(1000)
                    guest.sendall(text)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)


def test_a_stranger_who_calls_does_not_end_the_meeting(tmp_path: Path) -> None:
    port, folders = free_port(), {"run": str(tmp_path)}
    options = {"nodes": 2, "folders": folders, "timeout": SECONDS}
    host = threading.Thread(target=hold_meeting, args=(port,), kwargs=options)
    host.start()
    for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[]", b"{}", b'{"node_rank": []}', b"7"):
        say(port, text)
    found = join_meeting("127.0.0.1", port, nodes=2, node_rank=1, timeout=SECONDS)
    host.join(SECONDS)
    assert (found, host.is_alive()) == (folders, False)


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]", b'{"problem": ""}', b"7"]
)
def test_another_service_on_the_port_is_one_line(text: bytes) -> None:
    with answering(text) as port, pytest.raises(UserError) as refused:
        join_meeting("127.0.0.1", port, nodes=2, node_rank=1, timeout=SECONDS)
    assert f"strategy.port={port}: what answers on 127.0.0.1 is no host" in str(refused.value)


def test_a_host_that_closes_without_an_answer_is_waited_for_no_longer_than_asked() -> None:
    with answering(b"") as port, pytest.raises(UserError, match="closes the connection without"):
        join_meeting("127.0.0.1", port, nodes=2, node_rank=1, timeout=0.1)


def test_a_run_folder_that_is_not_there_is_told_with_its_host(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    answer = json.dumps({"problem": "", "folders": {"run": gone}}).encode()
    with answering(answer) as port, pytest.raises(UserError) as refused:
        join_meeting("127.0.0.1", port, nodes=2, node_rank=1, timeout=SECONDS)
    assert f"does not find the run folder {gone} of 127.0.0.1" in str(refused.value)
