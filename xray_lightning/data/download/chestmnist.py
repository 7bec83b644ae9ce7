"""Downloader of ChestMNIST, NIH ChestX-ray14 made small by MedMNIST v2: images, table and split.

Yang et al., "MedMNIST v2", Scientific Data 2023, CC BY 4.0; https://doi.org/10.5281/zenodo.10519652.
Its files hold no patient ids, so nobody can tell whether its splits share patients: the table says
`unknown`, which the manifest counts, taking each such image as a patient of its own.
"""

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.lib import format as npy
from PIL import Image

from xray_lightning.data.download.http import Patience, check_base, fetch_verified, forget
from xray_lightning.data.image_files import count_images
from xray_lightning.data.sources.chestmnist import SPLIT, TABLE
from xray_lightning.data.sources.nih import NIH_TABLES, UNKNOWN_PATIENT
from xray_lightning.data.splits import SIDES
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import (
    Free,
    check_room,
    free_bytes,
    note,
    noted,
    working_in,
    write_atomically,
)
from xray_lightning.findings import FINDINGS, decode
from xray_lightning.progress import Advance, Display, Transfers, unseen

IMAGES = 112_120
CHUNK = 256  # images read at once
BASE_URL = "https://zenodo.org/records/10519652/files/"
NOTE = "chestmnist.json"
# What zipfile and numpy raise on damaged files: NotImplementedError on an unknown compression,
# RuntimeError on encryption, TokenError and SyntaxError on a header that is no Python.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, ValueError),
    *(NotImplementedError, RuntimeError, OverflowError, TokenError, SyntaxError),
)
BLOCK = 4096  # bytes that a small file takes on most file systems


@dataclass(frozen=True)
class Release:
    """One of the .npz files."""

    size: int  # side of the images in pixels
    file: str
    md5: str


# From `medmnist/info.py` of the package medmnist 3.0 (chestmnist: url, MD5, MD5_64, ...).
RELEASES = (
    Release(28, "chestmnist.npz", "02c8a6516a18b556561a56cbdd36c4a8"),
    Release(64, "chestmnist_64.npz", "9de6cd0b934ebb5b7426cfba5efbae16"),
    Release(128, "chestmnist_128.npz", "db107e5590b27930b62dbaf558aebee3"),
    Release(224, "chestmnist_224.npz", "45bd33e6f06c3e8cdb481c74a89152aa"),
)


