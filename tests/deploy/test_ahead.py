"""Reading ahead: in order, bounded, and ended with its consumer."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from xray_lightning.data.images import UnreadableImageError
from xray_lightning.deploy.guard import Picture
from xray_lightning.deploy.preprocess import decoded_batches


def picture(number: int) -> Picture:
    if number % 7 == 3:
        raise UnreadableImageError(f"{number}: odd")
    time.sleep(0.001 * (number % 3))
    return Picture(np.full((8, 8), number % 256, dtype=np.uint8), 8, 8)


def test_every_input_comes_once_and_in_order_with_its_error() -> None:
    batches = list(decoded_batches(range(45), picture, size=10))
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 5]
    every = [one for batch in batches for one in batch]
    assert [one.source for one in every] == list(range(45))
    for one in every:
        assert (one.error is not None) == (one.picture is None) == (one.source % 7 == 3)
        assert one.picture is None or one.picture.pixels[0, 0] == one.source


def test_no_more_than_three_batches_are_taken_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    batches = decoded_batches(endless(), picture, size=5)
    for consumed in range(20):
        next(batches)
        assert taken <= 5 * (consumed + 3)
    batches.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name == "in_threads"]


def test_another_error_ends_the_work_with_it() -> None:
    def fail(number: int) -> Picture:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(decoded_batches(range(3), fail, size=2))
