"""Export of a checkpoint as ONNX or torch.export (`xray export`), refused if outputs differ."""

import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from xray_lightning.data.decode_resize import UnreadableImageError
from xray_lightning.data.sources.phantom.render import draw_phantom
from xray_lightning.data.transforms import EPSILON
from xray_lightning.deploy.int8 import quantize
from xray_lightning.deploy.model import EXPORTED
from xray_lightning.deploy.onnx_backend import (
    IMAGES,
    LOGITS,
    PROBABILITIES,
    add_metadata,
    describe,
    onnxruntime,
    quiet,
)
from xray_lightning.deploy.predict import find_inputs
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.files import check_file, told_if_unwritable, write_atomically
from xray_lightning.models.checkpoint import (
    SAFETENSORS,
    RestoredModel,
    as_safetensors,
    read_checkpoint,
    restore,
)
from xray_lightning.progress import Display, unseen

DESCRIPTION = "xray.json"  # in a torch-export file: holds what is metadata in an ONNX file
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Answers = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Graph:
    """An exported model: the bytes of its file, and a function that runs the model from them."""

    content: bytes
    answers: Callable[[npt.NDArray[np.uint8]], Answers]


class Answering(nn.Module):
    """Probabilities and logits (B, findings) of uint8 images (B, 1, S, S)."""

    def __init__(self, model: RestoredModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits.sigmoid(), logits


def _torch_answers(module: nn.Module, pixels: npt.NDArray[np.uint8]) -> Answers:
    with torch.inference_mode():
        probabilities, logits = module(torch.from_numpy(pixels))
    return probabilities.numpy(), logits.numpy()


class PerImage(nn.Module):
    """`Normalize("per_image")`, with means taken over each row and then over the rows.

    onnxruntime sums pixels sequentially, which loses two digits over a whole image.
    """

    def forward(self, images: Tensor) -> Tensor:
        pixels = images / 255  # (B, 1, S, S)
        centred = pixels - _mean(pixels)
        return centred / (_mean(centred.square()).sqrt() + EPSILON)


def _mean(pixels: Tensor) -> Tensor:
    return pixels.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def torch_graph(model: Answering, described: Mapping[str, Any]) -> Graph:
    """The model as torch.export writes it."""
    stream = io.BytesIO()
    text = json.dumps(described, allow_nan=False)
    torch.export.save(_program(model), stream, extra_files={DESCRIPTION: text})
    content = stream.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()
    return Graph(content, partial(_torch_answers, module))


def onnx_graph(model: Answering, described: Mapping[str, Any]) -> Graph:
    """The model as an ONNX file, in one piece."""
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
    add_metadata(proto, described)
    content = proto.SerializeToString()
    session = onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])
    return Graph(content, lambda pixels: session.run([PROBABILITIES, LOGITS], {IMAGES: pixels}))


def check_onnx() -> None:
    """Refuse an export to ONNX if packages that it needs are not installed.

    Raises:
        UserError: naming the missing packages.
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
    """The exported program, for any number of images at once."""
    size = model.model.image_size
    # Two images: torch.export would take a batch of one for a constant.
    example = torch.zeros((2, 1, size, size), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    if model.model.normalize.mode == "per_image":
        model = copy.deepcopy(model)
        model.model.normalize = PerImage()  # type: ignore[assignment]
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        # These entries name files and folders of this machine.
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program


def _tidy(proto: Any) -> None:
    """Remove the exporter's metadata, which names local folders, and name the batch axis N."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


# A format and the ending of its files.
FORMATS = {"onnx": EXPORTED, "torch-export": ".pt2", "safetensors": SAFETENSORS}
MOST_APART = 1e-4  # largest difference allowed in a probability or a logit, in float32
MOST_IMAGES = 200  # that are compared, at most
PHANTOMS = 24  # where no images are given
# Batches of other sizes than the graph was made with, one of a single image among them.
BATCHES = (1, 7, 16)


@dataclass(frozen=True)
class Exported:
    """What was written, and what it was compared on."""

    size: int  # bytes
    images: int
    probabilities: float  # the largest difference from torch's, in float32
    logits: float
    told: list[str]  # lines to print: the comparison, the cost of int8, the file written


