"""What every arm computes: the same images in the same order from the same weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from xray_lightning.atomic import write_atomically
from xray_lightning.data.batches import EpochOrder
from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.splits import Split
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone
from xray_lightning.training.throughput import WARMUP_STEPS

LEARNING_RATE = 1e-3  # the paper's
CHECKED_STEPS = 3
HELD_OUT = 16  # images at least that validate or test; half each


@dataclass(frozen=True)
class Workload:
    """The work that is timed, as each arm's process reads it.

    Attributes:
        data: folder of the data set; `split` and `weights` are files made for this benchmark.
        threads: CPU threads of every arm; None for one a core.
        epochs: of `steps_per_epoch` whole batches each.
        workers: of the arms that load in processes.
        most_seconds: a timed window ends early after that long, where the arm is a bare loop.
    """

    data: str
    split: str
    weights: str
    arch: str
    image_size: int
    batch_size: int
    accelerator: str
    threads: int | None
    epochs: int
    steps_per_epoch: int
    most_seconds: float
    seed: int = 0
    workers: int = 1

    @property
    def steps(self) -> int:
        """Steps of a run, those before the timed window included."""
        return self.epochs * self.steps_per_epoch

    @property
    def timed_steps(self) -> int:
        return self.steps - WARMUP_STEPS

    def data_module(
        self, *, cache_dir: Path, cache: str = "disk", device_memory_share: float = 0.5
    ) -> XrayDataModule:
        return XrayDataModule(
            name=Path(self.data).name,
            root=self.data,
            split=self.split,
            allow_patient_overlap=True,  # nothing is judged here
            image_size=self.image_size,
            batch_size=self.batch_size,
            cache=cache,
            cache_dir=str(cache_dir),
            device_memory_share=device_memory_share,
            seed=self.seed,
        )

    def order(self, *, steps: int) -> list[int]:
        """Rows of the training side, step after step, as ours visits them."""
        rows = self.steps_per_epoch * self.batch_size
        epoch = EpochOrder(rows=rows, batch_size=self.batch_size, shuffle=True, seed=self.seed)
        epochs = -(-steps // self.steps_per_epoch)
        whole = np.concatenate([epoch.whole(number) for number in range(epochs)])
        return [int(row) for row in whole[: steps * self.batch_size]]

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Workload":
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Side:
    """The training side as the other loaders take it."""

    paths: list[str]
    targets: npt.NDArray[np.float32]  # (N, 14)


def training_side(workload: Workload) -> Side:
    data = workload.data_module(cache_dir=Path())
    paths = [str(path) for path in data.table("train")["path"]]
    return Side(paths, data.labels("train").astype(np.float32))


def prepare(workload: Workload, folder: Path, *, images: int | None, steps: int) -> Workload:
    """Write the split and the initial weights, and settle the number of epochs.

    The training side is a whole number of batches; what is over, validates and tests.

    Args:
        images: use at most so many; None for all.
        steps: time at least so many.

    Raises:
        UserError: no data, or too few images for a batch.
    """
    names = _usable_images(Path(workload.data), images=images)
    train = (len(names) - HELD_OUT) // workload.batch_size * workload.batch_size
    if train < workload.batch_size:
        raise UserError(
            f"{workload.data}: {len(names)} images are too few for --batch-size "
            f"{workload.batch_size}: it takes {HELD_OUT} more than a batch"
        )
    rest = names[train:][: 4 * HELD_OUT]
    half = len(rest) // 2
    sides = {"train": names[:train], "val": rest[:half], "test": rest[half:]}
    split = folder / "split.csv"
    Split("benchmark", {side: tuple(part) for side, part in sides.items()}).write(split)
    weights = folder / "weights.pt"
    seed_everything(workload.seed, verbose=False)
    torch.save(build_backbone(arch=workload.arch, in_channels=3).state_dict(), weights)
    per_epoch = train // workload.batch_size
    return replace(
        workload,
        split=str(split),
        weights=str(weights),
        steps_per_epoch=per_epoch,
        epochs=-(-(WARMUP_STEPS + steps) // per_epoch),
    )


def _usable_images(root: Path, *, images: int | None) -> Sequence[str]:
    table = read_manifest(root).table
    names = sorted(table["image"][table["path"] != ""])
    return names[: images or None]


def source_size(workload: Workload) -> str:
    """Width and height of the first training image's file, such as "1024 x 1024"."""
    with Image.open(training_side(workload).paths[0]) as image:
        return f"{image.width} x {image.height}"
