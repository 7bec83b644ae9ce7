"""Model (`load_model`): one checkpoint, or several averaged, that predicts files and arrays."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from xray_lightning.deploy.preprocess import Decoded, Preprocessing, decoded_batches
from xray_lightning.deploy.unusual_inputs import Picture
from xray_lightning.errors import UserError, check_whole
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_in_checkpoint import AVERAGES, Described, fits, fitted_of
from xray_lightning.evaluation.operating_points import OperatingPoints


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image. Arrays follow the order of the model's `findings`.

    Attributes:
        image: its path, or `array 0` and so on.
        reason: why the image cannot be read, with all fields below empty; None if it can be read.
        flags: rules of `deploy.unusual_inputs` that flag the image.
        probabilities: raw, as the model gives them, float32 (F,).
        calibrated: calibrated probabilities, float64 (F,); None if the model has no calibration.
        decisions: whether a finding's raw probability reaches its operating point, bool (F,); None
            if the model has no operating points.
    """

    image: str
    reason: str | None = None
    flags: tuple[str, ...] = ()
    probabilities: npt.NDArray[np.float32] | None = None
    calibrated: npt.NDArray[np.float64] | None = None
    decisions: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for N images and F findings.

    Attributes:
        findings: the F findings, in the order of the columns of all arrays.
        images, flags: of each image, as in `Prediction`.
        probabilities, calibrated, decisions: as in `Prediction`, (N, F).
        operating_points: for each finding, the raw probability from which it is called present;
            None if the model has no operating points.
    """

    findings: tuple[str, ...]
    images: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    probabilities: npt.NDArray[np.float32]
    calibrated: npt.NDArray[np.float64] | None
    operating_points: dict[str, float] | None
    decisions: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.images)


Image: TypeAlias = str | os.PathLike[str] | npt.NDArray[np.uint8]

BATCH = 32  # images a batch: more is no faster on a CPU
EXPORTED = ".onnx"  # any other file is taken for a checkpoint


class Network(Protocol):
    """Interface of a backend: computes the probabilities of one model, or of several averaged."""

    @property
    def members(self) -> Sequence[Described]: ...

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities, float32 (B, F), of images (B, 1, S, S)."""

    def prepare(self) -> None:
        """Set process-wide options that speed up inference, if the backend has any."""


class Model:
    """One trained model, or several averaged, ready to predict; `load_model` makes it.

    Attributes:
        findings: the model's findings, in the order of every prediction's columns.
        image_size: side of the images inside the model, in pixels.
        operating_points: for each finding, the raw probability from which it is called present.
            None if the checkpoint has none or has them for another `tta`, or several are averaged.
        why_undecided: why there are no operating points, in one line; None if there are.
        network: the backend that computes the probabilities.
    """

    def __init__(self, network: Network, *, batch_size: int = BATCH, strict: bool = False) -> None:
        members = network.members
        first = members[0]
        self.network, self._batch_size = network, batch_size
        self.findings: tuple[str, ...] = tuple(map(str, first.described["findings"]))
        self.image_size: int = first.described["image_size"]
        self._read = Preprocessing(self.image_size, strict=strict)
        self._calibration: Calibration | None = None
        self.operating_points: dict[str, float] | None = None
        self.why_undecided: str | None = (
            f"{len(members)} checkpoints averaged have no operating points or calibration of their "
            "own: no decisions, and probabilities that are not calibrated"
        )
        if len(members) == 1:
            points, self._calibration = fitted_in(first.described, path=first.path)
            self.operating_points = None if points is None else dict(points.cuts)
            self.why_undecided = None
            if not fits(first):
                self.operating_points = self._calibration = None
                self.why_undecided = (
                    f"{first.path} has operating points and calibration for another --tta: no "
                    "decisions, and probabilities that are not calibrated"
                )
            elif points is None:
                self.why_undecided = (
                    f"{first.path} has no operating points, which are fitted when its run is "
                    "tested: no decisions"
                )

    @property
    def calibrated(self) -> bool:
        """Whether the model has a calibration."""
        return self._calibration is not None

    def predict(self, images: Image | Iterable[Image]) -> Predictions:
        """Predict images.

        Args:
            images: a path (PNG, JPEG or DICOM) or a gray uint8 array (H, W), bright where X-rays
                were stopped; or an iterable of them, such as an array (N, H, W).

        Raises:
            UnreadableImageError: a file that cannot be read; `predict_each` continues after it.
            UserError: an array of another shape or type, or no image at all.
        """
        alone = isinstance(images, str | os.PathLike) or getattr(images, "ndim", 0) == 2
        shape: tuple[int, ...] = getattr(images, "shape", ())
        if len(shape) == 3 and shape[2] in (3, 4):  # else each row would pass for an image
            raise UserError(
                f"an array of shape {shape} is an image in colour; give gray ones, uint8 (H, W)"
            )
        several: Iterable[Image] = [images] if alone else images  # type: ignore[list-item,assignment]
        each: list[Any] = []  # predictions of readable images only
        for batch in self.decoded(several):
            if unread := next((one.error for one in batch if one.error is not None), None):
                raise unread
            each += self.answer(batch)
        if not each:
            raise UserError("no image to predict")
        decided = self.operating_points is not None
        return Predictions(
            findings=self.findings,
            images=tuple(one.image for one in each),
            flags=tuple(one.flags for one in each),
            probabilities=np.stack([one.probabilities for one in each]),
            calibrated=np.stack([one.calibrated for one in each]) if self.calibrated else None,
            operating_points=self.operating_points,
            decisions=np.stack([one.decisions for one in each]) if decided else None,
        )

    def predict_each(self, images: Iterable[Image]) -> Iterator[Prediction]:
        """Predict any number of images, in order, in memory that does not grow with their number.

        Files are read ahead while the model works. An unreadable file's prediction has a `reason`.

        Raises:
            UserError: an array of another shape or type.
            RunFailedError: the model gives NaN or infinite logits.
        """
        for batch in self.decoded(images):
            yield from self.answer(batch)

    def decoded(self, images: Iterable[Image]) -> Iterator[list[Decoded[tuple[str, Image]]]]:
        """Decode and resize images for the model, a batch at a time, each with its name.

        Raises:
            UserError: an array of another shape or type.
        """
        return decoded_batches(_named(images), self._picture, size=self._batch_size)

    def _picture(self, source: tuple[str, Image]) -> Picture:
        _, image = source
        if isinstance(image, str | os.PathLike):
            return self._read.file(os.fspath(image))
        return self._read.array(image)

    def answer(self, batch: Sequence[Decoded[tuple[str, Image]]]) -> Iterator[Prediction]:
        """Predict each image of a batch from `decoded`; unreadable ones get a `reason`.

        Raises:
            RunFailedError: the model gives NaN or infinite logits.
        """
        pixels = [one.picture.pixels for one in batch if one.picture is not None]
        numbers = iter(self._numbers(np.stack(pixels)) if pixels else ())
        for one in batch:
            name, _ = one.source
            if one.picture is None:  # the cause without the file's name, which `image` holds
                reason = str(one.error).removeprefix(f"{Path(name)}: ")
                yield Prediction(name, reason=reason)
            else:
                yield Prediction(name, None, one.flags, *next(numbers))

    def _numbers(self, pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[Any, Any, Any]]:
        """Probabilities, calibrated ones or None, decisions or None, of each image of (N, S, S)."""
        probabilities = self.network.probabilities(pixels[:, None])
        raw = probabilities.astype(np.float64)
        calibrated: Any = [None] * len(raw)
        decisions: Any = [None] * len(raw)
        if self._calibration is not None:
            calibrated = self._calibration.apply(raw)
        if self.operating_points is not None:
            decisions = raw >= [self.operating_points[finding] for finding in self.findings]
        return zip(probabilities, calibrated, decisions, strict=True)


