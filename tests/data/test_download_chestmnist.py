"""ChestMNIST becomes images, a table and a split that training reads, and says what it lacks."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from file_server import FileServer, cut_after, serving

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.decode_resize import decode_gray
from xray_lightning.data.download import chestmnist as medmnist
from xray_lightning.data.download.chestmnist import (
    RELEASES,
    Release,
    convert,
    download_chestmnist,
)
from xray_lightning.data.download.http import Patience
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.splits import make_split
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.progress import unseen

Arrays = dict[str, npt.NDArray[np.generic]]
COUNTS = {"train": 300, "val": 20, "test": 30}  # more than one piece of images in train


def arrays(size: int = 28) -> Arrays:
    draw = np.random.default_rng(0)
    made: Arrays = {}
    for side, count in COUNTS.items():
        made[f"{side}_images"] = draw.integers(0, 256, (count, size, size), dtype=np.uint8)
        made[f"{side}_labels"] = draw.integers(0, 2, (count, 14), dtype=np.uint8)
    return made


def packed(content: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **content)  # type: ignore[arg-type]
    return stream.getvalue()


BODY = packed(arrays())
SMALL = (
    Release(28, "chestmnist.npz", hashlib.md5(BODY).hexdigest()),
    Release(64, "chestmnist_64.npz", hashlib.md5(BODY).hexdigest()),
)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer({f"/{release.file}": BODY for release in SMALL})) as state:
        yield state


def get(server: FileServer, root: Path, *, size: int = 28) -> tuple[int, bool]:
    return download_chestmnist(
        root,
        size=size,
        base_url=server.url,
        releases=SMALL,
        patience=Patience(sleep=lambda _: None),
        free=lambda _: 10**12,
    )


def test_the_labels_are_the_findings_in_their_order() -> None:
    labels = (
        "atelectasis cardiomegaly effusion infiltration mass nodule pneumonia pneumothorax "
        "consolidation edema emphysema fibrosis pleural hernia"  # INFO["chestmnist"]["label"]
    )
    for label, finding in zip(labels.split(), FINDINGS, strict=True):
        assert finding.lower().startswith(label)


def test_the_releases_have_the_four_sizes_and_an_md5_each() -> None:
    assert [release.size for release in RELEASES] == [28, 64, 128, 224]
    assert len({release.md5 for release in RELEASES}) == 4
    assert all(len(release.md5) == 32 for release in RELEASES)


def test_pixels_labels_and_sides_come_out_as_they_went_in(
    server: FileServer, tmp_path: Path
) -> None:
    server.faults = [cut_after(100_000)]
    assert get(server, tmp_path) == (350, True)
    manifest = read_manifest(tmp_path)
    sides = make_split(manifest, str(tmp_path / "split.csv")).sides
    content = arrays()
    table = manifest.table.set_index("image")
    for side, count in COUNTS.items():
        assert len(sides[side]) == count
        rows = table.loc[list(sides[side])]
        assert np.array_equal(rows[list(FINDINGS)].to_numpy(), content[f"{side}_labels"])
        pixels = np.stack([decode_gray(path) for path in rows["path"]])
        assert np.array_equal(pixels, content[f"{side}_images"])
    assert not list(tmp_path.rglob("*.part"))


def test_unknown_patients_are_counted_and_each_image_stands_alone(
    server: FileServer, tmp_path: Path
) -> None:
    get(server, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.dropped["patient unknown (each image as a patient of its own)"] == 350
    assert manifest.table["patient_id"].nunique() == 350
    assert "No Finding" not in manifest.table.columns


def test_the_data_module_reads_it_and_its_results_say_that_patients_are_unknown(
    server: FileServer, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    get(server, root)
    data = XrayDataModule(
        name="chestmnist",
        root=str(root),
        split=str(root / "split.csv"),
        image_size=32,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup()
    told = data.describe()
    assert told["images"] == COUNTS
    assert told["dropped"]["patient unknown (each image as a patient of its own)"] == 350
    assert next(iter(data.val_dataloader())) is not None


def test_a_second_run_fetches_and_writes_nothing(server: FileServer, tmp_path: Path) -> None:
    get(server, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    server.asked.clear()
    assert get(server, tmp_path) == (350, False)
    assert server.asked == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}


def test_a_run_that_was_cut_off_while_writing_leaves_no_table_and_is_gone_on_with(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(medmnist, "_write_tables", stop)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path)
    assert not list(tmp_path.glob("*.csv"))
    server.asked.clear()
    assert get(server, tmp_path) == (350, True)
    assert server.asked == []  # the file itself was there


def test_another_size_or_another_data_set_is_not_mixed_in(
    server: FileServer, tmp_path: Path
) -> None:
    get(server, tmp_path / "a")
    with pytest.raises(UserError, match="holds ChestMNIST of 28 pixels; give another folder"):
        get(server, tmp_path / "a", size=64)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "Data_Entry_2017.csv").write_text("mine")
    with pytest.raises(UserError, match="holds other images or tables"):
        get(server, tmp_path / "b")


def test_an_unknown_size_and_a_full_disk_are_told(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size 100: ChestMNIST comes in 28, 64 pixels"):
        get(server, tmp_path, size=100)
    with pytest.raises(UserError, match=r"GB are needed and 0\.0 GB are free"):
        download_chestmnist(tmp_path, size=224, free=lambda _: 1000)


def without(name: str) -> Arrays:
    content = arrays()
    del content[name]
    return content


def with_head(head: bytes) -> bytes:
    """A file of one array, which begins with this head."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        begin = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little")
        archive.writestr("train_labels.npy", begin + head)
    return stream.getvalue()


