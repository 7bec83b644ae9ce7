"""A disk that fails at one of the calls that change it."""

import errno
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import pytest


class FailingDisk:
    """Counts the calls of a save that make, write, flush, sync, close or rename a file.

    Args:
        failing: which of them fails, from 1 on.
        late: whether its work was done when it fails, as on a disk behind a network.

    Attributes:
        calls: how many there were.
    """

    def __init__(self, patch: pytest.MonkeyPatch, failing: int, *, late: bool) -> None:
        self.calls, self._failing, self._late = 0, failing, late
        opened = os.fdopen
        patch.setattr(os, "fdopen", lambda *given: _Stream(opened(*given), self))
        patch.setattr(tempfile, "mkstemp", partial(self.call, tempfile.mkstemp, late=False))
        for name in ("fsync", "chmod", "replace"):
            patch.setattr(os, name, partial(self.call, getattr(os, name)))

    def call(
        self, work: Callable[..., Any], *given: Any, late: bool | None = None, **further: Any
    ) -> Any:
        self.calls += 1
        if self.calls != self._failing:
            return work(*given, **further)
        if self._late if late is None else late:
            work(*given, **further)
        raise OSError(errno.ENOSPC, "No space left on device")


class _Stream:
    """A file whose writes, flushes and close are calls of the disk."""

    def __init__(self, stream: BinaryIO, disk: FailingDisk) -> None:
        self._stream, self._disk = stream, disk

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.call(self._stream.close, late=True)  # a close that fails has closed

    def fileno(self) -> int:
        return self._stream.fileno()

    def flush(self) -> None:
        self._disk.call(self._stream.flush)

    def write(self, data: bytes) -> int:
        if self._disk.calls + 1 == self._disk._failing:
            self._stream.write(bytes(data)[: len(data) // 2])
        return int(self._disk.call(self._stream.write, data))


def failures(late: bool, save: Callable[[], object], patch: pytest.MonkeyPatch) -> Any:
    """Save again and again, with a failure at each call in turn: yields after each failed one."""
    calls = 0
    while True:
        calls += 1
        with patch.context() as patched:
            disk = FailingDisk(patched, calls, late=late)
            try:
                save()
                error = None
            except Exception as caught:  # noqa: BLE001 - which one it was is for the test to judge
                error = caught
        if disk.calls < calls:
            assert error is None
            return
        yield error
