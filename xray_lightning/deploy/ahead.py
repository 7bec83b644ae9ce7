"""Images decoded ahead of the model, by threads, in order, and never more than a few at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from xray_lightning.data.cache_folder import threads
from xray_lightning.data.images import UnreadableImageError
from xray_lightning.deploy.guard import Rule, flags
from xray_lightning.deploy.preprocess import Picture

Source = TypeVar("Source")


@dataclass(frozen=True)
class Decoded(Generic[Source]):
    """One input: its picture and the rules that speak of it, or why it cannot be read."""

    source: Source
    picture: Picture | None
    flags: tuple[Rule, ...] = ()
    error: UnreadableImageError | None = None


def decoded_batches(
    sources: Iterable[Source], read: Callable[[Source], Picture], *, size: int
) -> Iterator[list[Decoded[Source]]]:
    """Every input in order, `size` at a time, while two more batches are being decoded.

    Args:
        sources: taken as needed, so that any number of them needs the same memory.
        read: called in threads.
        size: inputs of a batch, those that cannot be read among them.
    """

    def decode(source: Source) -> Decoded[Source]:
        try:
            picture = read(source)
        except UnreadableImageError as error:
            return Decoded(source, None, error=error)
        return Decoded(source, picture, flags(picture))

    inputs = iter(sources)
    waiting: deque[Future[Decoded[Source]]] = deque()
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="decode")

    def fill(count: int) -> None:
        waiting.extend(pool.submit(decode, source) for source in islice(inputs, count))

    try:
        fill(2 * size)
        while waiting:
            fill(size)
            yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
    finally:
        pool.shutdown(cancel_futures=True)
