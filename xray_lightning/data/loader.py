"""Batches of images and labels: the order of an epoch, each rank's share of it, the loader.

All ranks share one order: it depends on the seed and the epoch alone, never on the number of ranks,
and each global batch is divided among them. Every rank makes the same number of steps; a rank that
would have too few rows gets a repeat, encoded as the negative number `~row`, which losses and
metrics must leave out.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xray_lightning.data.cache import PixelStore, Rows

T = TypeVar("T")


class Batch(NamedTuple):
    """One rank's part of one global batch of G images."""

    images: Tensor  # (B, 1, S, S) uint8
    targets: Tensor  # (B, findings) float32
    rows: Tensor  # (B,) int64: row of the side's table; ~row (negative) where it is a repeat
    draws: Tensor  # (B,) int64: index of each image among all drawn in the run; seeds augmentation
    scale: float  # ranks / G: `scale` times the sum of this rank's losses, averaged over the
    # ranks, is the mean loss of the global batch


@dataclass
class EpochOrder:
    """Which rows a side's epoch visits, in which order, and which of them are this rank's.

    Args:
        rows: images in the side.
        batch_size: images a step over all ranks.
        shuffle: a new permutation each epoch; else the table's order.
        weights: draw rows with replacement, in proportion to these (balanced sampling).
    """

    rows: int
    batch_size: int
    shuffle: bool
    seed: int = 0
    weights: npt.NDArray[np.float64] | None = None
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank."""
        return -(-self.rows // self.batch_size)

    def whole(self, epoch: int) -> Rows:
        """The global order of an epoch: int64 (rows,)."""
        if not self.shuffle:
            return np.arange(self.rows)
        generator = np.random.default_rng([self.seed, epoch])
        if self.weights is None:
            return generator.permutation(self.rows)
        return generator.choice(self.rows, size=self.rows, p=self.weights / self.weights.sum())

    def share(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Rows, int]]:
        """This rank's rows of each global batch from number `start` on, and the batch's size.

        In evaluation (no shuffling) all ranks get equally many rows, so that they can be gathered;
        in training a rank gets a repeat only if it would have nothing to do.
        """
        order = self.whole(epoch)
        for step in range(start, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = batch[self.rank :: self.ranks]
            wanted = 1 if self.shuffle else -(-len(batch) // self.ranks)
            if len(mine) < wanted:
                mine = np.append(mine, ~batch[0])
            yield mine, len(batch)


def balanced_weights(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Sampling weights that favour rare findings: 1 / positives of the image's rarest finding.

    Args:
        labels: multi-hot, uint8 (N, findings). Images without a finding form their own class.

    Returns:
        float64 (N,), not normalised.
    """
    counts = np.maximum(labels.sum(axis=0), 1)
    none = np.maximum((labels.sum(axis=1) == 0).sum(), 1)
    rarest = np.where(labels > 0, 1.0 / counts, 0.0).max(axis=1)
    weights: npt.NDArray[np.float64] = np.where(labels.any(axis=1), rarest, 1.0 / none)
    return weights


class Share(NamedTuple):
    """What a rank gets of one global batch of G images."""

    rows: Rows  # (B,) as in Batch
    draws: Rows  # (B,) as in Batch
    scale: float  # as in Batch


class Feed(Protocol):
    """Turns shares into batches; implementations differ in where the pixels are kept."""

    def batches(self, shares: Iterable[Share]) -> Iterator[Batch]: ...


class HostFeed:
    """Batches in host memory, the next one read by a thread while this one is used.

    Args:
        store: the pixels of all sides.
        store_rows: the store's row for each row of this side's table: (N,).
        targets: this side's labels: float32 (N, findings).
    """

    def __init__(self, store: PixelStore, *, store_rows: Rows, targets: Tensor) -> None:
        self._store = store
        self._store_rows = store_rows
        self._targets = targets

    def batches(self, shares: Iterable[Share]) -> Iterator[Batch]:
        return read_ahead(map(self._read, shares))

    def _read(self, share: Share) -> Batch:
        rows = unmarked(share.rows)
        return Batch(
            images=torch.from_numpy(self._store.read(self._store_rows[rows])).unsqueeze(1),
            targets=self._targets[torch.from_numpy(rows)],
            rows=torch.from_numpy(share.rows),
            draws=torch.from_numpy(share.draws),
            scale=share.scale,
        )


def unmarked(rows: Rows) -> Rows:
    """Rows of the table, with the `~row` of a repeat turned back into `row`: (B,)."""
    return np.where(rows < 0, ~rows, rows)


