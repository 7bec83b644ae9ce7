"""timm's architectures, through all that a ResNet goes through."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting import trainer
from torch import Tensor, nn

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.deploy.export import export
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.model_card.info import model_info
from xray_lightning.deploy.saliency.maps import METHODS, Explainer, feature_maps
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone, taken_over
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.sync_batchnorm import PortableSyncBatchNorm, SyncBatchNorm2d

SIDE = 64
# Of five families: residual, inverted-residual and modern convolutions, transformers and windows.
QUICK = ["resnet10t", "test_vit"]
SLOW = [
    *("test_convnext2", "test_efficientnet", "mobilenetv3_small_050", "regnety_002"),
    *("deit_tiny_patch16_224", "swin_s3_tiny_224"),
]
POOLED = ["test_efficientnet", "test_vit"]  # of the last two stages
PAIR = "test_efficientnet+resnet10t"  # side by side
MODELS = [
    *((arch, {}) for arch in QUICK),
    *(pytest.param(arch, {}, marks=pytest.mark.slow, id=arch) for arch in SLOW),
    *(
        pytest.param(arch, {"pool_stages": 2}, marks=pytest.mark.slow, id=f"{arch}-pooled")
        for arch in POOLED
    ),
    pytest.param(PAIR, {"pool_stages": 2}, marks=pytest.mark.slow, id="pair"),
]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    ensure_phantoms(root, PhantomSpec(images=60, size=SIDE), progress=lambda done: None)
    return root


def recipe(arch: str, **further: Any) -> dict[str, Any]:
    return {"library": "timm", "arch": arch, "image_size": SIDE} | further


def fitted(
    built: dict[str, Any], phantoms: Path, folder: Path, *, epochs: int, resume: Path | None
) -> None:
    data = XrayDataModule(
        name="phantom",
        root=str(phantoms),
        cache_dir=str(phantoms / "cache"),
        image_size=SIDE,
        batch_size=16,
    )
    torch.manual_seed(0)
    model = Classifier(
        backbone=build_backbone(**built),
        recipe={"model": built, "image_size": SIDE},
    )
    fit = trainer(folder, epochs=epochs)
    fit.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)


@pytest.mark.parametrize("arch, options", MODELS)
def test_it_trains_resumes_bit_for_bit_exports_gives_maps_and_is_described(
    arch: str, options: dict[str, Any], phantoms: Path, tmp_path: Path
) -> None:
    built = recipe(arch, **options)
    fitted(built, phantoms, tmp_path / "whole", epochs=2, resume=None)
    fitted(built, phantoms, tmp_path / "cut", epochs=1, resume=None)
    half = tmp_path / "cut" / "last.ckpt"
    fitted(built, phantoms, tmp_path / "cut", epochs=2, resume=half)
    last = tmp_path / "whole" / "last.ckpt"
    one, other = (read_checkpoint(path)["state_dict"] for path in (last, half))
    assert all(torch.equal(one[key], other[key]) for key in one)

    out = tmp_path / "model.onnx"
    assert max(export(last, out, format="onnx").logits, 0) <= 1e-4
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
    torchs, onnxs = (load_model(path, device="cpu").predict(images) for path in (last, out))
    np.testing.assert_allclose(torchs.probabilities, onnxs.probabilities, atol=1e-4)

    for method in METHODS:
        found = Explainer.load(last, method=method, device="cpu").maps(images[:, None], 3)
        assert found.shape == (2, SIDE, SIDE)
        assert np.isfinite(found).all()
        # LayerCAM looks at all grids: somewhere something speaks for it.
        assert found.max() > 0 or method == "gradcam"
    described = model_info(last).model
    parameters = sum(p.numel() for p in build_backbone(**built).parameters())
    assert (described["arch"], described["parameters"]) == (arch, parameters)
    assert described["pool_stages"] == options.get("pool_stages")


@pytest.mark.parametrize("arch", ["resnet10t", "test_vit"])
def test_gray_input_equals_three_equal_channels(arch: str, tmp_path: Path) -> None:
    three = build_backbone(**recipe(arch), in_channels=3).eval()
    torch.save(three.state_dict(), tmp_path / "w.pth")
    gray = build_backbone(**recipe(arch), weights_path=tmp_path / "w.pth").eval()
    images = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, repeated = gray(images), three(images.expand(-1, 3, -1, -1))
    assert one.std() > 0
    torch.testing.assert_close(one, repeated, rtol=1e-4, atol=1e-5)


def test_further_layers_take_the_place_of_the_last() -> None:
    model: Any = build_backbone(**recipe("resnet10t", hidden=[8], dropout=0.5), findings=3)
    assert [type(part) for part in model.fc] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


@pytest.mark.parametrize("arch", ["resnet10t", "test_vit"])
def test_pooled_stages_are_means_and_deviations_of_the_whole_networks_maps(
    arch: str, tmp_path: Path
) -> None:
    whole: Any = build_backbone(**recipe(arch)).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    pooled: Any = build_backbone(**recipe(arch, pool_stages=2), weights_path=tmp_path / "w.pth")
    images = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    pooled.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        pooled.eval()(images)
        maps = whole.forward_intermediates(images, indices=2, intermediates_only=True)
    parts = [part for found in maps for part in (found.mean((2, 3)), found.std((2, 3), False))]
    assert [len(part[0]) * 2 for part in parts[::2]] == pooled.widths
    torch.testing.assert_close(seen[0], torch.cat(parts, dim=1), rtol=1e-3, atol=2e-3)
    pooled.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in pooled.parameters())  # as DDP wants
    taken = taken_over(pooled)
    assert taken is not None
    assert (taken.new, taken.new_first) == (
        (2, pooled.head.weight.numel() + len(pooled.head.bias)),
        ("head.weight", "head.bias"),
    )


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.encoder."])
def test_a_pooled_model_finds_a_networks_weights_whatever_wrapped_it(
    prefix: str, tmp_path: Path
) -> None:
    whole = build_backbone(**recipe("resnet10t"))
    state = {f"{prefix}{name}": value for name, value in whole.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    pooled: Any = build_backbone(
        **recipe("resnet10t", pool_stages=2), weights_path=tmp_path / "w.pth"
    )
    taken = taken_over(pooled)
    assert taken is not None
    assert taken.how == "by name"
    assert taken.left_first == (f"{prefix}fc.weight", f"{prefix}fc.bias")
    for name, value in pooled.network.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_a_pooled_transformers_weights_of_another_image_size_are_converted(tmp_path: Path) -> None:
    torch.save(build_backbone(**recipe("test_vit")).state_dict(), tmp_path / "w.pth")
    pooled: Any = build_backbone(
        **recipe("test_vit", pool_stages=2, image_size=2 * SIDE), weights_path=tmp_path / "w.pth"
    )
    taken = taken_over(pooled)
    assert taken is not None
    assert (taken.how, taken.new[0]) == ("converted by timm", 2)
    assert taken.new_first == ("head.weight", "head.bias")


def test_networks_side_by_side_give_their_head_what_each_gives_alone(tmp_path: Path) -> None:
    archs = PAIR.split("+")
    files, alone = [tmp_path / f"{arch}.pth" for arch in archs], []
    images = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    for arch, file in zip(archs, files, strict=True):
        network: Any = build_backbone(**recipe(arch, pool_stages=2)).eval()
        network.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        torch.save({f"module.{k}": v for k, v in network.network.state_dict().items()}, file)
        alone.append(network)
    pair: Any = build_backbone(**recipe(PAIR, pool_stages=2), weights_path=files).eval()
    pair.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for network in (*alone, pair):
            network(images)
    torch.testing.assert_close(seen[2], torch.cat(seen[:2], dim=1))
    assert pair.widths == [width for network in alone for width in network.widths]
    taken = taken_over(pair)
    assert taken is not None
    assert (taken.how, taken.left) == ("by name", (0, 0))
    assert taken.new_first == ("head.weight", "head.bias")

    torch.save(pair.state_dict(), files[0])  # of the whole
    again = build_backbone(**recipe(PAIR, pool_stages=2), weights_path=files[0])
    assert all(torch.equal(v, pair.state_dict()[k]) for k, v in again.state_dict().items())
    maps = feature_maps(pair, images, 0)
    assert [[found.shape[1] for found, _ in of_network][-2:] for of_network in maps] == [
        [width // 2 for width in network.widths] for network in alone
    ]


@pytest.mark.parametrize(
    "files, told",
    [
        (["{0}"], r"do not fit: of the numbers below head they hold \d+%"),
        (["{0}", "{0}"], r"into resnet10t\): the weights do not fit"),
        (["{0}"] * 3, "3 files of weights, and the model has 2 networks: give one for each"),
    ],
)
def test_files_that_are_not_one_for_each_network_side_by_side_are_refused(
    files: list[str], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "w.pth"
    torch.save(build_backbone(**recipe("test_efficientnet")).state_dict(), file)
    paths = [name.format(file) for name in files]
    with pytest.raises(UserError, match=told):
        build_backbone(**recipe(PAIR, pool_stages=2), weights_path=paths)


def test_a_pooled_model_takes_over_the_head_of_another_whose_findings_agree(tmp_path: Path) -> None:
    first: Any = build_backbone(**recipe("resnet10t", pool_stages=2))
    state = {f"backbone.{name}": value for name, value in first.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    again: Any = build_backbone(
        **recipe("resnet10t", pool_stages=2), weights_path=tmp_path / "w.pth"
    )
    assert taken_over(again).new == (0, 0)
    for name, value in again.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


@pytest.mark.parametrize(
    "options, says",
    [
        ({"pool_stages": 9}, "model.pool_stages=9: ResNet has 5 stages"),
        ({"pool_stages": 0}, "model.pool_stages=0 must be"),
        ({"library": "torchvision", "arch": "resnet18", "pool_stages": 2}, "is of model=timm"),
        ({"arch": PAIR}, "networks side by side need model.pool_stages"),
        ({"arch": "resnet10t+resnet99", "pool_stages": 1}, "model.arch='resnet99' is none of"),
        ({"arch": "resnet10tt"}, "close to it: .*resnet10t"),
        ({"arch": "hf-hub:someone/something"}, "none of timm's"),
        ({"library": "keras"}, "model.library=keras is unknown; choose one of torchvision, timm"),
        ({"drop_path": 1.0}, "model.drop_path=1.0"),
        ({"arch": "mobilenetv3_small_050", "drop_path": 0.1, "hidden": [4]}, None),
        ({"library": "torchvision", "arch": "resnet18", "drop_path": 0.1}, "is of model=timm"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options: dict[str, Any], says: str | None) -> None:
    given = recipe("resnet10t") | options
    if says is None:
        build_backbone(**given)
        return
    with pytest.raises(UserError, match=says) as told:
        build_backbone(**given)
    assert "\n" not in str(told.value)


def windows() -> nn.Module:
    """Channels last; its first grid has as many channels as rows, its last 4 tokens an image."""
    timm: Any = import_module("timm")
    sizes = {"img_size": SIDE, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", in_chans=1, **sizes)
    return model


@pytest.mark.parametrize(
    "build, grids",
    [
        (lambda: build_backbone(**recipe("test_vit")), [(64, 4)]),
        (windows, [(16, 16), (32, 8), (64, 4), (128, 2)]),
    ],
    ids=["vit", "swin"],
)
def test_a_map_of_a_transformer_lies_where_the_image_differs(
    build: Callable[[], nn.Module], grids: list[tuple[int, int]]
) -> None:
    """A dot in one patch moves that patch's tokens, and no map elsewhere as much."""
    torch.manual_seed(0)
    model = build().eval()
    dark = torch.zeros(2, 1, SIDE, SIDE)
    dot = dark.clone()
    dot[..., 50:60, 5:15] = 3.0

    def maps(images: Tensor) -> list[Tensor]:
        [of_network] = feature_maps(model, images, 0)
        return [found.detach() for found, _ in of_network]

    assert [tuple(found.shape) for found in maps(dot)] == [(2, c, s, s) for c, s in grids]
    moved = (maps(dot)[0] - maps(dark)[0]).abs().sum(dim=1)[0]
    row, column = divmod(int(moved.argmax()), moved.shape[1])
    assert row in range(50 * len(moved) // SIDE, 60 * len(moved) // SIDE + 1)
    assert column in range(5 * len(moved) // SIDE, 15 * len(moved) // SIDE + 1)


def test_batch_norms_of_timm_are_those_of_all_ranks_in_a_fit_alone() -> None:
    model = build_backbone(**recipe("regnety_002"))
    before = [type(part) for part in model.modules()]
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    switch = PortableSyncBatchNorm()
    switch.apply(model)
    assert norms
    assert all(isinstance(part, SyncBatchNorm2d) for part in norms)
    images = torch.randn(2, 1, SIDE, SIDE)
    with torch.no_grad():
        synced = model.train()(images)
    switch.revert(model)
    assert [type(part) for part in model.modules()] == before
    with torch.no_grad():
        torch.testing.assert_close(model.train()(images), synced)
