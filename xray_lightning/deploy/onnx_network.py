"""Exported models that answer through onnxruntime: nothing here imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_lightning.data.cache_folder import threads
from xray_lightning.deploy.exported import IMAGES, LOGITS, PROBABILITIES, from_texts
from xray_lightning.errors import RunFailedError, UserError, one_line
from xray_lightning.evaluation.alike import check_alike
from xray_lightning.evaluation.calibration import sigmoid

Array = npt.NDArray[np.float32]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = ("auto", *PROVIDERS)
ERRORS_ALONE = 3  # onnxruntime's severity; its warnings would stand among a command's lines
LONGEST = 200  # characters of onnxruntime's own words


@dataclass(frozen=True)
class OnnxMember:
    """One exported model.

    Attributes:
        sha256: of the checkpoint that it was exported from.
        described: see `exported.describe`.
        session: onnxruntime's.
    """

    path: Path
    sha256: str
    described: dict[str, Any]
    session: Any

    @classmethod
    def read(cls, path: Path, *, device: str = "cpu") -> "OnnxMember":
        """Read a file that `xray export --format onnx` has written.

        The file must hold everything itself: weights in files beside it are not read.

        Raises:
            UserError: it is missing, damaged or another's, or onnxruntime is.
        """
        onnxruntime()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; give the path of an .onnx file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls.of(content, path=path, device=device)

    @classmethod
    def of(cls, content: bytes, *, path: Path, device: str = "cpu") -> "OnnxMember":
        """Take what such a file holds; `path` is for messages.

        Raises:
            UserError: as `read`.
        """
        runtime = onnxruntime()
        provider = _provider(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = ERRORS_ALONE
        options.intra_op_num_threads = threads()
        try:
            session = runtime.InferenceSession(content, options, providers=[provider])
        # onnxruntime's errors have no base of their own.
        except Exception as error:
            raise UserError(
                f"{path} is no ONNX model that onnxruntime can run ({one_line(error)[:LONGEST]}); "
                "export it again"
            ) from error
        try:
            described = from_texts(session.get_modelmeta().custom_metadata_map)
            _check_graph(session, size=described["image_size"])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cls(path, described["checkpoint_sha256"], described, session)

    def answers(self, pixels: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
        """Probabilities and logits (B, F) of images (B, 1, S, S).

        Raises:
            RunFailedError: an answer that is no number, or none.
        """
        try:
            found = self.session.run([PROBABILITIES, LOGITS], {IMAGES: pixels})
        except Exception as error:  # as above
            text = one_line(error)[:LONGEST]
            raise RunFailedError(f"{self.path} cannot be run: {text}") from error
        probabilities, logits = found
        expected = (len(pixels), len(self.described["findings"]))
        if probabilities.shape != expected or logits.shape != expected:
            raise RunFailedError(
                f"{self.path} answers with {probabilities.shape} numbers in place of {expected}"
            )
        if invalid := int((~np.isfinite(logits)).any(axis=1).sum()):
            raise RunFailedError(
                f"{self.path} gives no number for {invalid} of {len(pixels)} images (NaN or "
                "infinite logits)"
            )
        return probabilities, logits


@dataclass(frozen=True)
class OnnxNetwork:
    """One exported model, or several averaged.

    Attributes:
        average: `probabilities` or `logits`.
    """

    members: Sequence[OnnxMember]
    average: str = "probabilities"

    @classmethod
    def load(
        cls, paths: Sequence[Path], *, device: str, precision: str, average: str
    ) -> "OnnxNetwork":
        """Read exported models; the arguments are those of `load_model`."""
        if precision != "32-true":
            raise UserError(
                f"precision={precision} is of checkpoints: an .onnx file computes as it was "
                "exported; leave it out"
            )
        members = [OnnxMember.read(path, device=device) for path in paths]
        check_alike(members)
        return cls(members, average)

    def prepare(self) -> None:
        """Nothing: onnxruntime has its own threads."""

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> Array:
        """Of images (B, 1, S, S): float32 (B, F), averaged as `evaluation.ensemble.average` does.

        Raises:
            RunFailedError: an answer that is no number.
        """
        each = [member.answers(pixels) for member in self.members]
        if len(each) == 1:
            return each[0][0]
        if self.average == "logits":
            logits = np.stack([one[1] for one in each])
            return sigmoid(logits.mean(axis=0, dtype=np.float64)).astype(np.float32)
        mean: Array = (
            np.stack([one[0] for one in each]).mean(axis=0, dtype=np.float64).astype(np.float32)
        )
        return mean


def onnxruntime() -> Any:
    """The package, or one line on how to get it."""
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise UserError(
            "an .onnx file needs onnxruntime, which is not installed; install xray-lightning[onnx]"
        ) from error


def _provider(runtime: Any, device: str) -> str:
    if device not in DEVICES:
        raise UserError(f"accelerator={device} is unknown; choose one of {', '.join(DEVICES)}")
    there = runtime.get_available_providers()
    if device == "cuda" and PROVIDERS["cuda"] not in there:
        raise UserError(
            "accelerator=cuda, but this onnxruntime runs on CPUs alone; install onnxruntime-gpu, "
            "or use accelerator=cpu"
        )
    wanted = ("cuda", "cpu") if device == "auto" else (device,)
    return next(PROVIDERS[name] for name in wanted if PROVIDERS[name] in there)


def _check_graph(session: Any, *, size: int) -> None:
    inputs, outputs = session.get_inputs(), {one.name for one in session.get_outputs()}
    images = inputs[0] if len(inputs) == 1 else None
    if (
        images is None
        or (images.name, images.type, images.shape[1:])
        != (IMAGES, "tensor(uint8)", [1, size, size])
        or not {PROBABILITIES, LOGITS} <= outputs
    ):
        raise UserError("its inputs and outputs are not those of xray export; export it again")