def load_model(
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    device: str = "auto",
    precision: str = "32-true",
    average: str = "probabilities",
    tta: str | None = None,
    batch_size: int = BATCH,
    strict: bool = False,
) -> Model:
    """Load a model from its file alone; nothing in the file is executed.

        model = load_model("runs/first/checkpoints/best.ckpt")
        found = model.predict(["a.png", "b.jpg"])
        found.probabilities[0, found.findings.index("Effusion")]

    Args:
        checkpoint: a .ckpt or .safetensors file, or an .onnx file from `xray export`, which needs
            onnxruntime and no torch; or several of one kind that are averaged.
        device: `auto`, `cpu` or `cuda`.
        precision: `32-true`, `bf16-mixed` or `16-mixed` (on a CPU, as bf16-mixed). An .onnx file
            computes as it was exported.
        average: what several checkpoints average: `probabilities` or `logits`.
        tta: `flip` averages the logits of each image and its mirror image, `none` does not; None
            for what the operating points were fitted to.
        batch_size: images at once.
        strict: whether to refuse, instead of flag, a DICOM file whose header names anything but a
            frontal chest radiograph.

    Raises:
        UserError: a file that cannot be read, several that were not trained alike or are of both
            kinds, or a device that is not there.
    """
    check_whole("batch_size", batch_size, least=1)
    if average not in AVERAGES:
        raise UserError(f"average={average} is unknown; choose one of {', '.join(AVERAGES)}")
    if isinstance(checkpoint, str | os.PathLike):
        checkpoint = [checkpoint]
    paths = [Path(path) for path in checkpoint]
    if not paths:
        raise UserError("no checkpoint; give the path of a .ckpt, .safetensors or .onnx file")
    options: Any = {"device": device, "precision": precision, "average": average, "tta": tta}
    network: Network
    if all(map(is_exported, paths)):
        from xray_lightning.deploy.onnx_backend import OnnxNetwork

        network = OnnxNetwork.load(paths, **options)
    elif any(map(is_exported, paths)):
        raise UserError(
            "checkpoints and exported models together cannot be averaged; give .ckpt files alone, "
            "or .onnx files alone"
        )
    else:
        from xray_lightning.deploy.torch_backend import TorchNetwork

        network = TorchNetwork.load(paths, **options)
    return Model(network, batch_size=batch_size, strict=strict)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a model's file is an exported one, by its name."""
    return os.fspath(path).lower().endswith(EXPORTED)


def fitted_in(
    described: Mapping[str, Any], *, path: Path
) -> tuple[OperatingPoints | None, Calibration | None]:
    """Operating points and calibration, as `fitted_of` reads them; errors name the model's file."""
    try:
        return fitted_of(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _named(images: Iterable[Image]) -> Iterator[tuple[str, Image]]:
    for place, image in enumerate(images):
        is_path = isinstance(image, str | os.PathLike)
        yield (os.fspath(image) if is_path else f"array {place}"), image  # type: ignore[arg-type]
