"""ONNX backend: exported models run by onnxruntime, with their metadata; imports no torch."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_lightning.data.decode_resize import DECODER_VERSION
from xray_lightning.errors import RunFailedError, UserError, brief, one_line
from xray_lightning.evaluation.calibration import sigmoid
from xray_lightning.evaluation.fitted_in_checkpoint import check_alike, chosen_tta, tta_of
from xray_lightning.findings import check_findings
from xray_lightning.html.page import NOTICE
from xray_lightning.workers import threads

SCHEMA_VERSION = 1
IMAGES, PROBABILITIES, LOGITS = "images", "probabilities", "logits"  # names in the graph

# Keys of an ONNX file's metadata whose values are plain text; all other values are JSON.
TEXTS = ("notice", "preparation", "decoder_version", "checkpoint_sha256", "precision")


def describe(checkpoint: Mapping[str, Any], *, sha256: str) -> dict[str, Any]:
    """What an exported model needs to be used without its checkpoint.

    Args:
        checkpoint: its `xray` entry.
        sha256: of the checkpoint's file.
    """
    same = ("findings", "image_size", "normalize", "model", "split_sha256")
    fitted = ("thresholds", "operating_points", "calibration", "abstention", "recalibrated")
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": NOTICE,
        "preparation": preparation(checkpoint["image_size"])
        + (MIRRORED if tta_of(checkpoint) else ""),
        "decoder_version": DECODER_VERSION,
        **{key: checkpoint.get(key) for key in (*same, *fitted)},
        **({"tta": checkpoint["tta"]} if tta_of(checkpoint) else {}),
        "checkpoint_sha256": sha256,
        "checkpoint_schema_version": checkpoint["schema_version"],
        "precision": "float32",
    }


MIRRORED = (
    f" Average {LOGITS} over each image and its mirror image, left and right exchanged, and take "
    "their sigmoid: operating points and calibration are for that."
)


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


def add_metadata(proto: Any, described: Mapping[str, Any]) -> None:
    """Write the description into an ONNX model's metadata, whose values must be text."""
    for key, value in described.items():
        text = str(value) if key in TEXTS else json.dumps(value, allow_nan=False)
        proto.metadata_props.add(key=key, value=text)


