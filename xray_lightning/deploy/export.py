"""Export of a checkpoint as ONNX or torch.export (`xray export`), refused where answers differ."""

import copy
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from xray_lightning.data.images import UnreadableImageError
from xray_lightning.data.sources.phantom.render import draw_phantom
from xray_lightning.data.transforms import EPSILON
from xray_lightning.deploy.int8 import Quantized, quantize
from xray_lightning.deploy.model import EXPORTED
from xray_lightning.deploy.onnx_backend import (
    IMAGES,
    LOGITS,
    PROBABILITIES,
    describe,
    onnxruntime,
    quiet,
    to_texts,
)
from xray_lightning.deploy.predict import find_inputs
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import check_writable, told_if_unwritable, write_atomically
from xray_lightning.models.checkpoint import RestoredModel, read_checkpoint, restore
from xray_lightning.progress import Display, unseen

DESCRIPTION = "xray.json"  # of a torch-export file: what an ONNX file has as its metadata
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Answers = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class Graph(Protocol):
    """An exported model as a file holds it, and as it answers from there."""

    content: bytes

    def answers(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        """Probabilities and logits (B, F) of images (B, 1, S, S)."""


class Answering(nn.Module):
    """Probabilities and logits (B, findings) of uint8 images (B, 1, S, S)."""

    def __init__(self, model: RestoredModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits.sigmoid(), logits

    def answers(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        """What torch answers."""
        with torch.inference_mode():
            probabilities, logits = self(torch.from_numpy(pixels))
        return probabilities.numpy(), logits.numpy()


class PerImage(nn.Module):
    """`Normalize("per_image")`, its means taken row by row and then over the rows.

    onnxruntime adds up one pixel after the other, and over a whole image loses two digits.
    """

    def forward(self, images: Tensor) -> Tensor:
        pixels = images / 255  # (B, 1, S, S)
        centred = pixels - _mean(pixels)
        return centred / (_mean(centred.square()).sqrt() + EPSILON)


def _mean(pixels: Tensor) -> Tensor:
    return pixels.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


class TorchGraph:
    """The model as torch.export writes it."""

    def __init__(self, model: Answering, described: Mapping[str, Any]) -> None:
        program = _program(model)
        stream = io.BytesIO()
        text = json.dumps(described, allow_nan=False)
        torch.export.save(program, stream, extra_files={DESCRIPTION: text})
        self.content = stream.getvalue()
        self._module = torch.export.load(io.BytesIO(self.content)).module()

    def answers(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        with torch.inference_mode():
            probabilities, logits = self._module(torch.from_numpy(pixels))
        return probabilities.numpy(), logits.numpy()


class OnnxGraph:
    """The model as an ONNX file, in one piece.

    Raises:
        UserError: a package that it takes is not installed.
    """

    def __init__(self, model: Answering, described: Mapping[str, Any]) -> None:
        check_onnx()
        with quiet():
            program = torch.onnx.export(
                _program(model),
                (),
                dynamo=True,
                input_names=[IMAGES],
                output_names=[PROBABILITIES, LOGITS],
                verbose=False,
            )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        proto = program.model_proto
        _tidy(proto)
        for key, text in to_texts(described).items():
            proto.metadata_props.add(key=key, value=text)
        self.content = proto.SerializeToString()
        runtime = onnxruntime()
        self._session = runtime.InferenceSession(self.content, providers=["CPUExecutionProvider"])

    def answers(self, pixels: npt.NDArray[np.uint8]) -> Answers:
        probabilities, logits = self._session.run([PROBABILITIES, LOGITS], {IMAGES: pixels})
        return probabilities, logits


def check_onnx() -> None:
    """Refuse to begin what needs packages that are not installed.

    Raises:
        UserError: naming them.
    """
    lacking = []
    for name in ONNX_PACKAGES:
        try:
            import_module(name)
        except ImportError:
            lacking.append(name)
    if lacking:
        raise UserError(
            f"--format onnx needs {', '.join(lacking)}, not installed; install xray-lightning[onnx]"
        )


def _program(model: Answering) -> torch.export.ExportedProgram:
    """The graph, for any number of images at once."""
    size = model.model.image_size
    # Two images: one alone would be taken for the only number there is.
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    if model.model.normalize.mode == "per_image":
        model = copy.deepcopy(model)
        model.model.normalize = PerImage()  # type: ignore[assignment]
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        # They name files and folders of this machine.
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program


def _tidy(proto: Any) -> None:
    """Leave out what the exporter notes of its own, with folders of this machine, and name N."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


# A format and the ending of its files.
FORMATS = {"onnx": EXPORTED, "torch-export": ".pt2"}
MOST_APART = 1e-4  # of a probability or a logit, in float32
MOST_IMAGES = 200  # that are compared, at most
PHANTOMS = 24  # where no images are given
# Batches of other sizes than the graph was made with, one of a single image among them.
BATCHES = (1, 7, 16)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        size: bytes of the file.
        images: how many were compared.
        real: whether they were the caller's, not phantoms.
        unreadable: of the caller's, those that could not be read.
        probabilities, logits: largest difference from torch's, in float32.
        int8: what integers of 8 bits have cost, where they were asked for.
    """

    out: Path
    size: int
    images: int
    real: bool
    unreadable: int
    probabilities: float
    logits: float
    int8: Quantized | None = None


def export(
    checkpoint: Path,
    out: Path,
    *,
    format: str,
    images: Sequence[str] = (),
    int8: Path | None = None,
    progress: Display = unseen,
) -> Exported:
    """Write a checkpoint's model as one graph, and compare its answers with torch's first.

    Args:
        checkpoint: a .ckpt file.
        out: the file to write, with the format's ending.
        format: `onnx` or `torch-export`.
        images: files, folders or patterns to compare on, the first `IMAGES` of them that can be
            read; none for phantoms.
        int8: folder of a data set: write the model in integers of 8 bits, with ranges from its
            validation images, and score both on its test images.
        progress: display for the comparison.

    Raises:
        UserError: a checkpoint that cannot be read, a place that cannot be written, another
            format or ending, or packages that are not installed.
        RunFailedError: the graph answers otherwise than torch; nothing is written.
    """
    check_out(out, format=format)
    if int8 is not None and format != "onnx":
        raise UserError(f"--int8 is of --format onnx, not of {format}; leave one of them out")
    found = find_inputs(images, leave_out=out).paths if images else []
    content = read_checkpoint(checkpoint)
    # Channels last is torch's own affair, and would be a copy in the graph.
    model = Answering(restore(content, source=checkpoint, channels_last=False)).eval()
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    described = describe(content["xray"], sha256=sha256)
    made: type[OnnxGraph] | type[TorchGraph] = OnnxGraph if format == "onnx" else TorchGraph
    graph = made(model, described)
    read = _Reading(found, size=model.model.image_size)
    most = min(len(found), MOST_IMAGES) if found else PHANTOMS
    with progress("comparing with torch", most) as advance:
        apart = [0.0, 0.0]
        for batch in read.batches():
            for place, difference in enumerate(differences(model, graph, batch)):
                apart[place] = max(apart[place], difference)
            advance(len(batch))
    if not read.images:
        raise UserError(f"--images: none of {len(found):,} files could be read as an image")
    _refuse_apart(format, probabilities=apart[0], logits=apart[1], images=read.images)
    quantized = None
    if int8 is not None:
        quantized = quantize(checkpoint, graph.content, described, data=int8, progress=progress)
    written = graph.content if quantized is None else quantized.content
    _write(out, written)
    return Exported(
        *(out, len(written), read.images, bool(found), read.unreadable, apart[0], apart[1]),
        int8=quantized,
    )


def check_out(out: Path, *, format: str) -> None:
    """Refuse, before the work, what could not be written after it.

    Raises:
        UserError: another format, another ending, a folder, or a place that is not there.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format} is unknown; choose one of {', '.join(FORMATS)}")
    if out.suffix.lower() != FORMATS[format]:
        raise UserError(f"--out {out}: a file of --format {format} ends in {FORMATS[format]}")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give a file")
    if not out.parent.exists():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    check_writable(out.parent, key="--out")
    if format == "onnx":
        check_onnx()


def differences(
    model: Answering, graph: Graph, pixels: npt.NDArray[np.uint8]
) -> tuple[float, float]:
    """The largest difference of probabilities, and of logits, from torch's (infinite for NaN)."""
    both = zip(model.answers(pixels), graph.answers(pixels), strict=True)
    apart = [float(np.max(np.abs(one - other))) for one, other in both]
    probabilities, logits = (float("inf") if np.isnan(value) else value for value in apart)
    return probabilities, logits


def _refuse_apart(format: str, *, probabilities: float, logits: float, images: int) -> None:
    if max(probabilities, logits) > MOST_APART:
        raise RunFailedError(
            f"the {format} graph answers otherwise than torch: probabilities differ by up to "
            f"{probabilities:.1e} and logits by {logits:.1e} on {images} images, where "
            f"{MOST_APART:.0e} is allowed; nothing was written"
        )


class _Reading:
    """The images to compare on, prepared as for prediction."""

    def __init__(self, paths: Sequence[str], *, size: int) -> None:
        self.images = self.unreadable = 0
        self._paths = paths
        self._prepare = Preprocessing(size)

    def batches(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Up to `IMAGES` of them, uint8 (B, 1, S, S), in batches of several sizes."""
        images = islice(self._files() if self._paths else self._phantoms(), MOST_IMAGES)
        sizes = iter(BATCHES)
        while batch := list(islice(images, next(sizes, BATCHES[-1]))):
            self.images += len(batch)
            yield np.stack(batch)[:, None]

    def _files(self) -> Iterator[npt.NDArray[np.uint8]]:
        for path in self._paths:
            try:
                yield self._prepare.file(path).pixels
            except UnreadableImageError:
                self.unreadable += 1

    def _phantoms(self) -> Iterator[npt.NDArray[np.uint8]]:
        for patient in range(PHANTOMS):
            pixels, _ = draw_phantom(patient=patient, size=128)
            yield self._prepare.array(pixels).pixels


def _write(out: Path, content: bytes) -> None:
    with told_if_unwritable(f"--out {out} cannot be written", advice="give another file"):
        write_atomically(out, content)
