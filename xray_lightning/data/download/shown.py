"""Transfers, shown: a live bar for each on a terminal, one line for each in a log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from time import perf_counter
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from xray_lightning.progress import on_terminal

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """The transfers were stopped from outside."""


class Bar(Protocol):
    """One file on its way: a `fetch.Watch` that also knows what is being done."""

    def begin(self, done: int, total: int | None) -> None: ...

    def advance(self, count: int) -> None: ...

    def doing(self, what: str) -> None: ...


class Transfers:
    """The bars of several files at once, each with its speed and the time that is left.

    Args:
        stop: once set, every bar raises `StoppedError` when it is told of anything.
        shown: draw them; by default on a terminal.
    """

    def __init__(self, *, stop: Event | None = None, shown: bool | None = None) -> None:
        self.stop = stop or Event()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=False),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
            disable=not (on_terminal() if shown is None else shown),
        )

    @contextmanager
    def bar(self, name: str, *, total: int | None) -> Iterator[Bar]:
        """The bar of one file, gone at the end."""
        bar = _Bar(self, name, total)
        try:
            yield bar
        finally:
            self.progress.remove_task(bar.task)

    @contextmanager
    def live(self) -> Iterator["Transfers"]:
        with self.progress:
            yield self


class _Bar:
    def __init__(self, transfers: Transfers, name: str, total: int | None) -> None:
        self._transfers = transfers
        self._name = name
        self._bytes, self._start = 0, perf_counter()
        self.task = transfers.progress.add_task(name, total=total)

    def begin(self, done: int, total: int | None) -> None:
        """So many bytes are there: they were no work of ours, and do not count as speed."""
        self._check()
        self._transfers.progress.reset(self.task, total=total, completed=done)

    def advance(self, count: int) -> None:
        self._check()
        self._bytes += count
        self._transfers.progress.advance(self.task, count)

    def doing(self, what: str) -> None:
        self._check()
        self._transfers.progress.update(self.task, description=f"{self._name}: {what}")
        if self._bytes:
            seconds = perf_counter() - self._start
            log.info(
                "%s: %.1f MB in %.1f s, %.1f MB/s; %s",
                self._name,
                self._bytes / 1e6,
                seconds,
                self._bytes / 1e6 / seconds,
                what,
            )
        self._bytes, self._start = 0, perf_counter()

    def _check(self) -> None:
        if self._transfers.stop.is_set():
            raise StoppedError