def from_texts(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse what `add_metadata` wrote; the schema, findings and image size are checked.

    Raises:
        UserError: not written by `xray export`, of another schema, or damaged.
    """
    if "schema_version" not in texts or "checkpoint_sha256" not in texts:
        raise UserError("it was not written by xray export: it does not say its findings")
    try:
        described = {key: text if key in TEXTS else json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata are damaged ({error}); export it again") from error
    if described["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"it has schema_version {brief(described['schema_version'])}, and this version "
            f"reads {SCHEMA_VERSION}; export it again"
        )
    described["findings"] = list(check_findings(described.get("findings"), what="its findings"))
    size = described.get("image_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"its image_size, {brief(size)}, is no size; export it again")
    return described


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and warnings of exporters, whose results are compared afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


Array = npt.NDArray[np.float32]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DEVICES = ("auto", *PROVIDERS)
ERRORS_ALONE = 3  # onnxruntime's log level; its warnings would mix with a command's output
LONGEST = 200  # characters quoted of an onnxruntime message


@dataclass(frozen=True)
class OnnxMember:
    """One exported model."""

    path: Path
    sha256: str  # of the checkpoint that it was exported from
    described: dict[str, Any]  # see `describe`
    session: Any  # onnxruntime's
    tta: str | None = None  # `flip`: logits are averaged with those of the mirror image

    @classmethod
    def read(cls, path: Path, *, device: str = "cpu", tta: str | None = None) -> "OnnxMember":
        """Read a file that `xray export --format onnx` has written.

        The file must hold everything itself: weights in files beside it are not read.

        Raises:
            UserError: the file is missing, damaged or not from `xray export`, or onnxruntime is not
                installed.
        """
        onnxruntime()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; give the path of an .onnx file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls.of(content, path=path, device=device, tta=tta)

    @classmethod
    def of(
        cls, content: bytes, *, path: Path, device: str = "cpu", tta: str | None = None
    ) -> "OnnxMember":
        """Load a model from the bytes of such a file; `path` names it in messages.

        Raises:
            UserError: as `read`.
        """
        runtime = onnxruntime()
        provider = _provider(runtime, device)
        options = runtime.SessionOptions()
        options.log_severity_level = ERRORS_ALONE
        options.intra_op_num_threads = threads()
        try:
            session = runtime.InferenceSession(
                content,
                options,
                providers=[provider],
                enable_fallback=int(provider != PROVIDERS["cpu"]),  # a fallback prints to stdout
            )
            texts = session.get_modelmeta().custom_metadata_map
        # onnxruntime's errors have no common base class; the metadata may be invalid UTF-8.
        except Exception as error:
            raise UserError(
                f"{path} is no ONNX model that onnxruntime can run ({one_line(error)[:LONGEST]}); "
                "export it again"
            ) from error
        try:
            described = from_texts(texts)
            _check_graph(session, size=described["image_size"])
            chosen = chosen_tta(tta, described)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cls(path, described["checkpoint_sha256"], described, session, chosen)

    def answers(self, pixels: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
        """Probabilities and logits (B, F) of images (B, 1, S, S).

        Raises:
            RunFailedError: the model cannot be run, or gives NaN or infinite logits.
        """
        probabilities, logits = self._answers(pixels)
        if self.tta is None:
            return probabilities, logits
        _, mirrored = self._answers(np.ascontiguousarray(pixels[..., ::-1]))
        logits = (logits + mirrored) / np.float32(2)
        return sigmoid(logits.astype(np.float64)).astype(np.float32), logits

    def _answers(self, pixels: npt.NDArray[np.uint8]) -> tuple[Array, Array]:
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
    """One exported model, or several averaged."""

    members: Sequence[OnnxMember]
    average: str = "probabilities"  # or logits

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        *,
        device: str,
        precision: str,
        average: str,
        tta: str | None = None,
    ) -> "OnnxNetwork":
        """Read exported models; the arguments are those of `load_model`."""
        if precision != "32-true":
            raise UserError(
                f"precision={precision} is of checkpoints: an .onnx file computes as it was "
                "exported; leave it out"
            )
        members = [OnnxMember.read(path, device=device, tta=tta) for path in paths]
        check_alike(members)
        return cls(members, average)

    def prepare(self) -> None:
        """Do nothing: each onnxruntime session sets its own threads."""

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> Array:
        """Probabilities, float32 (B, F), of images (B, 1, S, S); see `evaluation.ensemble.average`.

        Raises:
            RunFailedError: the model gives NaN or infinite logits.
        """
        each = [member.answers(pixels) for member in self.members]
        if len(each) == 1:
            return each[0][0]
        if self.average == "logits":
            logits = np.stack([one[1] for one in each])
            return sigmoid(logits.mean(axis=0, dtype=np.float64)).astype(np.float32)
        probabilities = np.stack([one[0] for one in each])
        mean: Array = probabilities.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean


def onnxruntime() -> Any:
    """Import onnxruntime; a UserError says how to install it."""
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
    cuda = PROVIDERS["cuda"]
    if device == "cuda" and cuda not in there:
        raise UserError(
            "accelerator=cuda, but this onnxruntime runs on CPUs alone; install onnxruntime-gpu, "
            "or use accelerator=cpu"
        )
    return cuda if device != "cpu" and cuda in there else PROVIDERS["cpu"]


def _check_graph(session: Any, *, size: int) -> None:
    try:
        inputs = [(one.name, one.type, one.shape[1:]) for one in session.get_inputs()]
        outputs = {one.name for one in session.get_outputs()}
    except UnicodeDecodeError:  # a name is not UTF-8
        inputs, outputs = [], set()
    expected = [(IMAGES, "tensor(uint8)", [1, size, size])]
    if inputs != expected or not {PROBABILITIES, LOGITS} <= outputs:
        raise UserError("its inputs and outputs are not those of xray export; export it again")
