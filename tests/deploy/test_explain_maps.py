"""Maps: what the methods compute, and that an image's map is its own affair."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SIDE
from conftest import tiny_classifier
from torch import Tensor
from torch.nn import functional

from xray_lightning.deploy.saliency.maps import METHODS, NAMES, Explainer, stages
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone

pytest.importorskip("captum", reason="needs the extra explain")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, SIDE, SIDE), dtype=np.uint8)


def activations_and_gradients(explainer: Explainer, finding: int) -> list[tuple[Tensor, Tensor]]:
    """Of each stage, by autograd alone."""
    model = explainer.network.members[0].model
    kept: list[Tensor] = []
    hooks = [
        stage.register_forward_hook(lambda module, given, out: kept.append(out))
        for stage in stages(model.backbone)
    ]
    images = model.normalize(torch.from_numpy(PIXELS)).requires_grad_()
    logits = model.backbone(images)[:, finding].sum()
    for hook in hooks:
        hook.remove()
    return list(zip(kept, torch.autograd.grad(logits, kept), strict=True))


def enlarged(found: Tensor) -> np.ndarray:
    return functional.interpolate(found, (SIDE, SIDE), mode="bilinear")[:, 0].detach().numpy()


def test_gradcam_weighs_the_last_stages_channels_by_their_mean_gradient(ckpt: Path) -> None:
    explainer = Explainer.load(ckpt, method="gradcam", device="cpu")
    kept, gradient = activations_and_gradients(explainer, 5)[-1]
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = enlarged((weights * kept).sum(dim=1, keepdim=True).clamp(min=0))
    found = explainer.maps(PIXELS, 5)
    assert found.dtype == np.float32
    assert found.shape == (3, SIDE, SIDE)
    assert found.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_layercam_adds_the_positive_products_of_all_four_stages(ckpt: Path) -> None:
    explainer = Explainer.load(ckpt, method="layercam", device="cpu")
    expected = np.zeros((3, SIDE, SIDE), dtype=np.float32)
    of_stages = activations_and_gradients(explainer, 2)
    assert [kept.shape[2] for kept, _ in of_stages] == [8, 4, 2, 1]
    for kept, gradient in of_stages:
        found = (kept * gradient).clamp(min=0).sum(dim=1, keepdim=True)
        expected += enlarged(found / found.amax(dim=(2, 3), keepdim=True))
    np.testing.assert_allclose(explainer.maps(PIXELS, 2), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_is_the_same_in_any_batch_and_differs_between_findings(
    method: str, ckpt: Path
) -> None:
    explainer = Explainer.load(ckpt, method=method, device="cpu")
    together = explainer.maps(PIXELS, 1)
    alone = np.concatenate([explainer.maps(PIXELS[place : place + 1], 1) for place in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)
    assert not np.allclose(together, explainer.maps(PIXELS, 2))
    assert method in NAMES


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "densenet121"])
def test_every_architecture_has_four_stages_from_fine_to_coarse(arch: str) -> None:
    backbone = build_backbone(arch=arch).eval()
    sides: list[int] = []
    for stage in stages(backbone):
        stage.register_forward_hook(lambda module, given, out: sides.append(out.shape[2]))
    with torch.inference_mode():
        backbone(torch.zeros(1, 1, 64, 64))
    assert sides == [16, 8, 4, 2]


def test_what_cannot_be_explained_is_refused(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--method saliency is unknown; choose one of layercam"):
        Explainer.load(ckpt, method="saliency")
    with pytest.raises(UserError, match="an exported model has no gradients"):
        Explainer.load(tmp_path / "a.onnx", method="gradcam")
    with pytest.raises(UserError, match="knows no stages of Sequential"):
        stages(tiny_classifier().backbone)
