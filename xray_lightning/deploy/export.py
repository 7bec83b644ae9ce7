"""`xray export`: a checkpoint as a file for other programs, refused where it answers otherwise."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xray_lightning.atomic import check_writable, told_if_unwritable, write_atomically
from xray_lightning.data.images import UnreadableImageError
from xray_lightning.data.phantom import draw_phantom
from xray_lightning.deploy.export_graph import Answering, Graph, OnnxGraph, TorchGraph, check_onnx
from xray_lightning.deploy.exported import describe
from xray_lightning.deploy.inputs import find_inputs
from xray_lightning.deploy.int8 import Quantized, quantize
from xray_lightning.deploy.model import EXPORTED
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.restore import restore
from xray_lightning.progress import Display, unseen

# A format and the ending of its files.
FORMATS = {"onnx": EXPORTED, "torch-export": ".pt2"}
MOST_APART = 1e-4  # of a probability or a logit, in float32
IMAGES = 200  # that are compared, at most
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
    most = min(len(found), IMAGES) if found else PHANTOMS
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
        images = islice(self._files() if self._paths else self._phantoms(), IMAGES)
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
