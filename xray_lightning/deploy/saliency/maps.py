"""Saliency maps: where in an image a model saw a finding, by Captum's methods."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from xray_lightning.deploy.model import Model, is_exported
from xray_lightning.deploy.torch_backend import TorchNetwork
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import StagePooling
from xray_lightning.models.checkpoint import RestoredModel

Maps = npt.NDArray[np.float32]

BATCH = 16  # images at once: gradients take memory


def captum() -> Any:
    """Import `captum.attr`; a UserError says how to install it."""
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise UserError(
            "xray explain needs captum, which is not installed; install xray-lightning[explain]"
        ) from error


@dataclass(frozen=True)
class Explainer:
    """One checkpoint, and the method that computes its saliency maps."""

    model: Model
    network: TorchNetwork  # the torch backend of `model`
    method: str  # a key of `METHODS`

    @classmethod
    def load(cls, checkpoint: Path, *, method: str, device: str = "auto") -> "Explainer":
        """Read a checkpoint.

        Raises:
            UserError: it cannot be read, the method is unknown, or captum is not installed.
        """
        if method not in METHODS:
            raise UserError(f"--method {method} is unknown; choose one of {', '.join(METHODS)}")
        if is_exported(checkpoint):
            raise UserError(f"{checkpoint}: an exported model has no gradients; give the .ckpt")
        captum()
        network = TorchNetwork.load(
            [checkpoint], device=device, precision="32-true", average="probabilities"
        )
        network.prepare()
        return cls(Model(network, batch_size=BATCH), network, method)

    @property
    def findings(self) -> tuple[str, ...]:
        return self.model.findings

    def maps(self, pixels: npt.NDArray[np.uint8], finding: int) -> Maps:
        """Where the model sees one finding in images.

        Args:
            pixels: uint8 (B, 1, S, S).
            finding: its index in `findings`.

        Returns:
            Evidence for the finding, at least 0, without a unit: float32 (B, S, S).
        """
        device = torch.device(self.network.device)
        model = self.network.members[0].model.to(device)
        with torch.no_grad():
            images = model.normalize(torch.tensor(pixels, device=device))
        found = METHODS[self.method](model, images, finding)  # (B, 1, h, w)
        whole = functional.interpolate(
            found.detach().float().clamp(min=0), images.shape[2:], mode="bilinear"
        )
        maps: Maps = whole[:, 0].cpu().numpy()
        return maps


def gradcam(model: RestoredModel, images: Tensor, finding: int) -> Tensor:
    """Grad-CAM of the last convolutions (Selvaraju et al., ICCV 2017)."""
    if not _named_stages(model.backbone):
        total = images.new_zeros(images.shape)
        for maps in feature_maps(model.backbone, images, finding):
            kept, gradient = maps[-1]
            last = (gradient.mean(dim=(2, 3), keepdim=True) * kept).sum(dim=1, keepdim=True)
            total = total + functional.interpolate(last.float(), images.shape[2:], mode="bilinear")
        return total
    attribution = captum().LayerGradCam(model.backbone, stages(model.backbone)[-1])
    found: Tensor = attribution.attribute(
        images.requires_grad_(), target=finding, relu_attributions=True
    )
    return found


def layercam(model: RestoredModel, images: Tensor, finding: int) -> Tensor:
    """LayerCAM of all four stages, added up (Jiang et al., IEEE TIP 30, 2021).

    Each position of a stage is weighted by its own gradient, so that stages with a finer grid than
    the last contribute, too: at 128 x 128 pixels, the last stage has only 4 x 4 positions.
    """
    if _named_stages(model.backbone):
        attribution = captum().LayerGradientXActivation(model.backbone, stages(model.backbone))
        of_stages = attribution.attribute(images.requires_grad_(), target=finding)
    else:
        networks = feature_maps(model.backbone, images, finding)
        of_stages = [kept * gradient for maps in networks for kept, gradient in maps]
    total = images.new_zeros(images.shape)
    for products in of_stages:
        found = products.clamp(min=0).sum(dim=1, keepdim=True)  # (B, 1, h, w)
        largest = found.amax(dim=(2, 3), keepdim=True)
        found = torch.where(largest > 0, found / largest, 0)
        total = total + functional.interpolate(found, images.shape[2:], mode="bilinear")
    return total


METHODS: dict[str, Callable[[RestoredModel, Tensor, int], Tensor]] = {
    "layercam": layercam,
    "gradcam": gradcam,
}
# The methods' names for readers.
NAMES = {"layercam": "LayerCAM of all stages", "gradcam": "Grad-CAM of the last stage"}


def stages(backbone: nn.Module) -> list[nn.Module]:
    """The four stages of a backbone of torchvision, from the finest grid to the coarsest."""
    if found := _named_stages(backbone):
        return found
    raise UserError(f"xray explain knows no stages of {type(backbone).__name__}")


def _named_stages(backbone: nn.Module) -> list[nn.Module]:
    for name in ("layer{}", "features.denseblock{}"):
        with suppress(AttributeError):
            return [backbone.get_submodule(name.format(number)) for number in (1, 2, 3, 4)]
    return []


STAGES = 4  # grids used at most, the coarsest ones


def feature_maps(
    backbone: nn.Module, images: Tensor, finding: int
) -> list[list[tuple[Tensor, Tensor]]]:
    """The last feature map of each grid size and its gradient, whatever the modules are named.

    Outputs of all submodules are recorded in the order of computation: feature maps (B, C, h, w) or
    (B, h, w, C), or tokens (B, N, C). For each grid, the last map with a nonzero gradient of the
    finding's logit is taken: after the last block of a transformer that classifies by its class
    token alone, the patch tokens have none.

    Returns:
        For each parallel network, pairs of map and gradient, both (B, C, h, w), from the finest
        grid to the coarsest, `STAGES` at most.

    Raises:
        UserError: no output in a network can be read as a feature map.
    """
    networks = backbone.networks if isinstance(backbone, StagePooling) else [backbone]
    kept: list[tuple[int, Tensor]] = []

    def keep(number: int, module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad and out.shape[:1] == images.shape[:1]:
            kept.append((number, out))  # any other first size counts attention windows

    hooks = [
        part.register_forward_hook(partial(keep, number))
        for number, network in enumerate(networks)
        for part in network.modules()
        if part != backbone
    ]
    try:
        logits: Tensor = backbone(images.requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(
        logits[:, finding].sum(), [out for _, out in kept], allow_unused=True
    )
    found: list[list[tuple[Tensor, Tensor]]] = []
    for number, network in enumerate(networks):
        outputs = [
            (out, slope)
            for (place, out), slope in zip(kept, gradients, strict=True)
            if place == number and slope is not None
        ]
        layout = _Layout.of(network)
        whatever = replace(layout, widths=frozenset())
        chosen = _last_maps(outputs, layout) or _last_maps(outputs, whatever)
        if not chosen:
            raise UserError(f"xray explain finds no feature map in {type(network).__name__}")
        found.append([chosen[side] for side in sorted(chosen, reverse=True)][-STAGES:])
    return found


@dataclass(frozen=True)
class _Layout:
    """Layout of a network's outputs, as timm describes it.

    Attributes:
        extra: prefix tokens, such as the class token, before the patch tokens.
        widths: possible numbers of channels of a stage, to rule out attention matrices
            (B, heads, N, N); empty if timm does not give them.
        channels_last: whether an output that fits both layouts is read as (B, h, w, C).
    """

    extra: int
    widths: frozenset[int]
    channels_last: bool

    @classmethod
    def of(cls, network: nn.Module) -> "_Layout":
        told = getattr(network, "feature_info", None)
        stages = [one["num_chs"] for one in told] if isinstance(told, list) else []
        head = [getattr(network, "num_features", None)] if stages else []
        return cls(
            extra=int(getattr(network, "num_prefix_tokens", 0)),
            widths=frozenset(width for width in [*stages, *head] if isinstance(width, int)),
            channels_last=getattr(network, "output_fmt", None) == "NHWC",
        )

    def as_map(self, out: Tensor) -> Tensor | None:
        """A submodule's output as (B, C, h, w), h = w > 1; None if it is no feature map."""
        ways: list[Tensor] = []
        if out.ndim == 4:
            ways = [out, out.permute(0, 3, 1, 2)]
        elif out.ndim == 3:
            side = math.isqrt(max(0, out.shape[1] - self.extra))
            if side**2 == out.shape[1] - self.extra:
                tokens = out[:, self.extra :].transpose(1, 2)  # (B, C, N)
                ways = [tokens.reshape(*tokens.shape[:2], side, side)]
        for way in reversed(ways) if self.channels_last else ways:
            fits = not self.widths or way.shape[1] in self.widths
            if fits and way.shape[2] == way.shape[3] > 1:
                return way
        return None


def _last_maps(
    outputs: list[tuple[Tensor, Tensor]], layout: _Layout
) -> dict[int, tuple[Tensor, Tensor]]:
    """By the grid's side, the last map with a nonzero gradient, and that gradient."""
    chosen: dict[int, tuple[Tensor, Tensor]] = {}
    channels: dict[int, int] = {}
    for out, gradient in reversed(outputs):
        place, slope = layout.as_map(out), layout.as_map(gradient)
        if place is None or slope is None:
            continue
        side = place.shape[2]
        width = channels.setdefault(side, place.shape[1])
        if side not in chosen and place.shape[1] == width and bool(slope.any()):
            chosen[side] = (place, slope)
    return chosen
