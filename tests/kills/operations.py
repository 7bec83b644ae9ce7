"""Operations that are killed: how each begins, what it writes, and when that is right."""

import importlib
import io
import json
import os
import runpy
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import REPOSITORY, SMALL, TRAIN_PY, flags_first
from PIL import Image

from xray_lightning.data.cache import ImageSet, open_cache
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.download.archive import unpack_images
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint
from xray_lightning.report.write import write_run_report
from xray_lightning.runs.predictions import read_predictions, write_predictions
from xray_lightning.runs.results_json import RunRecord
from xray_lightning.runs.run_folder import read_run

SIDE = 16


@dataclass(frozen=True)
class Operation:
    """Something that is killed and done again, in a folder of its own.

    Attributes:
        begin: lays out the folder as an earlier, finished operation has left it.
        act: the work.
        state: what a reader finds in the files under their final names: anything that compares.
            It raises where one is no whole file.
        weight: its share of all kills, beside the others'.
    """

    begin: Callable[[Path], object]
    act: Callable[[Path], object]
    state: Callable[[Path], object]
    weight: int = 3


def save(folder: Path, value: float) -> None:
    described = {"schema_version": 1, "findings": list(FINDINGS)}
    content = {"weights": torch.full((5000,), value), "xray": described}
    write_checkpoint(content, folder / "last.ckpt")


def saved(folder: Path) -> object:
    return read_checkpoint(folder / "last.ckpt")["weights"].unique().tolist()


def sample() -> dict[str, object]:
    text = (REPOSITORY / "tests" / "results_sample.json").read_text(encoding="utf-8")
    content: dict[str, object] = json.loads(text)
    return content


def record(folder: Path, status: str) -> None:
    RunRecord(folder, sample()).end(status)


def predictions(folder: Path, probability: float) -> None:
    names = [f"{row}.png" for row in range(200)]
    columns = {"image": names, "patient_id": names, "split": "test"}
    columns |= {f"prob_{finding}": probability for finding in FINDINGS}
    table = pd.DataFrame(columns | {f"label_{finding}": 1 for finding in FINDINGS})
    write_predictions(folder, table, side="test")


def predicted(folder: Path) -> object:
    table = read_predictions(folder / "predictions_test.csv")
    return len(table), table["prob_Mass"].unique().tolist()


def report(folder: Path) -> None:
    write_run_report(folder)


def reported(folder: Path) -> object:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text == "old" or text.rstrip().endswith("</html>")
    return text == "old"


def draw(folder: Path, images: int = 70) -> list[str]:
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    paths = [str(folder / "images" / f"{number:03}.png") for number in range(images)]
    for path in paths:
        Image.fromarray(noise.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(path)
    return paths


def paths_in(folder: Path) -> list[str]:
    return sorted(map(str, (folder / "images").iterdir()))


def build(folder: Path) -> None:
    ensure_cache(ImageSet(paths_in(folder)), image_size=SIDE, cache_dir=folder / "cache")


def built(folder: Path) -> object:
    """Whether it may be used; its pixels are then compared."""
    images = ImageSet(paths_in(folder))
    try:
        store = open_cache(images, image_size=SIDE, cache_dir=folder / "cache")
    except UserError as error:
        if "not built" in str(error) or "unfinished" in str(error):
            return "unfinished"
        raise  # damaged
    right = np.stack([np.asarray(Image.open(path)) for path in images.paths])
    assert (store.read(images.rows(images.paths)) == right).all()
    return "built"


ARCHIVE = "images.tar.gz"


def pack(folder: Path) -> None:
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for number in range(6):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 3000
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))


def unpack(folder: Path) -> None:
    unpack_images(folder / ARCHIVE, folder / "out", most=10**6, advance=lambda read: None)


def unpacked(folder: Path) -> object:
    found = sorted((folder / "out").glob("[!.]*")) if (folder / "out").exists() else []
    assert all(one.read_bytes() == bytes([int(one.stem)]) * 3000 for one in found)
    return len(found)


def train(folder: Path, *overrides: str) -> None:
    """`python train.py` in this process, which is a fork that ends with it."""
    data = (f"data.root={folder}/phantoms", f"data.cache_dir={folder}/cache", "data.phantom=null")
    model = ("model=timm", "model.arch=test_efficientnet", "data.batch_size=20")  # quick to save
    options = (*SMALL, *model, "trainer.max_epochs=2", "logger=csv")
    sys.argv = [TRAIN_PY, *flags_first([*data, *options, *overrides])]
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):  # what it says, beside the folder
        handle = os.open(f"{folder}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, number)
    try:
        runpy.run_path(TRAIN_PY, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def draw_phantoms(folder: Path) -> None:
    for name in (
        "hydra",
        "lightning.pytorch",
        "timm",
        "torch._dynamo",
        "xray_lightning.training.fit",
    ):
        importlib.import_module(name)  # once, for all forks
    ensure_phantoms(folder / "phantoms", PhantomSpec(images=60, size=32, seed=7))


def run(folder: Path) -> None:
    """A training run, or what is left of it: whoever finds a record goes on with its run."""
    if (folder / "one" / "results.json").exists():
        train(folder, "resume=one")
    else:
        train(folder, "hydra.run.dir=one")


def scores(run: Path) -> object:
    """What a run has come to, to the last bit; None before it is finished."""
    if not (run / "results.json").exists():
        return None
    record = read_run(run)
    for path in (run / "checkpoints").glob("[!.]*.ckpt"):
        read_checkpoint(path)
    if record.status != "finished":
        return None
    weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    table = read_predictions(run / "predictions_test.csv")
    curve = [(row.epoch, row.train_loss, row.val_loss) for row in record.history]
    sums = [float(one.double().sum()) for one in weights.values()]
    return curve, sums, record.test, table.to_csv()


def sweep(folder: Path) -> None:
    train(folder, "-m", "seed=0,1", "hydra.sweep.dir=grid", "trainer.max_epochs=1")


def swept(folder: Path) -> object:
    return [scores(run) for run in sorted((folder / "grid").glob("[0-9]*_*"))]


OPERATIONS: dict[str, Operation] = {
    "run": Operation(draw_phantoms, run, lambda folder: scores(folder / "one")),
    "sweep": Operation(draw_phantoms, sweep, swept, weight=1),  # ten times as long
    "checkpoint": Operation(
        lambda folder: save(folder, 0.0), lambda folder: save(folder, 1.0), saved
    ),
    "results": Operation(
        lambda folder: record(folder, "running"),
        lambda folder: record(folder, "finished"),
        lambda folder: read_run(folder).status,
    ),
    "predictions": Operation(
        lambda folder: predictions(folder, 0.25),
        lambda folder: predictions(folder, 0.75),
        predicted,
    ),
    "report": Operation(
        lambda folder: (record(folder, "finished"), (folder / "report.html").write_text("old")),
        report,
        reported,
    ),
    "cache": Operation(draw, build, built),
    "archive": Operation(pack, unpack, unpacked),
}
