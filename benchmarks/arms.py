"""Arms of the side-by-side benchmark, and the workload that each of them computes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.loader import EpochOrder
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.splits import Split
from xray_lightning.errors import UserError
from xray_lightning.files import write_atomically
from xray_lightning.models.backbones import build_backbone
from xray_lightning.training.callbacks import WARMUP_STEPS

PRECISIONS = ("32-true", "bf16-mixed")
PAPER_LOOP, DALI, COMPUTE_ONLY = "paper_loop", "dali", "compute_only"


@dataclass(frozen=True)
class Arm:
    """One way of training, timed in processes of its own.

    Attributes:
        what: description for the table's notes.
        package: what must be installed for it, and `install` how.
        cuda: whether it runs on CUDA only.
        precision: the only one at which it makes sense; None for any.
        run: for an arm that is a run of this project, what differs from its defaults: fields of
            `Speed`, `fused`, `cache` or `device_memory_share`. None for a bare loop.
    """

    name: str
    what: str
    package: str | None = None
    install: str = "uv sync --extra bench"
    cuda: bool = False
    precision: str | None = None
    run: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def switched(self) -> bool:
        """Whether this is `ours` with one switch changed."""
        return bool(self.run)


_ALL = (
    Arm(
        PAPER_LOOP,
        "as the paper: every step decodes its images with PIL, converts them to RGB, resizes and "
        "standardises them in the training process; torchvision's 3-channel model, NCHW, Adam",
    ),
    Arm(
        "paper_workers",
        "the same decoding (gray instead of RGB) in persistent DataLoader workers, their number "
        "tuned beforehand; the step of ours",
    ),
    Arm(
        "timm",
        "timm's create_loader (ImageDataset, gray, no augmentation), as many workers; the step of "
        "ours, which standardises too",
        package="timm",
    ),
    Arm(
        "monai",
        "MONAI's CacheDataset (decoded, resized, standardised, kept in memory) and "
        "ThreadDataLoader; the step of ours",
        package="monai",
    ),
    Arm(
        DALI,
        "NVIDIA DALI decodes, resizes and standardises on the GPU, by another rule than Pillow's, "
        "so that its first loss may differ by 0.2 %; the step of ours",
        package="nvidia.dali",
        install="uv pip install nvidia-dali-cuda120",
        cuda=True,
    ),
    Arm("ours", "a whole run of this project through Lightning, with all switches", run={}),
    Arm("ours_no_cache", "ours with data.cache=off", run={"cache": "off"}),
    Arm("ours_no_channels_last", "ours in NCHW", run={"channels_last": False}),
    Arm(
        "ours_no_keep_freed_memory",
        "ours, memory freed to the system each step",
        run={"keep_freed_memory": False},
    ),
    Arm("ours_no_fused", "ours with the unfused optimizer", run={"fused": False}),
    Arm("ours_no_cuda_graph", "ours without CUDA graphs", cuda=True, run={"cuda_graph": False}),
    Arm(
        "ours_no_device_data",
        "ours with batches streamed from the host",
        cuda=True,
        run={"device_memory_share": 0.0},
    ),
    Arm("ours_no_tf32", "ours without TF32", cuda=True, precision="32-true", run={"tf32": False}),
    Arm(
        "ours_no_cudnn_benchmark",
        "ours without cuDNN's search",
        cuda=True,
        run={"cudnn_benchmark": False},
    ),
    Arm("ours_compile", "ours with torch.compile", run={"compile": True}),
    Arm(
        COMPUTE_ONLY,
        "the limit: the model and optimizer step of ours on one standardised batch that lies on "
        "the device; no loader, no Trainer, no logging",
    ),
)
ARMS = {arm.name: arm for arm in _ALL}


def refuse_unknown(asked: Sequence[str]) -> None:
    """Refuse names that are no arm's.

    Raises:
        UserError: naming them, and the arms there are.
    """
    if unknown := [name for name in asked if name not in ARMS]:
        raise UserError(f"--arms {','.join(unknown)} is unknown; choose from {','.join(ARMS)}")


def choose_arms(asked: Sequence[str], *, accelerator: str) -> tuple[list[Arm], dict[str, str]]:
    """The arms to time, and why each of the others is left out.

    Args:
        asked: known names of arms, all of which must run here; empty for every arm that can.

    Raises:
        UserError: an arm that was named cannot run here.
    """
    chosen: list[Arm] = []
    skipped: dict[str, str] = {}
    for arm in _ALL:
        if asked and arm.name not in asked:
            continue
        reason = _missing(arm, accelerator)
        if reason and asked:
            raise UserError(f"--arms {arm.name} cannot run: {reason}")
        if reason:
            skipped[arm.name] = reason
        else:
            chosen.append(arm)
    return chosen, skipped


def _missing(arm: Arm, accelerator: str) -> str | None:
    if arm.cuda and accelerator != "cuda":
        return "it needs --accelerator cuda"
    if arm.name == "ours_no_keep_freed_memory" and accelerator == "cuda":
        return "it needs --accelerator cpu"
    if arm.package is not None and not importable(arm.package):
        return f"{arm.package} is not installed: {arm.install}"
    return None


def importable(module: str) -> bool:
    """Whether the module is installed, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def pairings(arms: Sequence[Arm], precisions: Sequence[str]) -> list[tuple[Arm, str]]:
    """Each arm at each precision that it is timed at, in the order of one repeat.

    Arms with a changed switch run at the last precision only: to run them at each would double the
    time for a difference that one precision shows.
    """
    pairs = [(arm, precision) for precision in precisions for arm in arms]
    return [
        (arm, precision)
        for arm, precision in pairs
        if precision in ((arm.precision,) if arm.precision else precisions)
        and (not arm.switched or arm.precision or precision == precisions[-1])
    ]


LEARNING_RATE = 1e-3  # the paper's
CHECKED_STEPS = 3
HELD_OUT = 16  # least number of images to validate and test on, half each


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
            allow_patient_overlap=True,  # only the speed is measured
            image_size=self.image_size,
            batch_size=self.batch_size,
            cache=cache,
            cache_dir=str(cache_dir),
            device_memory_share=device_memory_share,
            seed=self.seed,
        )

    def order(self, *, steps: int) -> list[int]:
        """Rows of the training side, step after step, in the order of the arm `ours`."""
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
    """Write the split and the initial weights, and determine the number of epochs.

    The training side is a whole number of batches; up to 64 of the other images validate and test.

    Args:
        images: use at most so many; None for all.
        steps: time at least so many.

    Raises:
        UserError: no data, or too few images for the steps whose losses are compared.
    """
    names = _usable_images(Path(workload.data), images=images)
    train = (len(names) - HELD_OUT) // workload.batch_size * workload.batch_size
    if train < CHECKED_STEPS * workload.batch_size:  # some arms show each image once
        raise UserError(
            f"{workload.data}: {len(names)} images are too few for --batch-size "
            f"{workload.batch_size}: it takes {HELD_OUT} more than {CHECKED_STEPS} batches"
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
