"""A model built again from its checkpoint answers as the classifier that was saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_classifier
from torch import Tensor

from xray_lightning.data.transforms import NORMALIZATIONS, Normalize
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.checkpoint import read_checkpoint, restore
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.losses import WeightedBinaryCrossEntropy

SIDE = 64
PLAIN = {"arch": "resnet18", "hidden": [], "dropout": 0.0}


def images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def classifier(
    model: dict[str, Any] = PLAIN, *, normalize: str = "per_image", channels_last: bool = True
) -> Classifier:
    """A classifier whose batch norms have seen something, so that none of them is the identity."""
    normalizer = Normalize(normalize)
    normalizer.fit_to(mean=0.41, std=0.23)
    built = tiny_classifier(
        backbone=build_backbone(**model),
        normalize=normalizer,
        loss=WeightedBinaryCrossEntropy(),  # has state of its own, which restoring leaves out
        recipe={"model": model, "normalize": normalize, "image_size": SIDE},
        channels_last=channels_last,
    )
    with torch.no_grad():
        built.train()
        built(images())
    return built.eval()


def saved(built: Classifier, path: Path) -> Path:
    checkpoint: dict[str, Any] = {"state_dict": built.state_dict()}
    built.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def changed(path: Path, **recipe: Any) -> dict[str, Any]:
    """The checkpoint with other entries in its recipe."""
    checkpoint = read_checkpoint(path)
    checkpoint["xray"] |= recipe
    return checkpoint


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(classifier(), tmp_path_factory.mktemp("restore") / "best.ckpt")


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"arch": "resnet18", "hidden": [32, 16], "dropout": 0.2}},
        {"model": PLAIN | {"arch": "densenet121"}},
        {"model": PLAIN | {"arch": "test_resnet", "library": "timm"}},
        {"model": PLAIN | {"arch": "test_vit", "library": "timm", "image_size": SIDE}},
        *({"normalize": normalize} for normalize in NORMALIZATIONS),
        {"channels_last": False},
    ],
    ids=str,
)
def test_a_restored_model_equals_the_classifier_bit_for_bit(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    built = classifier(**parts)
    path = saved(built, tmp_path / "best.ckpt")
    layout = {key: value for key, value in parts.items() if key == "channels_last"}
    restored = restore(read_checkpoint(path), source=path, **layout)
    assert torch.equal(restored.normalize.mean, built.normalize.mean)
    with torch.inference_mode():
        expected, found = built(images()), restored(images())
    assert found.shape == (5, 14)
    assert expected.std() > 0
    assert torch.equal(found, expected)


def test_a_restored_model_only_answers(file: Path) -> None:
    restored = restore(read_checkpoint(file), source=file)
    assert restored.image_size == SIDE
    assert not any(part.training for part in restored.modules())
    assert not any(weights.requires_grad for weights in restored.parameters())
    assert not any(weights.is_meta for weights in restored.state_dict().values())


def test_restoring_draws_no_random_number(file: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    restore(read_checkpoint(file), source=file)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_in_half_precision_answer_in_float32(file: Path) -> None:
    checkpoint = read_checkpoint(file)
    checkpoint["state_dict"] = {
        key: value.half() if value.is_floating_point() else value
        for key, value in checkpoint["state_dict"].items()
    }
    with torch.inference_mode():
        assert restore(checkpoint, source=file)(images()).dtype == torch.float32


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"model": PLAIN | {"arch": "resnet34"}}, "weights do not fit"),
        ({"model": PLAIN | {"hidden": [8]}}, "weights do not fit"),
        ({"model": PLAIN | {"arch": "alexnet"}}, "model.arch='alexnet' is unknown"),
        ({"model": PLAIN | {"weights_path": "/etc/passwd"}}, "is not described by arch"),
        ({"model": PLAIN | {"pretrained": True}}, "is not described by arch"),
        ({"model": PLAIN | {"dropout": "much"}}, "no model can be built"),
        ({"model": "resnet18"}, "is not described by arch"),
        ({"model": {}}, "no model can be built"),
        ({"normalize": "sometimes"}, "data.normalize=sometimes is unknown"),
        ({"image_size": 0}, "image_size, 0, is no size"),
    ],
)
def test_a_recipe_that_is_not_the_weights_own_is_refused_in_one_line(
    recipe: dict[str, Any], fault: str, file: Path
) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        restore(changed(file, **recipe), source=file)
    text = str(refused.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    assert len(text) < 500 + len(str(file))


@pytest.mark.parametrize("key", ["model", "normalize", "image_size"])
def test_an_incomplete_recipe_is_refused(key: str, file: Path) -> None:
    checkpoint = read_checkpoint(file)
    del checkpoint["xray"][key]
    with pytest.raises(UserError, match=f"does not say its {key}"):
        restore(checkpoint, source=file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("backbone.fc.bias"), r"backbone\.fc\.bias"),
        (lambda state: state.update({"backbone.extra": torch.ones(1)}), r"backbone\.extra"),
        (lambda state: state.update({"backbone.fc.bias": "text"}), "weights do not fit"),
    ],
)
def test_missing_and_additional_weights_are_refused_by_name(
    change: Any, told: str, file: Path
) -> None:
    checkpoint = read_checkpoint(file)
    change(checkpoint["state_dict"])
    with pytest.raises(UserError, match=told):
        restore(checkpoint, source=file)


def test_a_checkpoint_without_weights_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        restore({"xray": read_checkpoint(file)["xray"]}, source=file)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_classifier_loads_from_its_checkpoint_alone(normalize: str, tmp_path: Path) -> None:
    built = classifier(normalize=normalize)
    built.loss.fit_to(positives=torch.arange(14.0), images=20)
    path = saved(built, tmp_path / "a.ckpt")
    loaded = Classifier.load_from_checkpoint(path)
    assert loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.recipe == built.recipe
    assert loaded.findings == built.findings
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), built(images()))
    weighted = Classifier.load_from_checkpoint(path, loss=WeightedBinaryCrossEntropy())
    assert torch.equal(weighted.loss.pos_weight, built.loss.pos_weight)  # of the same kind


@pytest.mark.parametrize("entry", [{"arch": "resnet18", "_target_": "os.system"}, {"arch": "os"}])
def test_fault_20_loading_a_classifier_builds_nothing_that_a_checkpoint_names(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(changed(saved(classifier(), path), model=entry), path)
    with pytest.raises(UserError, match=r"not described by|unknown"):
        Classifier.load_from_checkpoint(path)
    with pytest.raises(UserError, match="weights_only must be true"):
        Classifier.load_from_checkpoint(path, weights_only=False)
