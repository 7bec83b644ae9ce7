"""The DataModule: from a folder to batches, and what it says about them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import IMAGES, REPOSITORY
from jsonschema import Draft202012Validator

from xray_lightning.data.datamodule import SIDES, XrayDataModule
from xray_lightning.data.decode_resize import decode_gray, resize_gray
from xray_lightning.data.sources.phantom.dataset import PhantomSpec
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

SIZE = 32
SCHEMA = json.loads((REPOSITORY / "docs" / "results_schema.json").read_text())


def module(root: Path, tmp_path: Path, **further: Any) -> XrayDataModule:
    settings: dict[str, Any] = {"image_size": SIZE, "batch_size": 16}
    return XrayDataModule(
        name="phantom",
        root=str(root),
        cache_dir=str(tmp_path / "cache"),
        **(settings | further),
    )


def ready(root: Path, tmp_path: Path, **further: Any) -> XrayDataModule:
    data = module(root, tmp_path, **further)
    data.prepare_data()
    data.setup("fit")
    return data


def loaders(data: XrayDataModule) -> Iterator[tuple[str, Any]]:
    yield "train", data.train_dataloader()
    yield "val", data.val_dataloader()
    yield "test", data.test_dataloader()


def assert_valid(described: dict[str, Any]) -> None:
    schema = {"$ref": "#/$defs/DataSummary", "$defs": SCHEMA["$defs"]}
    Draft202012Validator(schema).validate(described)


@pytest.fixture
def copied(phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms in a folder that a test may change."""
    return Path(shutil.copytree(phantoms, tmp_path / "copied"))


@pytest.mark.parametrize("cache_option", ["disk", "off"])
def test_each_row_of_a_batch_is_the_image_and_labels_of_the_tables_row(
    cache_option: str, phantoms: Path, tmp_path: Path
) -> None:
    data = ready(phantoms, tmp_path, cache=cache_option)
    for side, loader in loaders(data):
        table, labels = data.table(side), data.labels(side)
        seen = []
        for batch in loader:
            for image, targets, row in zip(
                batch.images, batch.targets, batch.rows.tolist(), strict=True
            ):
                pixels = resize_gray(decode_gray(table["path"][row]), SIZE)
                assert (image[0].numpy() == pixels).all()
                assert (targets.numpy() == labels[row]).all()
                seen.append(row)
        assert sorted(seen) == list(range(len(table)))
        assert (seen == sorted(seen)) == (side != "train")  # training alone is shuffled
    key = data.describe()["cache_key"]
    assert key is None if cache_option == "off" else len(key) == 64


def test_the_sides_share_no_patient_and_hold_every_image(phantoms: Path, tmp_path: Path) -> None:
    data = module(phantoms, tmp_path)
    train, val, test = (set(data.table(side)["patient_id"]) for side in SIDES)
    assert sum(len(data.table(side)) for side in SIDES) == IMAGES
    assert train.isdisjoint(val)
    assert test.isdisjoint(train | val)


def test_the_description_is_that_of_the_schema_and_counts_the_tables(
    phantoms: Path, tmp_path: Path
) -> None:
    data = ready(phantoms, tmp_path)
    described = data.describe()
    assert_valid(described)
    assert sum(described["images"].values()) == IMAGES
    assert described["root"] == str(phantoms)
    assert described["split"] == "official"
    assert described["split_sha256"] == data.usable.split.sha256
    assert described["patient_overlap"] == {}
    for side in SIDES:
        table = data.table(side)
        assert described["patients"][side] == table["patient_id"].nunique()
        assert described["positives"][side] == {name: table[name].sum() for name in FINDINGS}
        assert data.positives(side).tolist() == [table[name].sum() for name in FINDINGS]


