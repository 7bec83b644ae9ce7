"""Torchvision ResNets and DenseNets with a one-channel input and one logit per finding."""

import contextlib
import http.client
import logging
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlparse

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
MOST_NAMED = 3  # keys that an error line names before it only counts

# torchvision's DenseNet files still say "norm.1" where its modules say "norm1"
# (torchvision/models/densenet.py, _load_state_dict).
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")


# Where a family of torchvision models keeps its first convolution, and its classifier.
_FAMILIES = {"resnet": ("conv1", "fc"), "densenet": ("features.conv0", "classifier")}


def build_backbone(
    *,
    arch: str,
    findings: int = len(FINDINGS),
    in_channels: int = 1,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    pretrained: bool = False,
    weights_path: str | Path | None = None,
) -> nn.Module:
    """Build a classifier from images (B, in_channels, H, W) to logits (B, findings).

    The first convolution of a one-channel model is torchvision's, summed over its three input
    channels. As convolution is linear, its output equals that of the three-channel model on a
    gray image repeated three times, with pretrained and with freshly drawn weights alike.

    Args:
        arch: any torchvision classification model named `resnet*` or `densenet*`.
        findings: number of logits.
        in_channels: 1 (gray) or 3.
        hidden: widths of further fully connected layers between the pooled features and the
            logits, each followed by ReLU and dropout. Cruz Romero et al. say only that their
            ResNet50 has "extra fully connected layers"; `resnet50_mlp` takes (512, 128), which
            narrows 2048 -> 512 -> 128 -> 14 by about four at each step.
        dropout: probability of zeroing an input of the layer after it.
        pretrained: start from torchvision's best ImageNet weights, downloaded once into torch
            hub's folder. The head is always drawn afresh.
        weights_path: a file with a state dict of the same architecture. An ImageNet head of 1000
            classes is dropped; a head of `findings` outputs is loaded.

    Raises:
        UserError: unknown `arch`, an option out of range, or weights that cannot be had or do not
            fit.
    """
    known = list_models(module=torchvision.models, include=[f"{name}*" for name in _FAMILIES])
    if arch not in known:
        raise UserError(f"model.arch={arch!r} is unknown; known: {', '.join(known)}")
    if pretrained and weights_path is not None:
        raise UserError(
            "model.pretrained=true and model.weights_path are two sources of weights: give one"
        )
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: an image has 1 channel (gray) or 3")
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout={dropout}: must be at least 0 and below 1")
    if findings < 1 or any(width < 1 for width in hidden):
        raise UserError(f"model: findings={findings} and hidden={list(hidden)} must be at least 1")

    model: nn.Module = get_model(arch, weights=None)
    conv_name, head_name = next(parts for name, parts in _FAMILIES.items() if arch.startswith(name))
    conv = model.get_submodule(conv_name)
    if isinstance(conv, nn.Conv2d) and conv.in_channels != in_channels:
        conv.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))
        conv.in_channels = in_channels
    in_features = cast(nn.Linear, model.get_submodule(head_name)).in_features
    head = _build_head(in_features, findings, hidden=hidden, dropout=dropout)
    setattr(model, head_name, head)

    if pretrained or weights_path is not None:
        if weights_path is None:
            source, state = f"ImageNet weights of {arch}", _download_imagenet(arch)
        else:
            path = Path(weights_path)
            source, state = f"model.weights_path={path} (into {arch})", _read_state(path)
        _load(model, state, conv_key=f"{conv_name}.weight", head=f"{head_name}.", source=source)
    return model