def export(
    checkpoint: Path,
    out: Path,
    *,
    format: str,
    images: Sequence[str] = (),
    int8: Path | None = None,
    progress: Display = unseen,
) -> Exported:
    """Write a checkpoint's model as one graph, after comparing its outputs with torch's.

    Args:
        out: the file to write, with the format's ending.
        format: `onnx`, `torch-export`, or `safetensors` for the weights alone, without a graph.
        images: files, folders or patterns to compare on, the first `MOST_IMAGES` of them that can
            be read; none for phantoms.
        int8: folder of a data set: quantise the model to int8, with ranges from its validation
            images, and score float32 and int8 on its test images.

    Raises:
        UserError: a checkpoint that cannot be read, a place that cannot be written, another
            format or ending, or packages that are not installed.
        RunFailedError: the graph's outputs differ from torch's; nothing is written.
    """
    check_out(out, format=format)
    if int8 is not None and format != "onnx":
        raise UserError(f"--int8 is of --format onnx, not of {format}; leave one of them out")
    if images and format == "safetensors":
        raise UserError("--images: --format safetensors compares no graph's outputs; leave it out")
    found = find_inputs(images, leave_out=out).paths if images else []
    kept = read_checkpoint(checkpoint)
    if format == "safetensors":
        restore(kept, source=checkpoint)  # refuses weights that do not fit
        content = as_safetensors(kept)
        return Exported(len(content), 0, 0.0, 0.0, [_write(out, content)])
    # Channels-last is for torch only; in the graph it would be an additional copy.
    model = Answering(restore(kept, source=checkpoint, channels_last=False)).eval()
    with checkpoint.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    described = describe(kept["xray"], sha256=sha256)
    graph = (onnx_graph if format == "onnx" else torch_graph)(model, described)
    compared, unreadable, (probabilities, logits) = _compared(model, graph, found, progress)
    if not compared:
        raise UserError(f"--images: none of {len(found):,} files could be read as an image")
    if max(probabilities, logits) > MOST_APART:
        raise RunFailedError(
            f"the {format} graph answers otherwise than torch: probabilities differ by up to "
            f"{probabilities:.1e} and logits by {logits:.1e} on {compared} images, where "
            f"{MOST_APART:.0e} is allowed; nothing was written"
        )
    what = "images" if found else "phantoms (give --images to compare on real ones)"
    told = [
        f"Compared with torch on {compared} {what}: probabilities differ by at most "
        f"{probabilities:.1e}, logits by {logits:.1e}"
    ]
    if unreadable:
        told.append(f"Files that are no readable images, and left out: {unreadable:,}")
    content = graph.content
    if int8 is not None:
        content, cost = quantize(checkpoint, content, described, data=int8, progress=progress)
        told += cost
    told.append(_write(out, content))
    return Exported(len(content), compared, probabilities, logits, told)


def _write(out: Path, content: bytes) -> str:
    """Write the file; returns the line that says so."""
    with told_if_unwritable(f"--out {out} cannot be written", advice="give another file"):
        write_atomically(out, content)
    return f"Written: {out}, {len(content) / 1e6:.1f} MB"


def check_out(out: Path, *, format: str) -> None:
    """Refuse, before the export, a file that could not be written after it.

    Raises:
        UserError: another format, another ending, a folder, or a place that is not there.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format} is unknown; choose one of {', '.join(FORMATS)}")
    if out.suffix.lower() != FORMATS[format]:
        raise UserError(f"--out {out}: a file of --format {format} ends in {FORMATS[format]}")
    check_file(out, key="--out")
    if format == "onnx":
        check_onnx()


def differences(
    model: Answering, graph: Graph, pixels: npt.NDArray[np.uint8]
) -> tuple[float, float]:
    """The largest difference of probabilities, and of logits, from torch's (infinite for NaN)."""
    both = zip(_torch_answers(model, pixels), graph.answers(pixels), strict=True)
    apart = [float(np.max(np.abs(one - other))) for one, other in both]
    probabilities, logits = (float("inf") if np.isnan(value) else value for value in apart)
    return probabilities, logits


def _compared(
    model: Answering, graph: Graph, paths: Sequence[str], progress: Display
) -> tuple[int, int, tuple[float, float]]:
    """How many images were compared, how many cannot be read, and the largest differences."""
    unreadable: list[str] = []
    pixels = islice(_pixels(paths, model.model.image_size, unreadable), MOST_IMAGES)
    sizes = chain(BATCHES, repeat(BATCHES[-1]))
    images, apart = 0, (0.0, 0.0)
    most = min(len(paths), MOST_IMAGES) if paths else PHANTOMS
    with progress("comparing with torch", most) as advance:
        while batch := list(islice(pixels, next(sizes))):
            of_batch = differences(model, graph, np.stack(batch)[:, None])
            apart = max(apart[0], of_batch[0]), max(apart[1], of_batch[1])
            images += len(batch)
            advance(len(batch))
    return images, len(unreadable), apart


def _pixels(
    paths: Sequence[str], size: int, unreadable: list[str]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Images to compare on, uint8 (size, size): of files, or phantoms if no paths are given.

    Args:
        unreadable: a list to which the paths that cannot be read are added.
    """
    prepare = Preprocessing(size)
    for path in paths:
        try:
            yield prepare.file(path).pixels
        except UnreadableImageError:
            unreadable.append(path)
    for patient in range(0 if paths else PHANTOMS):
        pixels, _ = draw_phantom(patient=patient, size=128)
        yield prepare.array(pixels).pixels
