"""A checkpoint's model as one graph, from uint8 pixels to probabilities, in a file of its own."""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from xray_lightning.data.transforms import EPSILON
from xray_lightning.deploy.exported import IMAGES, LOGITS, PROBABILITIES, to_texts
from xray_lightning.deploy.onnx_network import onnxruntime
from xray_lightning.errors import UserError
from xray_lightning.models.restore import RestoredModel

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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own log lines and warnings to itself: parity is what is judged."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