def download_chestmnist(
    root: Path,
    *,
    size: int = 64,
    base_url: str = BASE_URL,
    releases: tuple[Release, ...] = RELEASES,
    transfers: Transfers | None = None,
    progress: Display = unseen,
    patience: Patience | None = None,
    free: Free = free_bytes,
) -> tuple[int, bool]:
    """Download ChestMNIST into `root`: images/, Data_Entry_chestmnist.csv and split.csv.

    The table is written last, so that a kill leaves no incomplete data set; fetched bytes stay, and
    a rerun resumes the download.

    Args:
        root: made if missing; it may hold no other data set.
        size: side of the images in pixels: 28, 64, 128 or 224.
        base_url: the folder of a server that has the .npz files.
        progress: display for writing the images; `transfers` shows the download.

    Returns:
        The number of images, and whether this call downloaded them.

    Raises:
        UserError: an unknown size, another data set in `root`, too little room.
        RunFailedError: no server, a wrong file, a full disk.
    """
    release = next((release for release in releases if release.size == size), None)
    if release is None:
        sizes = ", ".join(str(release.size) for release in releases)
        raise UserError(f"--size {size}: ChestMNIST comes in {sizes} pixels")
    base_url = check_base("--base-url", base_url)
    transfers = transfers or Transfers(shown=False)
    with working_in(root) as state:
        if images := _finished(release, root, state):
            return images, False
        most = IMAGES * (size**2 + len(FINDINGS)) + 2**20  # size without compression
        files = IMAGES * (size**2 // BLOCK + 1) * BLOCK
        part = state / f"{release.file}.part"
        have = part.stat().st_size if part.exists() else 0
        check_room(root, max(most + files - have, 0), free=free)
        # Before the first file, so that a rerun after a kill knows the folder as ChestMNIST's.
        note(state / NOTE, {"md5": release.md5, "size": size})
        with transfers.live(), transfers.bar(release.file, total=None) as bar:
            fetch_verified(
                f"{base_url}{release.file}?download=1",
                part,
                md5=release.md5,
                most=most,
                watch=bar,
                patience=patience or Patience(),
            )
            bar.doing("done")
        images = convert(part, root, size=size, progress=progress)
        note(state / NOTE, {"md5": release.md5, "size": size, "images": images})
        forget(part)
    return images, True


def _finished(release: Release, root: Path, state: Path) -> int:
    """The number of images if an earlier run has finished, or 0; refuses a folder of other data."""
    content = noted(state / NOTE)
    if not content and (any(root.glob(NIH_TABLES)) or count_images(root)):
        raise UserError(f"{root} holds other images or tables already; give a new folder")
    if content and content.get("size") != release.size:
        raise UserError(
            f"{root} holds ChestMNIST of {content.get('size')} pixels; give another folder for "
            f"{release.size}"
        )
    images = content.get("images")
    tables = all((root / name).is_file() for name in (TABLE, SPLIT))
    if content.get("md5") != release.md5 or not isinstance(images, int) or not tables:
        return 0
    return images if count_images(root / "images") >= images else 0


def convert(archive: Path, root: Path, *, size: int, progress: Display) -> int:
    """Write the arrays of a MedMNIST .npz as PNGs, a table and a split; returns how many images.

    A few hundred images are read at a time, as the largest file has 5.6 GB of pixels.

    Raises:
        RunFailedError: not the arrays that belong there, or a full disk.
    """
    folder = root / "images"
    rows: list[tuple[str, str, str]] = []  # image, labels, side
    try:
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(archive) as arrays:
            labels = {side: _labels(arrays, side) for side in SIDES}
            total = sum(len(marks) for marks in labels.values())
            with progress("writing images", total) as advance:
                for side in SIDES:
                    marks = labels[side]
                    names = [f"chestmnist_{side}_{place:05d}.png" for place in range(len(marks))]
                    pixels = _pixels(arrays, side, count=len(marks), size=size)
                    _write_images(folder, names, pixels, advance)
                    rows += [
                        (name, decode(mark), side) for name, mark in zip(names, marks, strict=True)
                    ]
        os.sync()  # images before the table that names them; cheaper than one fsync per file
        _write_tables(root, rows)
    except DAMAGE as error:
        raise RunFailedError(f"{archive}: not MedMNIST's file: {error}") from error
    except OSError as error:
        where = error.filename or root
        raise RunFailedError(f"{where} cannot be written: {error.strerror or error}") from error
    return len(rows)


def _labels(arrays: zipfile.ZipFile, side: str) -> npt.NDArray[np.uint8]:
    """Multi-hot labels of a side, in the order of FINDINGS, which is MedMNIST's: uint8 (N, 14)."""
    with arrays.open(f"{side}_labels.npy") as stream:
        shape, dtype = _header(stream)
        numbers = dtype.kind in "biuf" and dtype.itemsize <= 8
        if len(shape) != 2 or shape[1] != len(FINDINGS) or shape[0] > IMAGES or not numbers:
            raise ValueError(f"{side}_labels has the shape {shape} of {dtype}")
        data = stream.read(shape[0] * shape[1] * dtype.itemsize)
    labels = np.frombuffer(data, dtype).reshape(shape)
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{side}_labels holds other numbers than 0 and 1")
    return labels.astype(np.uint8)


def _pixels(
    arrays: zipfile.ZipFile, side: str, *, count: int, size: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """The images of a side, in pieces: uint8 (at most CHUNK, size, size)."""
    with arrays.open(f"{side}_images.npy") as stream:
        shape, dtype = _header(stream)
        if shape != (count, size, size) or dtype != np.uint8:
            raise ValueError(f"{side}_images has the shape {shape} of {dtype}")
        for start in range(0, count, CHUNK):
            images = min(CHUNK, count - start)
            data = stream.read(images * size * size)
            yield np.frombuffer(data, np.uint8).reshape(images, size, size)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype from the header of a .npy stream; refuses Fortran order and objects."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except TypeError as error:  # numpy sorts the keys of what should be a dict of texts
        raise ValueError(f"an array whose head cannot be read: {error}") from error
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of {dtype}, fortran_order {fortran}")
    return shape, dtype


def _write_images(
    folder: Path,
    names: list[str],
    pixels: Iterator[npt.NDArray[np.uint8]],
    advance: Advance,
) -> None:
    """Write each image under a temporary name and rename it: a kill leaves no partial one."""
    left = iter(names)
    for images in pixels:
        for image in images:
            name = next(left)
            partial = folder / f".{name}.part"
            Image.fromarray(image).save(partial, format="PNG")
            os.replace(partial, folder / name)
        advance(len(images))


def _write_tables(root: Path, rows: list[tuple[str, str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["image", "Finding Labels", "split"])
    table["Image Index"], table["Patient ID"] = table["image"], UNKNOWN_PATIENT
    for file, columns in (
        (SPLIT, ["image", "split"]),
        (TABLE, ["Image Index", "Finding Labels", "Patient ID"]),
    ):
        write_atomically(root / file, table[columns].to_csv(index=False, lineterminator="\n"))
