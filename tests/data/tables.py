"""Builders of small data sets: manifests in memory, and the tables of each layout as files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

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
