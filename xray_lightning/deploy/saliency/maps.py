"""Saliency maps: where in an image a model saw a finding, by Captum's methods."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
from xray_lightning.models.checkpoint import RestoredModel

Maps = npt.NDArray[np.float32]

BATCH = 16  # images at once: gradients take memory


def captum() -> Any:
    """The package, or one line on how to get it."""
    try:
        return import_module("captum.attr")
    except ImportError as error:
        raise UserError(
            "xray explain needs captum, which is not installed; install xray-lightning[explain]"
        ) from error


@dataclass(frozen=True)
class Explainer:
    """One checkpoint, and a way to ask it where it saw a finding."""

    model: Model
    network: TorchNetwork  # the same, as torch's module
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
            finding: its place among `findings`.

        Returns:
            What speaks for the finding, 0 and up, in no unit: float32 (B, S, S).
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
        kept, gradient = feature_maps(model.backbone, images, finding)[-1]
        return (gradient.mean(dim=(2, 3), keepdim=True) * kept).sum(dim=1, keepdim=True)
    attribution = captum().LayerGradCam(model.backbone, stages(model.backbone)[-1])
    found: Tensor = attribution.attribute(
        images.requires_grad_(), target=finding, relu_attributions=True
    )
    return found


def layercam(model: RestoredModel, images: Tensor, finding: int) -> Tensor:
    """LayerCAM of all four stages, added up (Jiang et al., IEEE TIP 30, 2021).

    Each place of a stage is weighed by its own gradient, so that stages of a finer grid than the
    last may speak, too: the last one alone has 4 x 4 places in an image of 128 x 128.
    """
    if _named_stages(model.backbone):
        attribution = captum().LayerGradientXActivation(model.backbone, stages(model.backbone))
        of_stages = attribution.attribute(images.requires_grad_(), target=finding)
    else:
        maps = feature_maps(model.backbone, images, finding)
        of_stages = [kept * gradient for kept, gradient in maps]
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
# What people call them.
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


STAGES = 4  # grids that are looked at, the coarsest


def feature_maps(backbone: nn.Module, images: Tensor, finding: int) -> list[tuple[Tensor, Tensor]]:
    """The last map of each grid in a network of whatever names, and its gradient.

    What each part gives is looked at in the order of computing: a grid of places (B, C, h, w) or
    (B, h, w, C), or a row of tokens (B, N, C). The last map of a grid that the finding's logit
    depends on at its places is taken: behind the last block of a transformer that reads its class
    token alone, it no longer does.

    Returns:
        Both (B, C, h, w), from the finest grid to the coarsest, `STAGES` at most.

    Raises:
        UserError: nothing in the network has places.
    """
    extra = int(getattr(backbone, "num_prefix_tokens", 0))
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad and _as_map(out, extra) is not None:
            kept.append(out)

    hooks = [part.register_forward_hook(keep) for part in backbone.modules() if part != backbone]
    try:
        logits: Tensor = backbone(images.requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(logits[:, finding].sum(), kept, allow_unused=True)
    chosen: dict[int, tuple[Tensor, Tensor]] = {}
    channels: dict[int, int] = {}
    for out, gradient in reversed([*zip(kept, gradients, strict=True)]):
        place = _as_map(out, extra)
        slope = None if gradient is None else _as_map(gradient, extra)
        if place is None or slope is None:
            continue
        side = place.shape[2]
        width = channels.setdefault(side, place.shape[1])
        if side not in chosen and place.shape[1] == width and bool(slope.any()):
            chosen[side] = (place, slope)
    if not chosen:
        raise UserError(f"xray explain finds no feature map in {type(backbone).__name__}")
    return [chosen[side] for side in sorted(chosen, reverse=True)][-STAGES:]


def _as_map(out: Tensor, extra: int) -> Tensor | None:
    """A part's output as (B, C, h, w), h = w > 1; None where it has no places.

    Args:
        extra: tokens that stand before those of places.
    """
    if out.ndim == 4 and out.shape[2] == out.shape[3] > 1:
        return out
    if out.ndim == 4 and out.shape[1] == out.shape[2] > 1:
        return out.permute(0, 3, 1, 2)
    if out.ndim != 3:
        return None
    side = math.isqrt(max(0, out.shape[1] - extra))
    if side < 2 or side**2 != out.shape[1] - extra:
        return None
    tokens = out[:, extra:].transpose(1, 2)  # (B, C, N)
    return tokens.reshape(*tokens.shape[:2], side, side)