class BatchLoader:
    """An iterable over one side's batches that Lightning takes as a data loader.

    The position within an epoch can be saved and loaded, so that a run resumed in mid-epoch gets
    exactly the batches that were left, at any number of ranks.
    """

    def __init__(self, feed: Feed, order: EpochOrder) -> None:
        self._feed = feed
        self._order = order
        self._epoch = 0
        self._done = 0  # batches of this epoch that were handed out
        self._resume_at = 0  # the batch that the next iteration starts with

    batch_sampler = None  # Lightning reads it, too, from a loader that has a `sampler`

    @property
    def sampler(self) -> "BatchLoader":
        """Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._done, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "done": self._done, "batch_size": self._order.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._done = state["epoch"], state["done"]
        self._resume_at = self._done if self._done < len(self) else 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is read before the first batch is asked for, by when Lightning has
        # set the epoch.
        start, self._resume_at = self._resume_at, 0
        self._done = start
        for batch in self._feed.batches(self._shares(start)):
            self._done += 1
            yield batch

    def _shares(self, start: int) -> Iterator[Share]:
        order = self._order
        for step, (mine, whole) in enumerate(order.share(self._epoch, start=start), start):
            first = self._epoch * order.rows + step * order.batch_size + order.rank
            draws = first + order.ranks * np.arange(len(mine))
            yield Share(mine, draws, order.ranks / whole)


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, where a thread already makes the next while the caller uses the current."""
    queue: Queue[tuple[T] | BaseException | None] = Queue(maxsize=1)
    stopped = False

    def read() -> None:
        try:
            for item in items:
                queue.put((item,))
                if stopped:
                    return
            queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            queue.put(error)

    reader = Thread(target=read, name="batches", daemon=True)
    reader.start()
    try:
        while (got := queue.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:  # also when the consumer leaves early: unblock the reader and let it end
        stopped = True
        while reader.is_alive():
            while not queue.empty():
                queue.get_nowait()
            reader.join(timeout=0.05)


log = logging.getLogger(__name__)

UPLOAD_IMAGES = 1024  # read from the store at once


def upload(
    store: PixelStore, *, image_size: int, device: torch.device, share: float
) -> Tensor | None:
    """All images of a store on a device: uint8 (N, 1, S, S); None where they take too much.

    Args:
        share: most that they may take of the device's free memory, 0 to 1; 0 uploads nothing.
    """
    needed = len(store) * image_size**2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else needed
    if needed > share * free:
        if share:
            log.info(
                "%.1f GB of images stay in host memory: data.device_memory_share=%s of the %.1f GB "
                "that are free on the device",
                *(needed / 1e9, share, free / 1e9),
            )
        return None
    images = torch.empty((len(store), 1, image_size, image_size), dtype=torch.uint8, device=device)
    for start in range(0, len(store), UPLOAD_IMAGES):
        rows = np.arange(start, min(start + UPLOAD_IMAGES, len(store)))
        images[start : start + len(rows), 0] = torch.from_numpy(store.read(rows)).to(device)
    return images


class ResidentFeed:
    """Batches gathered from images that are all on the device.

    An epoch's row numbers are copied there once; a step is then two gathers, without a transfer.

    Args:
        images: all sides' images, as `upload` gives them.
        store_rows, targets: as of `HostFeed`.
    """

    def __init__(self, images: Tensor, *, store_rows: Rows, targets: Tensor) -> None:
        self._images = images
        self._store_rows = store_rows
        self._targets = targets.to(images.device)

    def batches(self, shares: Iterable[Share]) -> Iterator[Batch]:
        epoch = list(shares)
        if not epoch:
            return
        rows = np.concatenate([share.rows for share in epoch])
        draws = np.concatenate([share.draws for share in epoch])
        table = unmarked(rows)
        packed = np.stack([rows, draws, table, self._store_rows[table]])  # (4, images)
        sizes = [len(share.rows) for share in epoch]
        parts = torch.split(torch.from_numpy(packed).to(self._images.device), sizes, dim=1)
        for share, (rows_there, draws_there, table_there, at) in zip(epoch, parts, strict=True):
            yield Batch(
                images=self._images.index_select(0, at),
                targets=self._targets.index_select(0, table_there),
                rows=rows_there,
                draws=draws_there,
                scale=share.scale,
            )


class StreamedFeed:
    """Batches of another feed, copied to a CUDA device one ahead, on a stream of their own."""

    def __init__(self, host: Feed, *, device: torch.device) -> None:
        self._host = host
        self._device = device

    def batches(self, shares: Iterable[Share]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for batch, copied in read_ahead(self._copied(self._host.batches(shares), stream)):
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for part in batch[:-1]:
                part.record_stream(current)  # it was allocated on the copying stream
            yield batch

    def _copied(
        self, batches: Iterator[Batch], stream: torch.cuda.Stream
    ) -> Iterator[tuple[Batch, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(stream):
                there = batch._replace(
                    images=self._copy(batch.images),
                    targets=self._copy(batch.targets),
                    rows=self._copy(batch.rows),
                    draws=self._copy(batch.draws),
                )
            yield there, stream.record_event()

    def _copy(self, part: Tensor) -> Tensor:
        return part.pin_memory().to(self._device, non_blocking=True)
