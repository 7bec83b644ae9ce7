"""A real HTTP server on 127.0.0.1 that misbehaves as it is told."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from unittest.mock import patch

Answer = Callable[["Handler"], None]


@dataclass
class FileServer:
    """Files by path, what to answer before that, and what was asked.

    Attributes:
        files: bodies by path.
        faults: answers that the next requests get instead, one each.
        ranges: whether Range is honoured.
        etag: of every file.
        asked: path and Range of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Answer] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"1"'
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    state: FileServer

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.state.asked.append((path, self.headers["Range"]))
        fault = self.state.faults.pop(0) if self.state.faults else None
        (fault or whole)(self)

    def send(self, *, most: int | None = None) -> None:
        """The file, or what is asked of it, and of that at most so many bytes."""
        state = self.state
        body = state.files.get(self.path.partition("?")[0])
        if body is None:
            self.send_error(404)
            return
        start, wanted = 0, self.headers["Range"]
        same = self.headers["If-Range"] in (None, state.etag)
        if wanted and state.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        if state.etag:
            self.send_header("ETag", state.etag)
        self.end_headers()
        self.wfile.write(body[start:] if most is None else body[start : start + most])
        self.wfile.flush()


def whole(handler: Handler) -> None:
    handler.send()


def cut_after(count: int) -> Answer:
    """So many bytes, then the connection ends."""
    return lambda handler: handler.send(most=count)


def stall_after(count: int) -> Answer:
    """So many bytes, then nothing until the server ends."""

    def answer(handler: Handler) -> None:
        handler.send(most=count)
        handler.state.released.wait(30)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@contextmanager
def serving(state: FileServer, tls: SSLContext | None = None) -> Iterator[FileServer]:
    """The server, asked without a proxy, until the block ends."""
    handler = type("Bound", (Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        with patch.dict(os.environ, no_proxy="127.0.0.1"):
            yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
