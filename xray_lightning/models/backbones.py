"""Backbones of torchvision or timm with a one-channel input and one logit per finding."""

import contextlib
import difflib
import http.client
import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from xray_lightning.errors import UserError, check_whole, one_line
from xray_lightning.findings import FINDINGS
from xray_lightning.models.weights_file import Weights, first_line, read_weights
from xray_lightning.models.weights_transfer import TakenOver, take_over

LIBRARIES = ("torchvision", "timm")
# Arguments that choose the initial weights and do not change the network.
OF_FIRST_WEIGHTS = ("pretrained", "weights_path", "weights_seen", "allow_seen_test")

# Where a family of torchvision models keeps its first convolution, and its classifier.
_FAMILIES = {"resnet": ("conv1", "fc"), "densenet": ("features.conv0", "classifier")}


def build_backbone(
    *,
    arch: str,
    library: str = "torchvision",
    findings: int | Sequence[str] = len(FINDINGS),
    in_channels: int = 1,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    drop_path: float = 0.0,
    pool_stages: int | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
    weights_path: str | Path | Sequence[str | Path] | None = None,
    weights_seen: Sequence[str] | None = None,
    allow_seen_test: bool | None = None,
) -> nn.Module:
    """Build a classifier from images (B, in_channels, H, W) to logits (B, findings).

    The first convolution of a one-channel model is the library's, summed over its three input
    channels. As convolution is linear, its output equals that of the three-channel model on a
    gray image repeated three times, with pretrained and with freshly drawn weights alike.

    Args:
        arch: any torchvision classification model named `resnet*` or `densenet*`, or any of timm's;
            `A+B` puts two of timm's side by side.
        library: `torchvision` or `timm`.
        findings: number of logits, or their names, by which rows of a file's head are loaded.
        in_channels: 1 (gray) or 3.
        hidden: widths of further fully connected layers between the pooled features and the
            logits, each followed by ReLU and dropout. Cruz Romero et al. say only that their
            ResNet50 has "extra fully connected layers"; `resnet50_mlp` takes (512, 128), which
            narrows 2048 -> 512 -> 128 -> 14 by about four at each step.
        dropout: probability of zeroing an input of the layer after it.
        drop_path: timm's stochastic depth: probability of leaving out a residual block.
        pool_stages: pool this many of the last stages of a timm network, see `StagePooling`.
        image_size: side of the images; timm builds transformers for a fixed size.
        pretrained: start from the library's ImageNet weights, downloaded once. The head is always
            drawn afresh.
        weights_path: a file of weights, see `weights_file.read_weights`, or one for each network of
            `arch`; the model's attribute `taken_over` records what was loaded.
        weights_seen: data sets, or lists of images, that those weights were trained on; None for
            what the file or its sidecar says.
        allow_seen_test: not used here; it is for the run, see `training.weights_provenance`.

    Raises:
        UserError: unknown `arch`, an option out of range, or weights that cannot be obtained or do
            not fit.
    """
    if library not in LIBRARIES:
        raise UserError(f"model.library={library} is unknown; choose one of {', '.join(LIBRARIES)}")
    if pretrained and weights_path is not None:
        raise UserError(
            "model.pretrained=true and model.weights_path are two sources of weights: give one"
        )
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: an image has 1 channel (gray) or 3")
    for name, share in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0 <= share < 1:
            raise UserError(f"model.{name}={share}: must be at least 0 and below 1")
    names = None if isinstance(findings, int) else tuple(findings)
    outputs = findings if isinstance(findings, int) else len(findings)
    if outputs < 1 or any(width < 1 for width in hidden):
        raise UserError(f"model: findings={outputs} and hidden={list(hidden)} must be at least 1")
    build = _torchvision if library == "torchvision" else _timm
    model, head = build(
        arch,
        outputs=outputs,
        in_channels=in_channels,
        hidden=hidden,
        dropout=dropout,
        drop_path=drop_path,
        pool_stages=pool_stages,
        image_size=image_size,
        pretrained=pretrained and library == "timm",
    )
    model.head_prefix = head  # type: ignore[assignment]  # no part of the network
    weights: list[Weights] = []
    if weights_path is not None:
        paths = [weights_path] if isinstance(weights_path, str | Path) else weights_path
        weights = [read_weights(path) for path in paths]
    elif pretrained and library == "torchvision":
        weights = [Weights(f"ImageNet weights of {arch}", _download_imagenet(arch))]
    if weights:
        if weights_seen is not None:
            listed = [weights_seen] if isinstance(weights_seen, str) else weights_seen
            weights = [replace(one, seen=tuple(map(str, listed))) for one in weights]
        archs = arch.split("+")
        into = archs if len(archs) == len(weights) else [arch] * len(weights)
        weights = [
            replace(one, source=f"{one.source} (into {name})")
            for one, name in zip(weights, into, strict=True)
        ]
        taken = take_over(model, *weights, head=head, findings=names)
        model.taken_over = taken  # type: ignore[assignment]  # no part of the network
    return model


