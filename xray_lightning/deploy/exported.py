"""What an exported model says of itself: plain values that are written with it and read back."""

import json
from collections.abc import Mapping
from typing import Any

from xray_lightning.data.images import DECODER_VERSION
from xray_lightning.errors import UserError
from xray_lightning.findings import check_findings
from xray_lightning.page.frame import NOTICE

SCHEMA_VERSION = 1
IMAGES, PROBABILITIES, LOGITS = "images", "probabilities", "logits"  # names in the graph

# What is text as it is; every other value of an ONNX file's metadata is JSON.
TEXTS = ("notice", "preparation", "decoder_version", "checkpoint_sha256", "precision")


def describe(checkpoint: Mapping[str, Any], *, sha256: str) -> dict[str, Any]:
    """What an exported model needs to be used without its checkpoint.

    Args:
        checkpoint: its `xray` entry.
        sha256: of the checkpoint's file.
    """
    same = ("findings", "image_size", "normalize", "model", "split_sha256")
    fitted = ("thresholds", "operating_points", "calibration")
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "preparation": preparation(checkpoint["image_size"]),
        "decoder_version": DECODER_VERSION,
        **{key: checkpoint.get(key) for key in (*same, *fitted)},
        "checkpoint_sha256": sha256,
        "checkpoint_schema_version": checkpoint["schema_version"],
        "precision": "float32",
    }


def preparation(image_size: int) -> str:
    """How a file becomes the graph's input, in words: what `deploy.preprocess` does."""
    return (
        f"Input {IMAGES}: uint8 (N, 1, {image_size}, {image_size}), any N, 0 to 255, bright where "
        "X-rays were stopped. Decode to gray: colour as ITU-R 601 luma, alpha dropped, 1 bit as 0 "
        "and 255, 16 bits as round(value / 257), orientation tags ignored; DICOM as "
        "xray_lightning.data.dicom. "
        f"Resize to {image_size} x {image_size} by Pillow's BILINEAR (antialiased), without "
        "keeping the aspect ratio. Do not scale or normalise: the graph does. Outputs "
        f"{PROBABILITIES} (raw, not calibrated) and {LOGITS}: float32 (N, findings)."
    )


def to_texts(described: Mapping[str, Any]) -> dict[str, str]:
    """The description as texts, for a format that holds nothing else."""
    return {
        key: str(value) if key in TEXTS else json.dumps(value, allow_nan=False)
        for key, value in described.items()
    }


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """What `to_texts` gave, checked as far as every use needs it.

    Raises:
        UserError: it is another's, of another schema, or damaged.
    """
    if "schema_version" not in texts or "checkpoint_sha256" not in texts:
        raise UserError("it was not written by xray export: it does not say its findings")
    try:
        described = {key: text if key in TEXTS else json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata are damaged ({error}); export it again") from error
    if described["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"it has schema_version {described['schema_version']}, and this version reads "
            f"{SCHEMA_VERSION}; export it again"
        )
    described["findings"] = list(check_findings(described.get("findings"), what="its findings"))
    size = described.get("image_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"its image_size, {size}, is no size; export it again")
    return described