NEWER = b"PK\x01\x02\x14\x03\xff"  # needs a version of zip that there is not

FAULTS: dict[str, bytes] = {
    "no zip": b"<html>",
    "an array missing": packed(without("val_images")),
    "another size": packed(arrays(29)),
    "colour": packed(arrays() | {"val_images": np.zeros((20, 28, 28, 3), np.uint8)}),
    "another type": packed(arrays() | {"val_images": np.zeros((20, 28, 28), np.float32)}),
    "fewer labels": packed(arrays() | {"val_labels": np.zeros((19, 14), np.uint8)}),
    "13 labels": packed(arrays() | {"val_labels": np.zeros((20, 13), np.uint8)}),
    "a label of 2": packed(arrays() | {"val_labels": np.full((20, 14), 2, np.uint8)}),
    "columns first": packed(arrays() | {"val_images": np.asfortranarray(arrays()["val_images"])}),
    "records": packed(arrays() | {"val_labels": np.zeros((20, 14), [("a", np.uint8)])}),
    "objects": packed(arrays() | {"val_labels": np.full((20, 14), None)}),
    "a head that is no Python": with_head(b"{'descr': ("),
    "a head of other keys": with_head(b"{'descr': '|u1', 1: 2}"),
    "a type that is no Python": with_head(
        b"{'descr': '|,1', 'shape': (2,), 'fortran_order': False}"
    ),
    "a head too long to be safe": with_head(b"{'descr': '|u1'}".ljust(20_000)),
    "an unknown compression": with_head(b"{}").replace(b"PK\x01\x02\x14\x03\x14", NEWER),
    "cut": BODY[: len(BODY) // 2],
}


@pytest.mark.parametrize("name", FAULTS)
def test_arrays_that_are_not_medmnists_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.npz"
    archive.write_bytes(FAULTS[name])
    with pytest.raises(RunFailedError, match=r"a\.npz: not MedMNIST's file") as caught:
        convert(archive, tmp_path, size=28, progress=unseen)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("*.csv"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    with pytest.raises(RunFailedError, match="images cannot be written: File exists"):
        convert(tmp_path / "a.npz", tmp_path, size=28, progress=unseen)
