"""Builders of small data sets: manifests in memory, and the tables and images of each layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from xray_lightning.data.manifest import Manifest
from xray_lightning.findings import FINDINGS

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
)
AI4M_HEADER = ",".join(["Image", "PatientId", *FINDINGS])
BOXES_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write(path: Path, *lines: str) -> Path:
    """A text file of these lines."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def touch(path: Path) -> Path:
    """An empty file, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_ai4m(path: Path, *rows: tuple[str, str, str], last: bool = False) -> Path:
    """A CSV of AI for Medicine.

    Args:
        rows: image, patient, and a finding that is there, such as "Mass", or "Mass=2".
        last: whether the patient stands last, as in some of its files, and not second.
    """
    titles = ["Image", *sorted(FINDINGS)]
    titles.insert(len(titles) if last else 1, "PatientId")
    lines = [",".join(titles)]
    for image, patient, labelled in rows:
        finding, _, value = labelled.partition("=")
        cells = {"Image": image, "PatientId": patient, finding: value or "1"}
        lines.append(",".join(cells.get(title, "0") for title in titles))
    return write(path, *lines)


def draw_noise(path: Path, *, seed: int, mode: str = "L", size: int = 32) -> None:
    """An image of noise, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def make_manifest(
    images: Mapping[str, str],
    *,
    labels: Mapping[str, Iterable[str]] | None = None,
    lists: dict[str, tuple[str, ...]] | None = None,
    dialect: str = "nih",
) -> Manifest:
    """A manifest of image -> patient, and image -> findings; every image has a file."""
    table = pd.DataFrame({"image": list(images), "patient_id": list(images.values())})
    table["path"] = "/data/" + table["image"]
    for finding in FINDINGS:
        having = [finding in (labels or {}).get(image, ()) for image in images]
        table[finding] = pd.Series(having, dtype="uint8")
    return Manifest(table, dialect, Path("/data"), {}, lists or {}, 0)