def taken_over(model: nn.Module) -> TakenOver | None:
    """What `take_over` has loaded into a backbone; None if it was not called."""
    taken = getattr(model, "taken_over", None)
    return taken if isinstance(taken, TakenOver) else None


def _torchvision(
    arch: str,
    *,
    outputs: int,
    in_channels: int,
    hidden: Sequence[int],
    dropout: float,
    drop_path: float,
    pool_stages: int | None,
    **_: Any,
) -> tuple[nn.Module, str]:
    """A torchvision network, and the prefix of its head's parameters, such as "fc."."""
    known = list_models(module=torchvision.models, include=[f"{name}*" for name in _FAMILIES])
    if arch not in known:
        raise UserError(
            f"model.arch={arch!r} is unknown; known: {', '.join(known)}; model=timm has others"
        )
    for name, value in (("drop_path", drop_path), ("pool_stages", pool_stages)):
        if value:
            raise UserError(f"model.{name}={value} is of model=timm; {arch} has none")
    model: nn.Module = get_model(arch, weights=None)
    conv_name, head_name = next(parts for name, parts in _FAMILIES.items() if arch.startswith(name))
    conv = model.get_submodule(conv_name)
    if isinstance(conv, nn.Conv2d) and conv.in_channels != in_channels:
        conv.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))
        conv.in_channels = in_channels
    in_features = cast(nn.Linear, model.get_submodule(head_name)).in_features
    head = _build_head(in_features, outputs, hidden=hidden, dropout=dropout)
    setattr(model, head_name, head)
    return model, f"{head_name}."


def _timm(
    arch: str,
    *,
    outputs: int,
    in_channels: int,
    hidden: Sequence[int],
    dropout: float,
    drop_path: float,
    pool_stages: int | None,
    image_size: int | None,
    pretrained: bool,
) -> tuple[nn.Module, str]:
    """A timm network, and the prefix of its head's parameters, such as "head."."""
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise UserError(
            f"model.arch={arch} is of timm, which is not installed; install xray-lightning[timm]"
        ) from error
    known = timm.list_models()
    archs = arch.split("+")
    # Only known names: a checkpoint must not make timm read from a hub (`hf-hub:...`) or folder.
    for name in archs:
        if name.partition(".")[0] not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
            told = f"; close to it: {', '.join(near)}" if near else ""
            raise UserError(f"model.arch={name!r} is none of timm's {len(known):,}{told}")
    if len(archs) > 1 and pool_stages is None:
        raise UserError(f"model.arch={arch}: networks side by side need model.pool_stages")
    options: dict[str, Any] = {
        "num_classes": outputs,
        "in_chans": in_channels,
        "pretrained": pretrained,
    }
    options |= {"drop_rate": dropout} if dropout and not hidden and not pool_stages else {}
    options |= {"drop_path_rate": drop_path} if drop_path else {}
    networks: list[Any] = [_created(timm.create_model, name, options, image_size) for name in archs]
    for part in (part for network in networks for part in network.modules()):
        if not drop_path and type(part).__name__ == "DropPath":
            part.drop_prob = 0.0  # some timm models have a default above 0
    if pool_stages is not None:
        pooled = StagePooling(
            *networks, stages=pool_stages, outputs=outputs, hidden=hidden, dropout=dropout
        )
        return pooled, "head."
    model = networks[0]
    classifier = model.get_classifier()
    head = next((name for name, part in model.named_modules() if part is classifier), None)
    if head is None:
        raise UserError(f"model.arch={arch} has no single last layer for its logits; give another")
    if hidden:
        if not isinstance(classifier, nn.Linear):
            raise UserError(f"model.hidden={list(hidden)}: the last layer of {arch} is not linear")
        further = _build_head(classifier.in_features, outputs, hidden=hidden, dropout=dropout)
        model.set_submodule(head, further)
    return model, f"{head}."


