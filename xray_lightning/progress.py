"""Progress of long work, downloads included: a live bar on a terminal, lines in a log."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Timer
from time import perf_counter
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from xray_lightning.files import go_on_without

log = logging.getLogger(__name__)

Advance = Callable[[int], None]  # told how many images were done since it was last called
# Opens a display for work over so many images and yields the function that advances it.
Display = Callable[[str, int], AbstractContextManager[Advance]]

QUIET_SECONDS = 2.0  # shorter work shows nothing


def on_terminal() -> bool:
    """Whether a live display would be seen by a person."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class StdoutHandler(logging.StreamHandler[TextIO]):
    """Logs to the current `sys.stdout`, which a live bar replaces to print lines above itself.

    logging's own handler keeps its first stream, and would write into the bar. If stdout fails (the
    reader of its pipe has exited, or the disk of `> FILE` is full), the work goes on without it: a
    run's lines are also in its train.log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stdout)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(error := sys.exc_info()[1], OSError):
            super().handleError(record)
            return
        go_on_without(sys.stdout, error)


def _line(*figures: ProgressColumn, shown: bool) -> Progress:
    """A progress bar of one line, followed by the columns `figures`; erased when it stops."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        *figures,
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
        disable=not shown,
    )


def live_bar(*, shown: bool = True) -> Progress:
    """The bar of counted work; its tasks need a field `rate`, a text."""
    return _line(MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), shown=shown)


def unseen(title: str, images: int) -> AbstractContextManager[Advance]:
    """A `Display` that shows nothing."""
    return nullcontext(lambda done: None)


@contextmanager
def display(title: str, images: int) -> Iterator[Advance]:
    """Show work that takes over `QUIET_SECONDS`: a bar on a terminal, two lines in a log.

    Yields:
        A function that takes how many images were done since its last call.
    """
    start = perf_counter()
    done = 0
    shown = False
    bar = live_bar(shown=on_terminal())
    task = bar.add_task(title, total=images, rate="")

    def show() -> None:
        nonlocal shown
        shown = True
        log.info("%s: %d ...", title, images)
        bar.start()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.update(task, completed=done, rate=f"{done / (perf_counter() - start):.0f} images/s")

    # A timer, since the first call of `advance` may come later than that.
    clock = Timer(QUIET_SECONDS, show)
    clock.daemon = True
    clock.start()
    try:
        yield advance
    finally:
        clock.cancel()
        clock.join()
        bar.stop()
    if shown:
        seconds = perf_counter() - start
        log.info("%s: %d in %.1f s, %.0f images/s", title, done, seconds, done / seconds)


class StoppedError(Exception):
    """The transfers were stopped from outside."""


class Transfers:
    """The bars of several files at once, each with its speed and the time that is left.

    Args:
        stop: once it is set, each bar raises `StoppedError` at its next call.
        shown: draw them; by default on a terminal.
    """

    def __init__(self, *, stop: Event | None = None, shown: bool | None = None) -> None:
        self.stop = stop or Event()
        shown = on_terminal() if shown is None else shown
        self.progress = _line(
            DownloadColumn(binary_units=False), TransferSpeedColumn(), shown=shown
        )

    @contextmanager
    def bar(self, name: str, *, total: int | None) -> Iterator["Bar"]:
        """The bar of one file, removed when the block ends."""
        bar = Bar(self, name, total)
        try:
            yield bar
        finally:
            self.progress.remove_task(bar.task)

    def live(self) -> Progress:
        """The context manager within which the bars are drawn."""
        return self.progress


class Bar:
    """The bar of one file: a `data.download.http.Watch` that also shows the current activity."""

    def __init__(self, transfers: Transfers, name: str, total: int | None) -> None:
        self._transfers = transfers
        self._name = name
        self._bytes, self._start = 0, perf_counter()
        self.task = transfers.progress.add_task(name, total=total)

    def begin(self, done: int, total: int | None) -> None:
        """Start at `done` bytes, from an earlier attempt: they do not count towards the speed."""
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
