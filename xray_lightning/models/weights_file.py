"""A file of weights: a state dict, a whole module or safetensors, read without running code."""

import importlib.util
import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from xray_lightning.errors import UserError, printable
from xray_lightning.models.checkpoint import SAFETENSORS, read_safetensors

PACKAGE = "package://"  # package://NAME/FILE: a file that an installed Python package ships
SIDECAR_KEYS = ("weights_seen", "findings", "input")

# Keys under which training loops save the weights; averaged weights first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")

TORCHXRAYVISION = "torchxrayvision"
# torchxrayvision.datasets.default_pathologies, which its models' 18 outputs follow.
PATHOLOGIES = (
    *("Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema"),
    *("Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass"),
    *("Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum"),
)
# Packages of the classes in a pickled module; each instance is read as an inert `_Part`.
_MODULE_CLASSES = ("torchxrayvision.", "torchvision.", "timm.", "torch.nn.")


@dataclass(frozen=True)
class Weights:
    """The content of a file of weights.

    Attributes:
        source: the file's name, for messages.
        findings: names of the outputs, in their order; None if unknown.
        seen: data that the weights were trained on, as far as it is known.
        trained_on, split_sha256: data set and split recorded in a checkpoint of this project.
        input: `torchxrayvision` for pixels in its range, or None for normalised ones.
    """

    source: str
    state: dict[str, Tensor]
    findings: tuple[str, ...] | None = None
    seen: tuple[str, ...] = ()
    trained_on: str | None = None
    split_sha256: str | None = None
    input: str | None = None


def read_weights(given: str | Path, *, key: str = "model.weights_path") -> Weights:
    """Read a file of weights; nothing in it is executed.

    Args:
        given: a path, or `package://NAME/FILE` for one that a Python package ships.

    Raises:
        UserError: there is no such file, or it holds anything other than weights.
    """
    path = _located(str(given), key)
    where = f"{key}={given}"
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    content = (
        read_safetensors(path, where=where)
        if path.suffix.lower() == SAFETENSORS
        else _pickled(path, where)
    )
    described = content.get("xray") if isinstance(content, Mapping) else None
    described = described if isinstance(described, Mapping) else {}
    pathologies = None
    if isinstance(content, _Part):
        pathologies = vars(content).get("pathologies") or vars(content).get("targets")
        state = dict(_tensors_of(content))
    else:
        state = _state_in(content, where)
    beside = _sidecar(path)
    seen = beside.get("weights_seen") or described.get("weights_seen") or ()
    findings = beside.get("findings") or described.get("findings") or pathologies
    input = beside.get("input")
    if input is None and _of_torchxrayvision(state):
        input, findings = TORCHXRAYVISION, findings or PATHOLOGIES
    return Weights(
        source=where,
        state=state,
        findings=None if findings is None else tuple(map(str, findings)),
        seen=tuple(map(str, seen)),
        trained_on=described.get("trained_on"),
        split_sha256=described.get("split_sha256"),
        input=input,
    )


def _located(given: str, key: str) -> Path:
    if not given.startswith(PACKAGE):
        return Path(given)
    name, _, file = given.removeprefix(PACKAGE).partition("/")
    try:
        # Runs nothing of the package; of a dotted name it would import the parent.
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{key}={given}: the Python package {name} is not installed; uv pip install {name}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / file


class _Part:
    """Stands for an instance of any class in a pickled module: its attributes without its code."""

    def __init__(self, *_: object) -> None:
        pass


def _pickled(path: Path, where: str) -> Any:
    """Load a file of torch.save, with a `_Part` in the place of each module in it."""
    known: list[str] = []
    try:
        with path.open("rb") as stream:
            known = [name for name in _classes(stream) if name.startswith(_MODULE_CLASSES)]
        with torch.serialization.safe_globals([(_Part, name) for name in known]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file fails in as many ways as pickle and zip know.
    except Exception as error:
        told = f"{where}: not a file of plain weights ({first_line(error)}); "
        if known:
            told += "it holds a whole module: where you trust it, load it with torch.load(FILE, "
            told += "weights_only=False), and "
        raise UserError(f"{told}save one with torch.save(model.state_dict(), FILE)") from error


def _classes(stream: BinaryIO) -> set[str]:
    """The names of classes and functions in a file's pickles, which are not executed."""
    names: set[str] = set()
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            texts = [archive.open(pickle)]
            return {name for text in texts for name in _globals(text)}
    stream.seek(0)
    for _ in range(4):  # before PyTorch 1.6: a magic number, a version, the system, the content
        names |= set(_globals(stream))
    return names


def _globals(stream: Any) -> Iterator[str]:
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            yield str(argument).replace(" ", ".")


def _tensors_of(part: _Part, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """A pickled module's state dict."""
    for kind in ("_parameters", "_buffers"):
        for name, value in dict(vars(part).get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
    for name, child in dict(vars(part).get("_modules") or {}).items():
        if isinstance(child, _Part):
            yield from _tensors_of(child, f"{prefix}{name}.")


def _state_in(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict in what was saved, bare or under the name that a training loop gives it."""
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping | _Part):
            content = content[name]
            break
    if isinstance(content, _Part):
        content = dict(_tensors_of(content))
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(key, str) for key in content)
        and all(isinstance(value, Tensor) for value in content.values())
    ):
        raise UserError(
            f"{where}: holds no state dict; save one with torch.save(model.state_dict(), FILE)"
        )
    return dict(content)


def _sidecar(path: Path) -> dict[str, Any]:
    """What FILE.json says of the weights in FILE; empty where there is none.

    Raises:
        UserError: it is no JSON object of `SIDECAR_KEYS`.
    """
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        return {}
    known = f"an object with {', '.join(SIDECAR_KEYS)}"
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{beside}: not JSON ({first_line(error)}); write {known}") from error
    if not isinstance(said, dict) or not said.keys() <= {*SIDECAR_KEYS}:
        raise UserError(f"{beside}: not {known}")
    for name in ("weights_seen", "findings"):
        texts = said.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{beside}: {name} must be a list of names")
    if said.get("input") not in (None, TORCHXRAYVISION):
        raise UserError(f"{beside}: input must be {TORCHXRAYVISION}, or left out")
    return said


def _of_torchxrayvision(state: Mapping[str, Tensor]) -> bool:
    """Whether this is a torchxrayvision classifier: gray, with 18 outputs or `op_threshs`."""
    stem = next((tensor for tensor in state.values() if tensor.ndim == 4), None)
    head = next((tensor for tensor in reversed([*state.values()]) if tensor.ndim == 2), None)
    gray = stem is not None and stem.shape[1] == 1
    marked = any(key.rpartition(".")[2] == "op_threshs" for key in state)
    return gray and (marked or (head is not None and len(head) == len(PATHOLOGIES)))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 200 characters: torch.load gives many lines."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__
