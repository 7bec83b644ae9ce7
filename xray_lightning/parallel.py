"""Work on many files in threads: results in order, and an end at once on Ctrl-C."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from xray_lightning.errors import EXIT_INTERRUPTED, InterruptedRunError, RunFailedError, XrayError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, jobs: int
) -> Iterator[Result]:
    """`map(work, items)` by so many threads, at most a few items ahead of what is taken."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="read")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


T = TypeVar("T")


def all_of(work: Sequence[Callable[[], T]], *, jobs: int, stop: threading.Event) -> list[T]:
    """Do all of it, so many at once, and return the results in order.

    A piece that fails does not end the others: a download of hours should not wait for a person
    because one of its files is not there. The threads are daemons, unlike an executor's: one that
    waits for a server cannot keep a process alive that was told to stop.

    Raises:
        XrayError: that of the one piece that failed, or one that names all that have.
        InterruptedRunError: Ctrl-C; `stop` is set, and what is half done can be gone on with.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | BaseException]] = queue.SimpleQueue()
    for place in range(len(work)):
        todo.put(place)

    def run() -> None:
        while not stop.is_set():
            try:
                place = todo.get_nowait()
            except queue.Empty:
                return
            result: T | BaseException
            try:
                result = work[place]()
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                result = error
            done.put((place, result))

    results: dict[int, T] = {}
    faults: dict[int, BaseException] = {}
    try:
        for _ in range(min(jobs, len(work))):
            threading.Thread(target=run, daemon=True).start()
        while len(results) + len(faults) < len(work):
            place, result = done.get()
            if isinstance(result, BaseException):
                faults[place] = result
            else:
                results[place] = result
    except KeyboardInterrupt:
        stop.set()
        raise InterruptedRunError(
            "stopped; run the same command again to go on where it was",
            exit_code=EXIT_INTERRUPTED,
        ) from None
    if faults:
        raise _one([faults[place] for place in sorted(faults)])
    return [results[place] for place in range(len(work))]


def _one(faults: list[BaseException]) -> BaseException:
    for fault in faults:
        if not isinstance(fault, XrayError):
            return fault
    if len(faults) == 1:
        return faults[0]
    kinds = {type(fault) for fault in faults}
    kind = kinds.pop() if len(kinds) == 1 else RunFailedError
    return kind("; ".join(str(fault) for fault in faults))
