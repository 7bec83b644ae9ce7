"""Fine-tuning: rates that fall with depth, and no weight decay on norms and biases."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import tiny_classifier
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.fine_tuning import FineTuning, check_rates

ADAMW = partial(AdamW, lr=0.1, weight_decay=0.5)


def optimizer_of(tuning: FineTuning | None, *, library: str, arch: str) -> dict[str, tuple]:
    """The rate and the weight decay of each parameter."""
    backbone = build_backbone(library=library, arch=arch)
    model = tiny_classifier(backbone=backbone, optimizer=ADAMW, fine_tuning=tuning)
    optimizer = model.configure_optimizers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].removeprefix("backbone."): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == {name for name, _ in backbone.named_parameters()}
    return found


def test_without_a_switch_all_parameters_are_one_group() -> None:
    found = optimizer_of(None, library="torchvision", arch="resnet18")
    assert set(found.values()) == {(0.1, 0.5)}


@pytest.mark.parametrize("library, arch", [("torchvision", "resnet18"), ("timm", "test_vit")])
def test_norms_and_biases_are_spared_weight_decay(library: str, arch: str) -> None:
    found = optimizer_of(FineTuning(decay_all=False), library=library, arch=arch)
    shapes = {n: p.ndim for n, p in build_backbone(library=library, arch=arch).named_parameters()}
    for name, (rate, decay) in found.items():
        assert rate == 0.1
        assert decay == (0.0 if shapes[name] <= 1 or name.endswith("bias") else 0.5), name


@pytest.mark.parametrize(
    "library, arch, ordered",
    [
        ("torchvision", "resnet18", ["conv1", "layer1.0.conv1", "layer4.1.conv2", "fc"]),
        (
            "torchvision",
            "densenet121",
            [
                "features.conv0",
                "features.denseblock1.denselayer1.conv1",
                "features.denseblock4.denselayer1.conv1",
                "classifier",
            ],
        ),
        ("timm", "test_vit", ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.5.mlp.fc1", "head"]),
    ],
)
def test_rates_fall_from_the_head_to_the_first_layer(
    library: str, arch: str, ordered: list[str]
) -> None:
    found = optimizer_of(FineTuning(layer_decay=0.5), library=library, arch=arch)
    rates = [found[f"{name}.weight"][0] for name in ordered]
    assert rates == sorted(set(rates))
    assert rates[-1] == 0.1
    assert rates[-2] == pytest.approx(0.1 * 0.5 if arch != "densenet121" else 0.1 * 0.25)


def test_one_cycle_is_refused_beside_rates_by_layer() -> None:
    tuning = FineTuning(layer_decay=0.5)
    backbone = build_backbone(arch="resnet18")
    model = tiny_classifier(backbone=backbone, optimizer=ADAMW, fine_tuning=tuning)
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    with pytest.raises(UserError, match="scheduler=one_cycle has one rate for all layers"):
        check_rates(optimizer, OneCycleLR(optimizer, max_lr=0.1, total_steps=10))


@pytest.mark.parametrize("share", [0, 1.5, True])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="must be above 0, at most 1"):
        FineTuning(layer_decay=share)


@pytest.mark.parametrize("key", ["freeze_epochs", "freeze_blocks"])
def test_a_number_of_what_is_frozen_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"fine_tuning\.{key}=-1 must be a whole number"):
        FineTuning(**{key: -1})


@pytest.mark.parametrize(
    "options, blocks, first, last",
    [
        ({"library": "torchvision", "arch": "resnet18"}, 4, "conv1.weight", "layer2.1.bn2.bias"),
        (
            {"library": "timm", "arch": "efficientnet_lite0", "pool_stages": 2},
            3,
            "network.conv_stem.weight",
            "network.blocks.1.0.bn3.bias",
        ),
    ],
    ids=["resnet18", "pooled"],
)
def test_the_first_blocks_are_frozen_in_every_epoch(
    options: dict[str, Any], blocks: int, first: str, last: str
) -> None:
    backbone = build_backbone(**options)
    tuning = FineTuning(freeze_blocks=blocks, freeze_epochs=1)
    names = [name for name, _ in backbone.named_parameters()]
    assert [*tuning.frozen(backbone, epoch=1)] == names[: names.index(last) + 1]
    assert names[0] == first
    assert len(tuning.frozen(backbone, epoch=0)) == len(names) - 2  # all but the head
    with pytest.raises(UserError, match=r"freeze_blocks=99: this backbone has \d+ blocks"):
        FineTuning(freeze_blocks=99).frozen(backbone, epoch=0)


def test_networks_side_by_side_are_each_frozen_and_slowed_by_their_own_depth() -> None:
    archs = ["efficientnet_lite0", "resnet10t"]  # of 16 blocks, and of fewer
    options: dict[str, Any] = {"library": "timm", "pool_stages": 2}
    pair = build_backbone(arch="+".join(archs), **options)
    alone = [build_backbone(arch=arch, **options) for arch in archs]
    tuning = FineTuning(freeze_blocks=2, layer_decay=0.5)
    frozen = {
        name.replace("network.", prefix)
        for network, prefix in zip(alone, ("network.", "beside.0."), strict=True)
        for name in tuning.frozen(network, epoch=0)
    }
    assert tuning.frozen(pair, epoch=0).keys() == frozen
    shares = {
        id(parameter): group["lr_share"]
        for network in (pair, *alone)
        for group in tuning.parameters(network)
        for parameter in group["params"]
    }
    for network, prefix in zip(alone, ("network.", "beside.0."), strict=True):
        for name, parameter in network.named_parameters():
            if not name.startswith("head."):
                own = pair.get_parameter(name.replace("network.", prefix))
                assert shares[id(own)] == shares[id(parameter)], name
    assert {shares[id(own)] for own in pair.get_submodule("head").parameters()} == {1.0}
    with pytest.raises(UserError, match=r"freeze_blocks=12: this backbone has \d blocks"):
        FineTuning(freeze_blocks=12).frozen(pair, epoch=0)


@pytest.mark.parametrize(
    "library, arch, head",
    [
        ("torchvision", "resnet18", {"fc.weight", "fc.bias"}),
        ("timm", "test_vit", {"head.weight", "head.bias"}),
        ("timm", "test_convnext", {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_the_head_alone_is_not_frozen(library: str, arch: str, head: set[str]) -> None:
    backbone = build_backbone(library=library, arch=arch)
    names = {name for name, _ in backbone.named_parameters()}
    tuning = FineTuning(freeze_epochs=2)
    assert names - tuning.frozen(backbone, epoch=1).keys() == head
    assert not tuning.frozen(backbone, epoch=2)
