"""Int8 quantisation of an exported model (smaller, mostly faster), and its cost in AUROC."""

import tempfile
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.deploy.onnx_backend import IMAGES, OnnxMember, add_metadata, quiet
from xray_lightning.evaluation.compare import Comparison, compare
from xray_lightning.evaluation.ensemble import Member, labelled
from xray_lightning.evaluation.evaluation_data import DataChoice, data_for, seen_before
from xray_lightning.progress import Display
from xray_lightning.runs.run_folder import Provenance

CALIBRATION_IMAGES = 200  # validation images whose activations set the quantisation ranges
BATCH = 20
SIDE = "test"


def quantize(
    checkpoint: Path,
    content: bytes,
    described: dict[str, Any],
    *,
    data: Path,
    progress: Display,
) -> tuple[bytes, list[str]]:
    """Quantise an exported model to int8, and score both versions on a data set's test side.

    Weights have a scale for each channel; activations have ranges from validation images.

    Args:
        content: the ONNX file in float32 that the checkpoint was exported to.
        described: the file's metadata; see `onnx_backend.describe`.
        data: folder of a data set.

    Returns:
        The int8 ONNX file, and lines that state the change in AUROC.

    Raises:
        UserError: a data set that cannot be used.
    """
    member = Member.read(checkpoint)
    trained = Provenance.of_checkpoint(checkpoint)
    images = data_for(member, trained, DataChoice(root=data), progress=progress)
    images.prepare_data()
    images.setup()
    described = {**described, "precision": "int8"}
    quantized = _with_metadata(_quantized(content, _calibrating(images)), described)
    first, second = (
        _predictions(OnnxMember.of(one, path=checkpoint), images, progress, name)
        for one, name in ((content, "float32"), (quantized, "int8"))
    )
    resamples, seed = trained.bootstrap(None, None)
    change = compare(first, second, resamples=resamples, seed=seed)
    said = {
        "images": change.images,
        "auroc_macro": change.second.auroc_macro,
        "auroc_macro_float32": change.first.auroc_macro,
        "auroc_macro_change": change.auroc_macro.to_plain(),
        "calibration_images": min(CALIBRATION_IMAGES, len(images.table("val"))),
    }
    note = seen_before(member, trained, images, side=SIDE)  # overlap with the training data
    told = [_cost(change), *([] if note is None else [f"Note: {note}"])]
    return _with_metadata(quantized, {**described, "int8": said}), told


def _cost(found: Comparison) -> str:
    """The change in AUROC by int8, for a terminal; `found.first` is float32."""
    change, before, after = found.auroc_macro, found.first.auroc_macro, found.second.auroc_macro
    if before is None or after is None or change.value is None:
        told = f"no macro AUROC ({change.reason})"
    else:
        ends = change.ci95
        interval = (
            f"95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}"
            if ends
            else f"no interval: {change.reason}"
        )
        told = (
            f"macro AUROC over {len(found.findings)} findings {after:.4f}, in float32 "
            f"{before:.4f}: {change.value:+.4f} ({interval})"
        )
    return f"int8 on {found.images:,} {SIDE} images: {told}"


def _quantized(content: bytes, batches: Iterator[npt.NDArray[np.uint8]]) -> bytes:
    tool = import_module("onnxruntime.quantization")

    class Reader(tool.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {IMAGES: batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        given.write_bytes(content)
        tool.quantize_static(
            given,
            made,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm", "Add", "Relu", "MaxPool", "Concat"],
            per_channel=True,
            quant_format=tool.QuantFormat.QDQ,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
        )
        return made.read_bytes()


def _calibrating(data: XrayDataModule) -> Iterator[npt.NDArray[np.uint8]]:
    """Batches of validation images, uint8 (B, 1, S, S)."""
    pixels = (one for batch in data.val_dataloader() for one in batch.images.numpy())
    images = islice(pixels, CALIBRATION_IMAGES)
    while batch := list(islice(images, BATCH)):
        yield np.stack(batch)


def _predictions(
    model: OnnxMember, data: XrayDataModule, progress: Display, name: str
) -> pd.DataFrame:
    table = data.table(SIDE)
    probabilities = np.full((len(table), len(data.findings)), np.nan, dtype=np.float32)
    with progress(f"scoring {SIDE} images in {name}", len(table)) as advance:
        for batch in data.test_dataloader():
            probabilities[batch.rows.numpy()] = model.answers(batch.images.numpy())[0]
            advance(len(batch.rows))
    return labelled(data, probabilities, side=SIDE)


def _with_metadata(content: bytes, described: dict[str, Any]) -> bytes:
    onnx = import_module("onnx")
    proto = onnx.load_from_string(content)
    proto.ClearField("metadata_props")
    add_metadata(proto, described)
    found: bytes = proto.SerializeToString()
    return found
