"""How others load the same images: each function yields `(images, targets)` batch after batch.

Images are float32 (B, 1, S, S), or (B, 3, S, S) from `paper_loop`. They are standardised (zero
mean, unit deviation, each image by itself), except timm's: it has no such transform, and gives
them from 0 to 1.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Resize, ToTensor

from benchmarks.arms import Side, Workload
from xray_lightning.data.transforms import EPSILON
from xray_lightning.workers import threads

Loaded = Iterator[tuple[Tensor, Tensor]]

PREFETCH = 2  # batches that each worker loads ahead: torch's default


def _peer(module: str) -> Any:
    """Import a module that may not be installed, and that ships no types to check against."""
    return import_module(module)


class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """The paper's images: decoded, resized and standardised whenever one is asked for."""

    def __init__(self, side: Side, *, size: int, mode: str) -> None:
        self._side, self._mode = side, mode
        self._to_tensor = Compose([Resize((size, size)), ToTensor()])

    def __len__(self) -> int:
        return len(self._side.paths)

    def image(self, path: str) -> Tensor:
        with Image.open(path) as image:
            pixels: Tensor = self._to_tensor(image.convert(self._mode))
        deviation, mean = torch.std_mean(pixels, correction=0)
        return (pixels - mean) / (deviation + EPSILON)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.image(self._side.paths[row]), torch.from_numpy(self._side.targets[row])


def paper_loop(workload: Workload, side: Side, order: Sequence[int]) -> Loaded:
    images = Decoded(side, size=workload.image_size, mode="RGB")
    return iter(DataLoader(images, batch_size=workload.batch_size, sampler=order))


def paper_workers(workload: Workload, side: Side, order: Sequence[int]) -> Loaded:
    images = Decoded(side, size=workload.image_size, mode="L")
    loader = DataLoader(
        images,
        batch_size=workload.batch_size,
        sampler=order,
        num_workers=workload.workers,
        persistent_workers=True,
        prefetch_factor=PREFETCH,
        pin_memory=workload.accelerator == "cuda",
    )
    return iter(loader)


def timm(workload: Workload, side: Side, order: Sequence[int]) -> Loaded:
    data = _peer("timm.data")

    ordered = [(side.paths[row], side.targets[row]) for row in order]
    cuda = workload.accelerator == "cuda"
    loader = data.create_loader(
        # timm accepts a list in place of a reader.
        data.ImageDataset("", reader=ordered, input_img_mode="L"),
        input_size=(1, workload.image_size, workload.image_size),
        batch_size=workload.batch_size,
        is_training=False,  # keeps the order; the evaluation transform augments nothing
        crop_pct=1.0,
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.0,),
        std=(1.0,),
        num_workers=workload.workers,
        persistent_workers=True,
        use_prefetcher=cuda,
        pin_memory=cuda,
        device=torch.device(workload.accelerator),
    )
    return iter(loader)


def monai(workload: Workload, side: Side, order: Sequence[int]) -> Loaded:
    data, transforms = _peer("monai.data"), _peer("monai.transforms")

    images = Decoded(side, size=workload.image_size, mode="L")
    rows = range(len(side.paths))
    # CacheDataset caches the output of all transforms before the first random one, here of all.
    cached = data.CacheDataset(
        list(rows),
        transform=[transforms.Lambda(func=images.__getitem__, track_meta=False)],
        num_workers=threads(),
        copy_cache=False,  # nothing changes an item
        progress=False,
    )
    loader = data.ThreadDataLoader(
        cached, batch_size=workload.batch_size, sampler=order, num_workers=0
    )
    return iter(loader)


def dali(workload: Workload, side: Side, order: Sequence[int]) -> Loaded:
    fn, types = _peer("nvidia.dali.fn"), _peer("nvidia.dali.types")
    pipeline_def = _peer("nvidia.dali").pipeline_def
    iterator = _peer("nvidia.dali.plugin.pytorch").DALIGenericIterator

    size, cuda = workload.image_size, workload.accelerator == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=workload.batch_size, num_threads=threads(), device_id=0 if cuda else None
    )
    def decode() -> Any:
        encoded, place = fn.readers.file(
            files=[side.paths[row] for row in order], labels=list(range(len(order)))
        )
        images = fn.decoders.image(
            encoded, device="mixed" if cuda else "cpu", output_type=types.GRAY
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR)
        images = fn.cast(images, dtype=types.FLOAT)
        # Per image, as in all arms. DALI adds epsilon to the variance, here of levels 0 to 255.
        images = fn.normalize(images, epsilon=(255 * EPSILON) ** 2)
        return fn.transpose(images, perm=[2, 0, 1]), place

    targets = torch.from_numpy(side.targets)[torch.tensor(order)]
    for (batch,) in iterator([decode()], ["images", "place"], auto_reset=False):
        yield batch["images"], targets[batch["place"].squeeze(1).long().cpu()]


LOADERS: dict[str, Callable[[Workload, Side, Sequence[int]], Loaded]] = {
    function.__name__: function for function in (paper_loop, paper_workers, timm, monai, dali)
}
