"""Work in threads, ahead of the caller: results in order, and an immediate end on Ctrl-C."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from xray_lightning.errors import EXIT_INTERRUPTED, InterruptedRunError, RunFailedError, XrayError

WAIT_SECONDS = 0.2  # longest single wait for a result

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads() -> int:
    """CPU threads that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def in_threads(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int | None = None,
    ahead: int | None = None,
) -> Generator[Result, None, None]:
    """`map(work, items)` in threads: the results in order, an error raised in its item's turn.

    Items are taken only as fast as results are, so that memory does not grow with their number. If
    the caller stops early, running calls are waited for, except on Ctrl-C: the threads are daemons,
    unlike an executor's, so that one waiting for a server does not keep the process alive.

    Args:
        work: called in the threads.
        items: taken in the caller's thread.
        jobs: threads; None for one per core.
        ahead: results that may wait for the caller to take them; None for four per thread.
    """
    jobs = threads() if jobs is None else jobs
    ahead = 4 * jobs if ahead is None else ahead
    todo: queue.SimpleQueue[tuple[Future[Result], Item] | None] = queue.SimpleQueue()
    waiting: deque[Future[Result]] = deque()

    def run() -> None:
        while (task := todo.get()) is not None:
            future, item = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(item))
                except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                    future.set_exception(error)
            del task, future, item  # no result is held while the next item is waited for

    pool = [threading.Thread(target=run, daemon=True, name="in_threads") for _ in range(jobs)]
    for thread in pool:
        thread.start()
    interrupted = False
    try:
        for item in items:
            future: Future[Result] = Future()
            waiting.append(future)
            todo.put((future, item))
            del future
            if len(waiting) > ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        for unwanted in waiting:
            unwanted.cancel()
        for _ in pool:
            todo.put(None)
        for thread in () if interrupted else pool:
            thread.join()


def _result(future: Future[Result]) -> Result:
    """The future's result, waited for in steps of `WAIT_SECONDS`.

    A signal that arrives just before a wait is handled only after it, however long it lasts; in a
    trial this delayed one Ctrl-C in sixty.
    """
    while not future.done():
        wait([future], timeout=WAIT_SECONDS)
    return future.result()


def all_of(
    work: Sequence[Callable[[], Result]], *, jobs: int, stop: threading.Event
) -> list[Result]:
    """Make all calls, `jobs` at once, and return their results in order.

    A call that fails does not end the others: a download of hours should not stop because one of
    its files is missing.

    Raises:
        XrayError: that of the only call that failed, or one with the messages of all.
        InterruptedRunError: Ctrl-C; `stop` is set, and a later call can resume partial work.
    """
    results: dict[int, Result] = {}
    faults: dict[int, BaseException] = {}

    def attempt(place: int) -> None:
        try:
            results[place] = work[place]()
        except BaseException as error:  # noqa: BLE001 - raised below, when the others are done
            faults[place] = error

    try:
        for _ in in_threads(attempt, range(len(work)), jobs=min(jobs, len(work)), ahead=len(work)):
            pass
    except KeyboardInterrupt:
        stop.set()
        raise InterruptedRunError(
            "stopped; run the same command again to go on where it was",
            exit_code=EXIT_INTERRUPTED,
        ) from None
    if faults:
        raise _joined([faults[place] for place in sorted(faults)])
    return [results[place] for place in range(len(work))]


def _joined(faults: list[BaseException]) -> BaseException:
    """The first that is no XrayError, or one error with the messages of all."""
    for fault in faults:
        if not isinstance(fault, XrayError):
            return fault
    if len(faults) == 1:
        return faults[0]
    kinds = {type(fault) for fault in faults}
    kind = kinds.pop() if len(kinds) == 1 else RunFailedError
    return kind("; ".join(str(fault) for fault in faults))
