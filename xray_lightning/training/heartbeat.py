"""Heartbeat between rank 0 and every other rank; prolonged silence of one ends the job.

A collective whose partner is stopped or unreachable waits for the process group's timeout, and
then fails with an error that names no rank. Here each rank sends a UDP datagram to rank 0 every few
seconds, and rank 0 answers. A rank that was heard from once and is then silent for too long counts
as lost; rank 0 tells all others which one it is, and every rank exits.
"""

import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic, sleep
from types import TracebackType

from xray_lightning.errors import EXIT_RUN_FAILED, RunFailedError
from xray_lightning.training.launch import Failure, shortest
from xray_lightning.training.strategies import Distributed, World, share

log = logging.getLogger(__name__)

BEATS = 6  # datagrams within the time after which a rank is lost: some may be dropped
MOST_SECONDS = 5.0  # at most, between two beats
REPEATS = 3  # copies sent of a failure message, since datagrams may be dropped
GRACE_SECONDS = 4.0  # for a rank that was told of a failure to leave by itself
LAST_SECONDS = 10.0  # limit for recording the failure, which may hang on a disk that is gone


@dataclass(frozen=True)
class Member:
    """A rank of the job, and where it is."""

    rank: int
    host: str
    address: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


class Heartbeat:
    """Watches the ranks during the `with` block, and sends them an exception that escapes it.

    Args:
        world: of this rank; entering the block is a collective.
        members: all ranks, in their order.
        seconds: of silence after which a rank is lost.
        folder: the run folder, named in messages.
        on_lost: reports and records the failure; the process exits after it.
    """

    def __init__(
        self,
        world: World,
        members: Sequence[Member],
        *,
        seconds: float,
        folder: Path,
        on_lost: Callable[[Failure], None],
    ) -> None:
        self._world, self._members = world, members
        self._folder = folder
        self._seconds, self._on_lost = seconds, on_lost
        self._interval = min(MOST_SECONDS, seconds / BEATS)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._hub: tuple[str, int] = ("", 0)
        self._token = ""
        self._seen: dict[int, float] = {}  # time.monotonic() of each rank's last datagram
        self._places: dict[int, tuple[str, int]] = {}
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if self._world.rank == 0:
            self._socket.bind(("", 0))
        told = share(
            self._world,
            "heartbeat",
            json.dumps([self._socket.getsockname()[1], secrets.token_hex(8)]),
        )
        port, self._token = json.loads(told)
        self._hub = (self._members[0].address, port)
        self._socket.settimeout(self._interval)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if error is not None and len({member.host for member in self._members}) > 1:
            # MPI_Abort and torchrun end this host's ranks, but others late or not at all.
            self._tell(Failure.of(error, self._world))
        self._thread.join(timeout=2 * self._interval)
        self._socket.close()

    def silent(self) -> str:
        """A message that names the ranks silent for more than 3 intervals; empty if none is."""
        now = monotonic()
        late = [rank for rank, seen in self._seen.items() if now - seen > 3 * self._interval]
        return self._words(late) if late else ""

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        awake = monotonic()
        while not self._stopped.is_set():
            if self._world.rank > 0:
                self._send({"rank": self._world.rank}, self._hub)
            self._listen(until=awake + self._interval)
            now = monotonic()
            if now - awake > 3 * self._interval:  # this process itself was paused: count anew
                self._seen = dict.fromkeys(self._seen, now)
            awake = now
            # Other ranks wait longer, so that rank 0, if it is alive, is the first to report.
            limit = self._seconds + (2 * self._interval if self._world.rank else 0.0)
            lost = [rank for rank, seen in self._seen.items() if now - seen > limit]
            if lost and not self._stopped.is_set():
                failure = Failure(self._words(lost), EXIT_RUN_FAILED)
                self._tell(failure)
                self._leave(failure)

    def _listen(self, *, until: float) -> None:
        while (left := until - monotonic()) > 0 and not self._stopped.is_set():
            self._socket.settimeout(left)
            try:
                content, sender = self._socket.recvfrom(65536)
                message = json.loads(content)
            except TimeoutError:
                return
            except (OSError, ValueError):
                self._stopped.wait(min(left, 0.05))
                continue
            if isinstance(message, dict) and message.get("token") == self._token:
                self._take(message, sender)

    def _take(self, message: Mapping[str, object], sender: tuple[str, int]) -> None:
        rank = message.get("rank")
        if not isinstance(rank, int) or not 0 <= rank < len(self._members):
            return
        self._seen[rank] = monotonic()
        self._places[rank] = sender
        failure = message.get("failure")
        if isinstance(failure, dict):
            told = Failure(**failure)
            if self._world.rank == 0:  # from one rank: pass it on to all
                self._tell(told)
            if not self._stopped.wait(GRACE_SECONDS):
                self._leave(told)
        elif self._world.rank == 0:
            self._send({"rank": 0}, sender)

    def _send(self, message: Mapping[str, object], place: tuple[str, int]) -> None:
        with suppress(OSError):
            self._socket.sendto(json.dumps({"token": self._token, **message}).encode(), place)

    def _tell(self, failure: Failure) -> None:
        places = [self._hub] if self._world.rank else list(self._places.values())
        for place in places * REPEATS:
            self._send({"rank": self._world.rank, "failure": asdict(failure)}, place)

    def _leave(self, failure: Failure) -> None:
        """End this process, which may be stuck in a collective for good."""
        Timer(LAST_SECONDS, os._exit, [failure.exit_code]).start()
        self._on_lost(failure)
        os._exit(failure.exit_code)

    def _words(self, ranks: Sequence[int]) -> str:
        silence = monotonic() - min(self._seen[rank] for rank in ranks)
        since = datetime.now() - timedelta(seconds=silence)
        who = ", ".join(str(self._members[rank]) for rank in sorted(ranks))
        have = "have" if len(ranks) > 1 else "has"
        return (
            f"{who} {have} not answered {self._members[self._world.rank]} since "
            f"{since:%H:%M:%S} ({silence:.0f} s): stopped, or its host or network is gone; go on "
            f"with resume={self._folder} on the hosts that are left"
        )


@contextmanager
def watch(
    world: World,
    members: Sequence[Member],
    *,
    strategy: Distributed,
    folder: Path,
    on_lost: Callable[[Failure], None],
) -> Iterator[None]:
    """Run the block under a `Heartbeat`; a collective that fails becomes a plain RunFailedError."""
    if not strategy.heartbeat:
        yield
        return
    seconds = min(strategy.heartbeat, strategy.timeout)
    heartbeat = Heartbeat(world, members, seconds=seconds, folder=shortest(folder), on_lost=on_lost)
    with heartbeat:
        try:
            yield
        except RuntimeError as error:
            if not _COLLECTIVE.search(str(error)):
                raise
            reason = _reason(str(error), heartbeat, timeout=strategy.timeout)
            raise RunFailedError(reason) from error


# What errors of Gloo, NCCL and the rendezvous store (TCPStore) say when a rank is gone.
_COLLECTIVE = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|TCPStore", re.DOTALL
)


def _reason(said: str, heartbeat: Heartbeat, *, timeout: float) -> str:
    if silent := heartbeat.silent():
        return silent
    if re.search(r"[Tt]imed? ?out", said):
        return (
            f"a rank did not join the others within strategy.timeout={timeout:g} s, although all "
            "answer: it is stuck, or slower than that"
        )
    sleep(GRACE_SECONDS)  # let the rank that ended, or the launcher, report the cause first
    return "the connection to another rank was closed: it has ended"