def _build_head(
    in_features: int, findings: int, *, hidden: Sequence[int], dropout: float
) -> nn.Module:
    """Fully connected layers from (B, in_features) to logits (B, findings)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        in_features = width
    if dropout and not hidden:
        layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(in_features, findings))
    # A lone layer keeps torchvision's own key names ("fc.weight").
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _download_imagenet(arch: str) -> dict[str, Tensor]:
    """Return torchvision's best ImageNet state dict, from torch hub's folder or the network."""
    weights = get_model_weights(arch).DEFAULT
    file = Path(urlparse(weights.url).path).name
    place = Path(torch.hub.get_dir()) / "checkpoints" / file
    try:
        # torch hub announces its download on stdout, which belongs to the caller's own output.
        with contextlib.redirect_stdout(sys.stderr):
            state: dict[str, Tensor] = weights.get_state_dict(
                progress=sys.stderr.isatty(),
                check_hash=True,
                map_location="cpu",
                weights_only=True,
            )
    # URLError and a full disk are OSError; a wrong hash or a cut file is RuntimeError.
    except (
        OSError,
        RuntimeError,
        EOFError,
        http.client.HTTPException,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"no ImageNet weights for {arch} from {weights.url} ({_first_line(error)}): "
            f"put that file at {place}, or give model.weights_path=FILE"
        ) from error
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, bare or under "state_dict", without running code from the file."""
    if not path.is_file():
        raise UserError(f"model.weights_path={path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file fails in as many ways as pickle and zip know.
    except Exception as error:
        raise UserError(
            f"model.weights_path={path}: not a file of plain weights ({_first_line(error)}); "
            "save one with torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(key, str) for key in content)
        and all(isinstance(value, Tensor) for value in content.values())
    ):
        raise UserError(
            f"model.weights_path={path}: holds no state dict; "
            "save one with torch.save(model.state_dict(), FILE)"
        )
    return dict(content)


def _load(
    model: nn.Module, state: dict[str, Tensor], *, conv_key: str, head: str, source: str
) -> None:
    """Load a state dict after adapting its prefix, old keys, input channels and head."""
    state = _without_prefix(state, conv_key)
    state = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    own = model.state_dict()
    conv = state.get(conv_key)
    if conv is not None and conv.ndim == 4 and conv.shape[1] == 3 and own[conv_key].shape[1] == 1:
        state[conv_key] = conv.sum(dim=1, keepdim=True)
    kept_fresh: set[str] = set()
    if f"{head}weight" in state and len(state[f"{head}weight"]) == IMAGENET_CLASSES:
        kept_fresh = {key for key in own if key.startswith(head)}
        state = {key: value for key, value in state.items() if not key.startswith(head)}
        logger.info("%s: head of %d classes left out", source, IMAGENET_CLASSES)
    _check_fit(own, state, optional=kept_fresh, source=source)
    model.load_state_dict(state, strict=False)


def _without_prefix(state: dict[str, Tensor], conv_key: str) -> dict[str, Tensor]:
    """Take the backbone's part of a state dict saved with a wrapper, such as "module."."""
    names = [key for key in state if key == conv_key or key.endswith(f".{conv_key}")]
    if not names:
        return state
    prefix = min(names, key=len).removesuffix(conv_key)
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def _check_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, optional: set[str], source: str
) -> None:
    """Refuse a state dict whose keys or shapes are not the model's, with the first few named."""
    # Files from before PyTorch 0.4.1 have no such counter; load_state_dict then starts it at 0.
    counters = {key for key in own if key.endswith(".num_batches_tracked")}
    faults = {
        "missing": [key for key in own if key not in state and key not in optional | counters],
        "unexpected": [key for key in state if key not in own],
        "wrong shape": [
            f"{key} {tuple(tensor.shape)} for {tuple(own[key].shape)}"
            for key, tensor in state.items()
            if key in own and tensor.shape != own[key].shape
        ],
    }
    told = []
    for fault, keys in faults.items():
        more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
        if keys:
            told.append(f"{fault} {', '.join(keys[:MOST_NAMED])}{more}")
    if told:
        raise UserError(f"{source}: the weights do not fit: {'; '.join(told)}")


def _first_line(error: BaseException) -> str:
    """The first sentence's worth of an error: torch.load's own advice runs over many lines."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
