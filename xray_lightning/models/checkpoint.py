"""Checkpoint files: read without running code, restored as a model, written atomically."""

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import RunFailedError, UserError, one_line, printable
from xray_lightning.files import replacing
from xray_lightning.findings import check_findings, differing

CHECKPOINT_SCHEMA = 1  # of the `xray` entry; the only version so far
BEST = "best.ckpt"
LAST = "last.ckpt"
SAFETENSORS = ".safetensors"
# Entries of a checkpoint that a safetensors header holds beside the weights, each as JSON.
DESCRIBED = ("xray", "epoch", "global_step", "pytorch-lightning_version")
CHUNK = 1 << 20  # bytes


def read_checkpoint(path: Path, *, findings: Sequence[str] | None = None) -> dict[str, Any]:
    """A checkpoint of this project, its tensors on the CPU; nothing in it is executed.

    Args:
        path: the file, a .ckpt or what `as_safetensors` has written.
        findings: those it must have, in this order; None for whatever it has.

    Raises:
        UserError: it is missing, damaged, holds more than plain values, or is another project's;
            or it has other findings.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; give the path of a .ckpt file in it")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file")
    if path.suffix.lower() == SAFETENSORS:
        checkpoint: Any = read_safetensors(path, where=f"checkpoint {path}")
        with _naming(path):
            check_checkpoint(checkpoint, findings=findings)
        return dict(checkpoint)
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles; the error below says it
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in as many ways as pickle and zip know.
    except Exception as error:
        lines = str(error).splitlines() or ["it holds nothing"]
        raise UserError(
            f"checkpoint {path} is damaged, or holds more than weights and plain values, and is "
            f"not loaded ({lines[0]}); use another one, such as {BEST} or {LAST} of the same run"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"checkpoint {path} holds no state")
    with _naming(path):
        check_checkpoint(checkpoint, findings=findings)
    return dict(checkpoint)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: to a temporary file, which is synced and renamed.

    Raises:
        RunFailedError: it cannot be written; the file that was there is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            torch.save(checkpoint, stream)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError
        raise RunFailedError(
            f"checkpoint {path} cannot be written ({error}); the previous one is untouched. "
            "Free some space, or choose another folder with hydra.run.dir"
        ) from error


def read_safetensors(path: Path, *, where: str) -> dict[str, Any]:
    """The tensors of a safetensors file as `state_dict`, and the `DESCRIBED` entries it has.

    Args:
        where: what the file is, for messages.

    Raises:
        UserError: the package is not installed, or the file is damaged or of another format.
    """
    safetensors = _package("safetensors", where=where)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = {key: json.loads(described[key]) for key in DESCRIBED if key in described}
    except Exception as error:  # SafetensorError is of its own kind
        raise UserError(f"{where}: not a safetensors file ({one_line(error)[:LONGEST]})") from error
    return {"state_dict": state, **said}


def as_safetensors(checkpoint: Mapping[str, Any]) -> bytes:
    """A checkpoint's weights and `DESCRIBED` entries as a safetensors file, without pickle.

    What only training needs is left out: the optimizer, the loss, the loops.

    Raises:
        UserError: the package is not installed.
    """
    safetensors = _package("safetensors.torch", where="--format safetensors")
    kept = _of_model(checkpoint["state_dict"])
    state = {key: value.contiguous().clone() for key, value in kept.items()}  # some are views
    said = {key: json.dumps(checkpoint[key]) for key in DESCRIBED if key in checkpoint}
    content: bytes = safetensors.save(state, metadata=said)
    return content


def _package(module: str, *, where: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{where} needs safetensors, not installed; install xray-lightning[safetensors]"
        ) from error


def _check_sums(path: Path) -> None:
    """Compare every record with the CRC-32 that torch.save wrote beside it; torch.load does not.

    Raises:
        zipfile.BadZipFile: a record differs, or is compressed: torch.save compresses nothing, and
            torch.load would unpack even a zip bomb.
    """
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile("a record of it is compressed")
            with archive.open(record) as stream:
                while stream.read(CHUNK):
                    pass


def check_checkpoint(
    checkpoint: Mapping[str, Any], *, findings: Sequence[str] | None = None
) -> None:
    """Refuse a checkpoint of another kind, schema, or list of findings.

    Args:
        checkpoint: its content.
        findings: those it must have, in this order; None for whatever it has.

    Raises:
        UserError: one line that shows what was expected beside what was found.
    """
    described = checkpoint.get("xray")
    if not isinstance(described, Mapping):
        raise UserError("the checkpoint was not written by xray-lightning: it has no `xray` entry")
    version = described.get("schema_version")
    if version != CHECKPOINT_SCHEMA:
        newer = isinstance(version, int) and version > CHECKPOINT_SCHEMA
        raise UserError(
            f"the checkpoint has schema_version {printable(repr(version))[:40]}, and this version "
            f"reads {CHECKPOINT_SCHEMA}; use "
            f"{'a newer xray-lightning' if newer else 'one that xray-lightning has written'}"
        )
    own = check_findings(described.get("findings"), what="the checkpoint's findings")
    if findings is not None and own != tuple(findings):
        raise UserError(f"the checkpoint's findings, {differing(own, findings)}")


# Backbone arguments that a recipe may set: none that would read or download other weights.
MODEL_KEYS = frozenset(
    {"arch", "hidden", "dropout", "library", "drop_path", "pool_stages", "image_size"}
)
# Parts of the classifier that only training needs.
OF_TRAINING = ("loss.", "augment.", "mixing.")
LONGEST = 300  # characters quoted from a library's error


class RestoredModel(nn.Module):
    """Normalisation and backbone of a checkpoint, as its classifier has them.

    Attributes:
        image_size: side of the images that it was trained on, in pixels.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        normalize: Normalize,
        image_size: int,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.normalize = backbone, normalize
        self.image_size = image_size
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self._layout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, findings) of uint8 images (B, 1, S, S)."""
        pixels = self.normalize(images).contiguous(memory_format=self._layout)
        logits: Tensor = self.backbone(pixels)
        return logits


def restore(
    checkpoint: Mapping[str, Any], *, source: Path, channels_last: bool = True
) -> RestoredModel:
    """Build the model that a checkpoint describes, and load its weights, every one.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        source: its file, for messages.
        channels_last: memory layout of convolutions, as the classifier's.

    Returns:
        The model on the CPU, in eval mode, in float32, with all parameters frozen.

    Raises:
        UserError: a recipe that is incomplete, or weights that do not fit it.
    """
    with _naming(source):
        recipe = checkpoint["xray"]
        missing = [key for key in ("model", "normalize", "image_size") if key not in recipe]
        if missing:
            raise UserError(f"the checkpoint does not say its {', '.join(missing)}")
        size = recipe["image_size"]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"the checkpoint's image_size, {size}, is no size")
        normalize = Normalize(recipe["normalize"])
        backbone = _weightless(recipe["model"], findings=len(recipe["findings"]))
        parts = nn.ModuleDict({"backbone": backbone, "normalize": normalize})
        _load(parts, checkpoint.get("state_dict"))
    model = RestoredModel(
        backbone=backbone, normalize=normalize, image_size=size, channels_last=channels_last
    )
    return model.float().eval().requires_grad_(False)


def _weightless(recipe: Any, *, findings: int) -> nn.Module:
    """The backbone on the meta device: the checkpoint's tensors will replace its own.

    A timm network may hold tensors that no checkpoint has, such as a transformer's table of
    relative positions; it is built in memory.
    """
    # Reading a checkpoint does without torchvision, which takes a second to import.
    from xray_lightning.models.backbones import build_backbone

    if not isinstance(recipe, Mapping) or not recipe.keys() <= MODEL_KEYS:
        known = ", ".join(sorted(MODEL_KEYS))
        raise UserError(f"the checkpoint's model is not described by {known}")
    try:
        if recipe.get("library", "torchvision") != "torchvision":
            with torch.random.fork_rng(devices=[]):  # keeps the caller's random state
                return build_backbone(**recipe, findings=findings)
        with torch.device("meta"):
            return build_backbone(**recipe, findings=findings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"no model can be built from {dict(recipe)}: {error}") from error


def _of_model(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without what only training needs."""
    return {key: value for key, value in state.items() if not str(key).startswith(OF_TRAINING)}


def _load(parts: nn.Module, state: Any) -> None:
    if not isinstance(state, Mapping):
        raise UserError("the checkpoint holds no weights")
    try:
        parts.load_state_dict(_of_model(state), strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:  # all that torch raises here
        text = one_line(error)
        text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
        raise UserError(f"the weights do not fit the checkpoint's model: {text}") from error
