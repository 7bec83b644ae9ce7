"""The LightningDataModule: a folder of images and CSVs, split alike on every rank, as batches."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from xray_lightning.data.cache import (
    DecodingStore,
    ImageSet,
    PixelStore,
    Rows,
    images_of,
    open_cache,
)
from xray_lightning.data.cache_build import Built, ensure_cache
from xray_lightning.data.loader import (
    BatchLoader,
    EpochOrder,
    Feed,
    HostFeed,
    ResidentFeed,
    StreamedFeed,
    balanced_weights,
    upload,
)
from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.data.splits import SIDES, Split, UsableSplit, make_split, usable_split
from xray_lightning.errors import UserError, check_whole
from xray_lightning.findings import FINDINGS, check_findings
from xray_lightning.progress import Display, unseen

log = logging.getLogger(__name__)

STATISTICS_IMAGES = 2000  # images that the `dataset` mean and deviation are estimated from


class XrayDataModule(LightningDataModule):
    """One data set, split and cached, as batches of uint8 images.

    Args:
        name: what results and checkpoints call the data set.
        root: folder of the CSVs, and of the images unless `images` names another.
        findings: those to learn, in this order; None for all that the data set has.
        table, columns, uncertain, empty: options of a custom CSV, see `OwnTable`; `columns` is
            None for a known data set (NIH's, AI for Medicine's).
        split: `official`, `patient_random`, `ai4m`, `column`, or the path of a CSV (image, split).
        fold: for cross-validation, which of `folds` folds of the train and val images validates.
        missing: `error` refuses rows without a file, `skip` leaves them out and counts them.
        allow_patient_overlap: run although a patient is on two sides; the result is marked.
        image_size: side of the square images, in pixels.
        batch_size: images a training step, over all ranks together.
        normalize: how the classifier is to normalise these images; see `transforms.Normalize`.
        sampler: `shuffle`, or `balanced` to draw rare findings more often (with replacement).
        cache: `disk` decodes each image once, `off` whenever it is read.
        device_memory_share: largest share of a GPU's free memory that the images may take, 0 to 1.
            If they need more, each batch is copied there while the one before it is used.
        phantom: synthetic images to draw into `root` first; None for real data.
        further_columns: titles of CSV columns to keep beside the predictions, for subgroups.
        progress: display for the long steps.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        images: str | None = None,
        findings: Sequence[str] | None = None,
        table: str | None = None,
        columns: Mapping[str, str | None] | None = None,
        uncertain: str = "error",
        empty: str = "error",
        split: str = "official",
        split_seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        fold: int | None = None,
        folds: int = 5,
        missing: str = "error",
        allow_patient_overlap: bool = False,
        image_size: int = 224,
        batch_size: int = 32,
        normalize: str = "per_image",
        sampler: str = "shuffle",
        cache: str = "disk",
        cache_dir: str = "cache",
        device_memory_share: float = 0.5,
        seed: int = 0,
        phantom: PhantomSpec | None = None,
        further_columns: Sequence[str] = (),
        progress: Display = unseen,
    ) -> None:
        super().__init__()
        check_whole("data.image_size", image_size, least=32)
        check_whole("data.batch_size", batch_size, least=1)
        check_whole("data.split_seed", split_seed, least=0)
        _check_fraction("data.val_fraction", val_fraction)
        _check_fraction("data.test_fraction", test_fraction)
        if not root:
            raise UserError("data.root is empty; give the folder of the data set")
        if not isinstance(allow_patient_overlap, bool):
            raise UserError(
                f"data.allow_patient_overlap={allow_patient_overlap} must be true or false"
            )
        _check_choice("data.sampler", sampler, ("shuffle", "balanced"))
        _check_choice("data.cache", cache, ("disk", "off"))
        if not isinstance(device_memory_share, int | float) or not 0 <= device_memory_share <= 1:
            raise UserError(
                f"data.device_memory_share={device_memory_share} must be a number from 0 to 1"
            )
        self.name, self.root = name, Path(root)
        self.images = Path(images) if images else None
        self.further_columns = tuple(further_columns)
        self._chosen = None if findings is None else check_findings(findings, what="data.findings")
        self._own = (
            None
            if columns is None
            else OwnTable(file=table, columns=columns, uncertain=uncertain, empty=empty)
        )
        self.split_name, self.split_seed = split, split_seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.fold, self.folds = fold, folds
        self.missing, self.allow_patient_overlap = missing, allow_patient_overlap
        self.image_size, self.batch_size = image_size, batch_size
        self.normalize, self.sampler, self.seed = normalize, sampler, seed
        self.cache, self.cache_dir = cache, Path(cache_dir)
        self.device_memory_share = device_memory_share
        self._resident: Tensor | None = None  # all images, on the GPU
        self._streaming = False  # whether the images were found not to fit on the GPU
        self.phantom = phantom
        self.cache_key: str | None = None
        self.cache_seconds = 0.0
        self._progress = progress
        self._store: PixelStore | None = None

    # -- reading ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read and check the manifest and the split, once. Opens no image.

        Raises:
            UserError: whatever is wrong with the data, in one line.
        """
        _ = self.usable

    def prepare_data(self) -> None:
        """Draw the phantoms and build the cache, on one rank of each node while others wait.

        Lightning calls it before each of fit, validate and test; it does nothing once `setup` has
        opened the pixels.
        """
        if self._store is not None:
            return
        if self.phantom is not None:
            with self._progress("drawing phantoms", self.phantom.images) as advance:
                ensure_phantoms(self.root, self.phantom, progress=advance)
        self.load()
        if self.cache == "disk":
            start = perf_counter()
            self.build_cache()
            self.cache_seconds = perf_counter() - start

    def build_cache(self, *, verify: bool = False) -> Built:
        """Decode what the cache of the split's images lacks; see `ensure_cache`."""
        return ensure_cache(
            self.image_set,
            image_size=self.image_size,
            cache_dir=self.cache_dir,
            progress=self._progress,
            seed=self.seed,
            verify=verify,
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the pixels, on every rank."""
        if self._store is not None:
            return
        self.load()
        images = self.image_set
        if self.cache == "off":
            self._store = DecodingStore(images.paths, image_size=self.image_size)
            return
        self.cache_key = images.key(self.image_size)
        self._store = open_cache(
            images, image_size=self.image_size, cache_dir=self.cache_dir, seed=self.seed
        )

    @cached_property
    def image_set(self) -> ImageSet:
        """The images on all sides of the split, in the order of the store's rows."""
        return images_of(self.manifest, self.usable.split)

    def store_rows(self, side: str) -> Rows:
        """The row of the store for each row of a side's table: int64 (N,)."""
        return self.image_set.rows(self.table(side)["path"])

    # -- batches ---------------------------------------------------------------------------------

    def _loader(self, side: str, *, training: bool = False) -> BatchLoader:
        if self._store is None:
            raise RuntimeError("setup() must run before a loader is asked for")
        labels = self.labels(side)
        order = EpochOrder(
            rows=len(labels),
            batch_size=self.batch_size,
            shuffle=training,
            seed=self.seed,
            weights=(balanced_weights(labels) if training and self.sampler == "balanced" else None),
            rank=self.trainer.global_rank if self.trainer else 0,
            ranks=self.trainer.world_size if self.trainer else 1,
        )
        targets = torch.from_numpy(labels.astype(np.float32))
        store_rows = self.store_rows(side)
        return BatchLoader(self._feed(self._store, store_rows, targets), order)

    def _feed(self, store: PixelStore, store_rows: Rows, targets: Tensor) -> Feed:
        """The source of batches: images on the device if they fit there, else host memory."""
        host = HostFeed(store, store_rows=store_rows, targets=targets)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cpu":
            return host
        if self._resident is None and self.cache == "disk" and not self._streaming:
            self._resident = upload(
                store,
                image_size=self.image_size,
                device=device,
                share=self.device_memory_share,
            )
            self._streaming = self._resident is None
        if self._resident is not None:
            return ResidentFeed(self._resident, store_rows=store_rows, targets=targets)
        return StreamedFeed(host, device=device)

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val")

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test")

    def predict_dataloader(self) -> BatchLoader:
        return self._loader("test")

    def in_order(self, side: str) -> BatchLoader:
        """A side's batches in the order of its table; every rank gets equally many rows."""
        return self._loader(side)

    # -- facts -----------------------------------------------------------------------------------

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(
            self.root,
            images=self.images,
            findings=self._chosen,
            own=self._own,
            further=self.further_columns,
        )

    def split(self) -> Split:
        """The split as defined, also with images that have no file."""
        return make_split(
            self.manifest,
            self.split_name,
            seed=self.split_seed,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            fold=self.fold,
            folds=self.folds,
        )

    @cached_property
    def usable(self) -> UsableSplit:
        return usable_split(
            self.manifest,
            self.split(),
            missing=self.missing,
            allow_patient_overlap=self.allow_patient_overlap,
        )

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        by_image = self.manifest.table.set_index("image", drop=False)
        return {
            side: by_image.loc[list(names)].reset_index(drop=True)
            for side, names in self.usable.split.sides.items()
        }

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings to learn, in the order of the model's outputs.

        Reads no file, since phantoms may not be drawn yet, except a custom CSV whose findings were
        not chosen.

        Raises:
            UserError: that CSV cannot be read.
        """
        if self._chosen is not None:
            return self._chosen
        return FINDINGS if self._own is None else self.manifest.findings

    def table(self, side: str) -> pd.DataFrame:
        """The manifest's rows of a side; `Batch.rows` holds positions in this table."""
        return self._tables[side]

    def labels(self, side: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Multi-hot labels of a side: uint8 (N, findings)."""
        return self.table(side)[list(self.findings)].to_numpy(dtype=np.uint8)

    def positives(self, side: str) -> Tensor:
        """Positives per finding of a side: float32 (findings,)."""
        return torch.from_numpy(self.labels(side).sum(axis=0).astype(np.float32))

    def pixel_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of training pixels, in units of 0 to 1.

        Estimated from at most 2,000 training images, evenly spread over the table.
        """
        if self._store is None:
            raise RuntimeError("setup() must run before the pixels are read")
        rows = self.store_rows("train")
        count = len(rows)
        rows = rows[np.unique(np.linspace(0, count - 1, min(count, STATISTICS_IMAGES)).astype(int))]
        sums = np.zeros(2)
        for start in range(0, len(rows), 256):
            pixels = self._store.read(rows[start : start + 256]).astype(np.float64) / 255
            sums += pixels.sum(), np.square(pixels).sum()
        mean, square = sums / (len(rows) * self.image_size**2)
        return float(mean), float(np.sqrt(max(square - mean**2, 0.0)))

    def describe(self) -> dict[str, Any]:
        """The `data` block of results.json."""
        usable = self.usable
        left_out = {
            **self.manifest.dropped,
            **{f"no file ({side})": count for side, count in usable.skipped.items()},
            "on no side of the split": usable.split.unassigned,
            "in the split without a row": usable.split.without_row,
            "files without a row": self.manifest.unlisted_files,
        }
        return {
            "name": self.name,
            "root": str(self.root),
            "split": self.split_name,
            "split_sha256": usable.split.sha256,
            "cache_key": self.cache_key,
            "patient_overlap": usable.patient_overlap,
            "images": {side: len(self._tables[side]) for side in SIDES},
            "patients": {side: int(self._tables[side]["patient_id"].nunique()) for side in SIDES},
            "positives": {
                side: {name: int(self._tables[side][name].sum()) for name in self.findings}
                for side in SIDES
            },
            "demographics": {side: demographics(self._tables[side]) for side in SIDES},
            "dropped": {reason: count for reason, count in left_out.items() if count},
        }


_NAMED = {"sex": {"F": "female", "M": "male"}, "view": {"PA": "PA", "AP": "AP"}}


def demographics(table: pd.DataFrame) -> dict[str, Any]:
    """Counts of images by the patient's sex and by view, and the distribution of ages.

    Args:
        table: rows of the manifest.

    Returns:
        `sex` and `view`: images of each, and `unknown`; `age`: `known` images, and of these the
        `median` and the `quartiles` in years, None where none is known.
    """
    counts = {
        key: {
            **{name: int((table[key] == value).sum()) for value, name in names.items()},
            "unknown": int((~table[key].isin(list(names))).sum()),
        }
        for key, names in _NAMED.items()
    }
    ages = table["age"].dropna().to_numpy(dtype=np.float64)
    low, median, high = np.quantile(ages, [0.25, 0.5, 0.75]).tolist() if len(ages) else [None] * 3
    quartiles = None if low is None else [low, high]
    return counts | {"age": {"known": len(ages), "median": median, "quartiles": quartiles}}


def _check_fraction(key: str, value: object) -> None:
    if not isinstance(value, float) or not 0 < value < 1:
        raise UserError(f"{key}={value} must be a number between 0 and 1")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is unknown; choose one of {', '.join(choices)}")
