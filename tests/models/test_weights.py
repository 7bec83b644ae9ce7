"""Weights of a file: every format is read without running code, and fitted by what it holds."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Canary, tiny_classifier
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone, taken_over
from xray_lightning.models.weights_file import PATHOLOGIES
from xray_lightning.models.weights_transfer import TakenOver

ARCH = "resnet18"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """torchvision's own, of three channels and 1000 classes."""
    torch.manual_seed(3)
    made: dict[str, Tensor] = get_model(ARCH, weights=None).state_dict()
    return made


def taken_from(path: Path, **further: Any) -> tuple[nn.Module, TakenOver]:
    model = build_backbone(**({"arch": ARCH, "weights_path": path} | further))
    taken = taken_over(model)
    assert taken is not None
    return model, taken


def radimagenet_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its layers by their places: `backbone.0.weight`, `backbone.4.0.conv1.weight`; no head."""
    places = {"conv1": 0, "bn1": 1} | {f"layer{number}": number + 3 for number in range(1, 5)}
    return {
        f"backbone.{places[key.partition('.')[0]]}.{key.partition('.')[2]}": value
        for key, value in state.items()
        if not key.startswith("fc.")
    }


FORMATS = {
    "torchvision": lambda state: state,
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
    "radimagenet": radimagenet_like,
    "averaged": lambda state: {"state_dict_ema": state, "state_dict": {}},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_every_format_gives_the_whole_trunk(
    kind: str, suffix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(FORMATS[kind](state), tmp_path / f"w{suffix}")
    model, taken = taken_from(tmp_path / f"w{suffix}")
    own = model.state_dict()
    for key, value in state.items():
        if not key.startswith("fc."):
            expected = value.sum(dim=1, keepdim=True) if key == "conv1.weight" else value
            assert torch.equal(own[key], expected) or key.endswith("num_batches_tracked")
    assert taken.new == (2, 14 * 513)
    assert taken.how == ("by order and shape" if kind == "radimagenet" else "by name")


def test_safetensors_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model, _ = taken_from(tmp_path / "w.safetensors")
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"not a safetensors file"):
        taken_from(tmp_path / "w.safetensors")


def test_a_checkpoint_of_ours_gives_its_findings_rows_by_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    names = ("Mass", "Cavity", "Effusion")
    built = tiny_classifier(
        backbone=build_backbone(arch=ARCH, findings=3), findings=names, recipe={"split_sha256": "a"}
    )
    content: dict[str, Any] = {"state_dict": built.state_dict()}
    built.on_save_checkpoint(content)
    content["xray"]["trained_on"] = "nih"
    torch.save(content, tmp_path / "best.ckpt")
    model, taken = taken_from(tmp_path / "best.ckpt", findings=FINDINGS)
    assert taken.findings == ("Effusion", "Mass")  # in the new model's order
    assert (taken.trained_on, taken.all_seen) == ((("nih", "a"),), ("nih",))
    theirs, ours = built.state_dict()["backbone.fc.weight"], model.state_dict()["fc.weight"]
    assert torch.equal(ours[FINDINGS.index("Mass")], theirs[0])
    assert torch.equal(ours[FINDINGS.index("Effusion")], theirs[2])


class DenseNet(nn.Module):
    """As torchxrayvision's: torchvision's features, a gray stem, 18 outputs."""

    __module__ = "torchxrayvision.models"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        net: Any = get_model("densenet121", weights=None, num_classes=len(PATHOLOGIES))
        net.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        self.features, self.classifier = net.features, net.classifier
        self.pathologies = list(PATHOLOGIES)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code for container")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_weights_of_torchxrayvision_give_rows_by_name_and_want_its_range(
    whole: bool, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state dict, or a whole pickled module as that project hands out, none of its code run."""
    module = ModuleType("torchxrayvision")
    models = ModuleType("torchxrayvision.models")
    models.DenseNet = DenseNet  # type: ignore[attr-defined]
    theirs = DenseNet()
    path = tmp_path / "xrv.pt"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchxrayvision", module)
        patch.setitem(sys.modules, "torchxrayvision.models", models)
        content = theirs if whole else theirs.state_dict()
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    if whole and old:  # torch reads no module of before 1.6 without running it
        with pytest.raises(UserError, match="whole module: where you trust it, load it with"):
            taken_from(path, arch="densenet121", findings=FINDINGS)
        return
    model, taken = taken_from(path, arch="densenet121", findings=FINDINGS)
    assert "torchxrayvision" not in sys.modules
    assert set(taken.findings) == set(FINDINGS)
    assert taken.normalize == "symmetric"
    with torch.no_grad():
        pixels = torch.rand(2, 1, 64, 64)
        features = theirs.eval().features((2 * pixels - 1) * 1024).relu().mean(dim=(2, 3))
        logits = theirs.classifier(features)
        ours = model.eval()(2 * pixels - 1)
    order = [PATHOLOGIES.index(name) for name in FINDINGS]
    torch.testing.assert_close(ours, logits[:, order], rtol=1e-3, atol=1e-4)


class Hostile(nn.Module):
    def __init__(self, canary: Canary) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 1)
        self.canary = canary


@pytest.mark.parametrize("kind", ["whole", "plain", "pickle"])
def test_a_hostile_file_runs_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = Canary(tmp_path / "canary")
    content = Hostile(canary) if kind == "whole" else {"conv1.weight": torch.ones(1), "x": canary}
    if kind == "pickle":
        (tmp_path / "w.pt").write_bytes(pickle.dumps({"x": canary}))
    else:
        torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match="not a file of plain weights") as told:
        taken_from(tmp_path / "w.pt")
    assert "\n" not in str(told.value)
    assert not canary.path.exists()


def test_a_sidecar_names_what_the_weights_have_seen_and_its_findings(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "w.pth"
    torch.save(state, file)
    beside = tmp_path / "w.pth.json"
    beside.write_text(json.dumps({"weights_seen": ["nih", "chexpert"]}))
    assert taken_from(file)[1].seen == ("nih", "chexpert")
    assert taken_from(file, weights_seen=["imagenet"])[1].seen == ("imagenet",)
    for wrong in ("{", "[]", '{"seen": []}', '{"weights_seen": "nih"}', '{"input": "dicom"}'):
        beside.write_text(wrong)
        with pytest.raises(UserError, match=r"w.pth.json: "):
            taken_from(file)


def test_a_file_that_fits_hardly_at_all_is_refused_with_its_share(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"below fc they hold 0%, and 90% are needed; missing"):
        taken_from(tmp_path / "w.pth")