@pytest.mark.parametrize("most", [2000, 20])
def test_mean_and_deviation_are_those_of_the_training_pixels_or_of_an_even_share(
    most: int, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xray_lightning.data.datamodule.STATISTICS_IMAGES", most)
    data = ready(phantoms, tmp_path)
    table = data.table("train")
    rows = np.linspace(0, len(table) - 1, min(most, len(table))).astype(int)
    pixels = np.stack([resize_gray(decode_gray(table["path"][row]), SIZE) for row in rows]) / 255
    assert data.pixel_statistics() == pytest.approx((pixels.mean(), pixels.std()))


def test_a_cache_that_is_there_is_used_again(copied: Path, tmp_path: Path) -> None:
    first = ready(copied, tmp_path)
    for path in (copied / "images").iterdir():  # whoever decodes again will tell
        state = path.stat()
        path.write_bytes(bytes(state.st_size))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = ready(copied, tmp_path)
    again.prepare_data()  # as every rank of another node would
    again.setup("test")
    assert again.cache_key == first.cache_key
    assert torch.equal(
        next(iter(again.test_dataloader())).images, next(iter(first.test_dataloader())).images
    )


def test_another_split_of_the_same_images_shares_their_cache(
    phantoms: Path, tmp_path: Path
) -> None:
    ready(phantoms, tmp_path)
    for other in ({"split_seed": 5}, {"split": "patient_random"}):
        data = module(phantoms, tmp_path, **other)
        built = data.build_cache()
        assert (built.decoded, built.copied) == (0, 0)
        data.setup("fit")
        for side, loader in loaders(data):
            for batch in loader:
                paths = [data.table(side)["path"][row] for row in batch.rows.tolist()]
                pixels = np.stack([resize_gray(decode_gray(path), SIZE) for path in paths])
                assert (batch.images[:, 0].numpy() == pixels).all()


def test_a_rank_that_finds_no_cache_says_where_it_looked(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_dir=.*80 images: not built; build it with"):
        module(phantoms, tmp_path).setup("fit")


def test_a_changed_image_is_decoded_again(copied: Path, tmp_path: Path) -> None:
    before = ready(copied, tmp_path)
    path = Path(before.table("test")["path"][0])
    donor = Path(before.table("test")["path"][1])
    shutil.copy(donor, path)
    after = ready(copied, tmp_path)
    assert after.cache_key != before.cache_key
    images = next(iter(after.test_dataloader())).images
    assert torch.equal(images[0], images[1])


def test_phantoms_are_drawn_once_before_they_are_read(tmp_path: Path) -> None:
    root, spec = tmp_path / "drawn", PhantomSpec(images=30, size=32, seed=3)
    shown: list[str] = []

    @contextmanager
    def progress(title: str, images: int) -> Iterator[Any]:
        done: list[int] = []
        yield done.append
        if done:
            shown.append(f"{title}: {sum(done)} of {images}")

    data = ready(root, tmp_path, phantom=spec, progress=progress)
    assert sum(data.describe()["images"].values()) == 30
    drawn = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    ready(root, tmp_path, phantom=spec, progress=progress)
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == drawn
    assert shown == ["drawing phantoms: 30 of 30", "decoding images: 30 of 30"]


def test_fault_43_rows_without_files_are_refused_or_left_out_and_counted(
    copied: Path, tmp_path: Path
) -> None:
    gone = sorted((copied / "images").iterdir())[:3]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError, match=gone[0].name):
        module(copied, tmp_path).load()
    data = ready(copied, tmp_path, missing="skip")
    described = data.describe()
    assert_valid(described)
    assert sum(described["images"].values()) == IMAGES - 3
    counted = [count for reason, count in described["dropped"].items() if "no file" in reason]
    assert sum(counted) == 3
    names = pd.concat([data.table(side)["image"] for side in SIDES])
    assert not set(names) & {path.name for path in gone}


def test_fault_44_a_patient_on_two_sides_is_refused_or_marked(
    phantoms: Path, tmp_path: Path
) -> None:
    images = module(phantoms, tmp_path).manifest.table["image"]
    sides = [SIDES[number % 3] for number in range(len(images))]  # patients have several images
    split = tmp_path / "split.csv"
    pd.DataFrame({"image": images, "split": sides}).to_csv(split, index=False)
    with pytest.raises(UserError, match="allow_patient_overlap"):
        module(phantoms, tmp_path, split=str(split)).load()
    data = ready(phantoms, tmp_path, split=str(split), allow_patient_overlap=True)
    described = data.describe()
    assert_valid(described)
    assert described["patient_overlap"]["train-test"]["patients"] > 0


def test_balanced_sampling_shows_a_rare_finding_more_often(phantoms: Path, tmp_path: Path) -> None:
    data = ready(phantoms, tmp_path, sampler="balanced", batch_size=8)
    positives = data.labels("train").sum(axis=0)
    rarest = int(np.where(positives > 0, positives, positives.max()).argmin())
    loader = data.train_dataloader()
    drawn = 0.0
    for epoch in range(20):
        loader.set_epoch(epoch)
        drawn += sum(float(batch.targets[:, rarest].sum()) for batch in loader)
    assert drawn / 20 > positives[rarest]


def test_a_missing_folder_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*absent does not exist"):
        module(tmp_path / "absent", tmp_path).prepare_data()


@pytest.mark.parametrize(
    "option, told",
    [
        ({"image_size": 31}, "data.image_size=31 must be a whole number of at least 32"),
        ({"batch_size": 0}, "data.batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": "abc"}, "data.batch_size=abc"),
        ({"batch_size": True}, "data.batch_size=True"),
        ({"split_seed": -1}, "data.split_seed=-1"),
        ({"val_fraction": 0}, "data.val_fraction=0 must be a number between 0 and 1"),
        ({"test_fraction": "x"}, "data.test_fraction=x"),
        ({"sampler": "other"}, "data.sampler=other is unknown; choose one of shuffle, balanced"),
        ({"cache": "ram"}, "data.cache=ram is unknown; choose one of disk, off"),
        ({"allow_patient_overlap": "maybe"}, "data.allow_patient_overlap=maybe"),
        ({"root": ""}, "data.root is empty"),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_key(
    option: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        XrayDataModule(**({"name": "n", "root": str(tmp_path)} | option))


def test_a_cache_folder_that_cannot_be_made_is_told_by_its_key(
    phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"data.cache_dir=.*cannot be written"):
        module(phantoms, tmp_path).prepare_data()


def test_a_loader_before_setup_is_a_mistake_of_the_caller(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="setup"):
        module(phantoms, tmp_path).train_dataloader()