class StagePooling(nn.Module):
    """timm networks whose last stages are pooled to means and standard deviations, for one head.

    Features of several depths separate findings that the last layer's do not (Hariharan et al.,
    "Hypercolumns", CVPR 2015). A channel's standard deviation over the image responds to small or
    one-sided findings, which its mean dilutes (Snyder et al., "X-Vectors", ICASSP 2018). Layers
    after the last stage are removed. All networks get the same images.

    Attributes:
        network: the first network, without the layers after its last stage.
        beside: the other networks, likewise.
        inner_prefixes: prefix of each network's parameter names.
        widths: number of features of each stage: a mean and a standard deviation per channel.
        head: from features (B, sum of `widths`) to logits.

    Raises:
        UserError: a network has no stages, or fewer than `stages`.
    """

    def __init__(
        self, *networks: Any, stages: int, outputs: int, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        check_whole("model.pool_stages", stages, least=1)
        self._taken: list[list[int]] = []
        self.widths: list[int] = []
        for network in networks:
            name, found = type(network).__name__, getattr(network, "feature_info", None)
            if not found or not hasattr(network, "prune_intermediate_layers"):
                raise UserError(f"model.pool_stages={stages}: {name} has no stages to pool")
            if stages > len(found):
                raise UserError(f"model.pool_stages={stages}: {name} has {len(found)} stages")
            taken = network.prune_intermediate_layers(
                indices=stages, prune_norm=True, prune_head=True
            )
            self._taken.append(taken)
            self.widths += [2 * found[number]["num_chs"] for number in taken]
        self.network = networks[0]
        self.beside = nn.ModuleList(networks[1:])
        further = [f"beside.{number}." for number in range(len(self.beside))]
        self.inner_prefixes = ("network.", *further)
        self.head = _build_head(sum(self.widths), outputs, hidden=hidden, dropout=dropout)

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, in the order of their features."""
        return [self.network, *self.beside]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, outputs) of images (B, C, H, W)."""
        pooled = []
        for network, taken in zip(self.networks, self._taken, strict=True):
            maps = cast(Any, network).forward_intermediates(
                *(images, taken), norm=False, output_fmt="NCHW", intermediates_only=True
            )
            for stage in maps:  # (B, C, h, w)
                variance, mean = torch.var_mean(stage.float(), dim=(2, 3), correction=0)
                pooled += [mean, (variance + 1e-6).sqrt()]  # the root's gradient is infinite at 0
        logits: Tensor = self.head(torch.cat(pooled, dim=1))
        return logits


def _created(create: Any, arch: str, options: dict[str, Any], image_size: int | None) -> Any:
    """Create a timm model, with the image size if the architecture takes one.

    Raises:
        UserError: an option that this architecture does not take, or weights that cannot be
            obtained.
    """
    sized = {} if image_size is None else {"img_size": image_size}
    try:
        try:
            return create(arch, **options, **sized)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return create(arch, **options)
    # Downloads fail with many types of error; architectures refuse options by assertions.
    except Exception as error:
        if not options["pretrained"]:
            at = "" if image_size is None else f" at data.image_size={image_size}"
            raise UserError(
                f"model.arch={arch} cannot be built{at}: {one_line(error) or type(error).__name__}"
            ) from error
        raise UserError(
            f"no pretrained weights for {arch} from timm ({first_line(error)}): "
            "put a file of them anywhere, and give model.weights_path=FILE"
        ) from error


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
            f"no ImageNet weights for {arch} from {weights.url} ({first_line(error)}): "
            f"put that file at {place}, or give model.weights_path=FILE"
        ) from error
    return state
