"""Batches on a GPU: cut from images that all lie there, or copied over one ahead."""

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from xray_lightning.data.batches import Batch, Feed, Share, read_ahead, unmarked
from xray_lightning.data.cache import PixelStore, Rows

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
    """Batches cut from images on the device.

    An epoch's order is copied there once; a step then costs two gathers, and waits for nothing.

    Args:
        images: all sides' images, as `upload` gives them.
        store_rows: where `images` has each row of this side: (N,).
        targets: this side's labels: float32 (N, 14).
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
    """Batches copied to a CUDA device one ahead, on a stream of their own.

    Args:
        host: where they come from.
        device: where they go.
    """

    def __init__(self, host: Feed, *, device: torch.device) -> None:
        self._host = host
        self._device = device

    def batches(self, shares: Iterable[Share]) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for batch, copied in read_ahead(self._copied(self._host.batches(shares), stream)):
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for part in batch[:-1]:
                part.record_stream(current)  # its memory is the other stream's
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
