"""The arrays of a MedMNIST .npz of ChestMNIST, written as PNGs, a table and a split."""

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image

from xray_lightning.atomic import write_atomically
from xray_lightning.data.dialects import UNKNOWN_PATIENT
from xray_lightning.errors import RunFailedError
from xray_lightning.findings import decode
from xray_lightning.progress import Advance, Display

SIDES = ("train", "val", "test")
IMAGES = 112_120
TABLE, SPLIT = "Data_Entry_chestmnist.csv", "split.csv"
CHUNK = 256  # images read at once

# The order of MedMNIST's labels is that of FINDINGS, which a test holds to MedMNIST's own names.
LABELS = (
    "atelectasis",
    "cardiomegaly",
    "effusion",
    "infiltration",
    "mass",
    "nodule",
    "pneumonia",
    "pneumothorax",
    "consolidation",
    "edema",
    "emphysema",
    "fibrosis",
    "pleural",
    "hernia",
)


def convert(archive: Path, root: Path, *, size: int, progress: Display) -> int:
    """Write the arrays of a MedMNIST .npz as PNGs, a table and a split; returns the images.

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
        if hasattr(os, "sync"):
            os.sync()  # the images before the table that names them; cheaper than once a file
        _write_tables(root, rows)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise RunFailedError(f"{archive}: not MedMNIST's file: {error}") from error
    except OSError as error:
        where = error.filename or root
        raise RunFailedError(f"{where} cannot be written: {error.strerror or error}") from error
    return len(rows)


def _labels(arrays: zipfile.ZipFile, side: str) -> npt.NDArray[np.uint8]:
    """Multi-hot labels of a side: uint8 (N, 14)."""
    with arrays.open(f"{side}_labels.npy") as stream:
        shape, dtype = _header(stream)
        if len(shape) != 2 or shape[1] != len(LABELS) or shape[0] > IMAGES or dtype.itemsize > 8:
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
    """Shape and type of an array that is about to be read, row by row."""
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of {dtype}, fortran_order {fortran}")
    return shape, dtype


def _write_images(
    folder: Path,
    names: list[str],
    pixels: Iterator[npt.NDArray[np.uint8]],
    advance: Advance,
) -> None:
    """Write each image under another name and rename it: a kill leaves no half one."""
    left = iter(names)
    for images in pixels:
        for image in images:
            name = next(left)
            partial = folder / f".{name}.part"
            Image.fromarray(image).save(partial, format="PNG")
            os.replace(partial, folder / name)
        advance(len(images))


def _write_tables(root: Path, rows: list[tuple[str, str, str]]) -> None:
    split = [(name, side) for name, _, side in rows]
    table = [(name, labels, UNKNOWN_PATIENT) for name, labels, _ in rows]
    write_atomically(root / SPLIT, _as_csv(("image", "split"), split))
    header = ("Image Index", "Finding Labels", "Patient ID")
    write_atomically(root / TABLE, _as_csv(header, table))


def _as_csv(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
