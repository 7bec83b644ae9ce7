"""What was fitted goes into the checkpoint, whole or not at all, and changes nothing else in it."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from predicted import table

from xray_lightning import files as atomic
from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.fitted_in_checkpoint import describe_best, fitted_of
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.training.callbacks import AtomicCheckpointIO


def trainer(epochs: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def data(phantoms: Path, cache: Path) -> XrayDataModule:
    return XrayDataModule(
        name="phantom", root=str(phantoms), cache_dir=str(cache), image_size=32, batch_size=16
    )


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an epoch's training with Adam, and what layouts a model may add."""
    folder = tmp_path_factory.mktemp("trained")
    fit = trainer(1)
    fit.fit(tiny_classifier(), datamodule=data(phantoms, folder / "cache"))
    fit.save_checkpoint(folder / "best.ckpt")
    checkpoint = read_checkpoint(folder / "best.ckpt")
    whole = torch.arange(24.0)
    checkpoint["layouts"] = {
        "channels_last": whole.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "shared": [whole, whole[3:9]],
        "half": torch.tensor([1.0, float("nan"), float("-inf")], dtype=torch.bfloat16),
        "order": {"b": 1, "a": (True, None, 0.1, "text")},
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.fixture
def best(trained: Path, tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    path.write_bytes(trained.read_bytes())
    return path


VAL = table(seed=1).assign(split="val", label_Hernia=0)
POINTS = OperatingRule("sensitivity", 0.9).fit(VAL)
CALIBRATION = Calibrator("platt").fit(VAL)


def leaves(content: Any, at: str = "") -> list[tuple[str, Any]]:
    """Every value of nested containers in its order, with its place and type; tensors as bits."""
    if isinstance(content, dict):
        nested = [leaf for key, item in content.items() for leaf in leaves(item, f"{at}.{key}")]
        return [(at, type(content)), *nested]
    if isinstance(content, list | tuple):
        nested = [leaf for i, item in enumerate(content) for leaf in leaves(item, f"{at}[{i}]")]
        return [(at, type(content)), *nested]
    if isinstance(content, torch.Tensor):
        bits = content.contiguous().reshape(-1).view(torch.uint8).tolist()
        shape = tuple(content.shape), content.stride(), content.storage_offset()
        return [(at, (content.dtype, shape, content.requires_grad, bits))]
    return [(at, (type(content), content))]


def test_nothing_but_the_description_changes(best: Path) -> None:
    before = read_checkpoint(best)
    describe_best(best, operating_points=POINTS, calibration=CALIBRATION)
    after = read_checkpoint(best)
    old, new = before.pop("xray"), after.pop("xray")
    assert leaves(before) == leaves(after)
    first, second = after["layouts"]["shared"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert len(leaves(before["optimizer_states"])) > 10
    assert new == old | {
        "abstention": None,
        "thresholds": POINTS.cuts,
        "operating_points": POINTS.to_plain(),
        "calibration": CALIBRATION.to_plain(),
    }
    assert os.listdir(best.parent) == [best.name]


def test_training_goes_on_from_a_described_checkpoint_as_from_the_one_before(
    best: Path, phantoms: Path, tmp_path: Path
) -> None:
    weights = []
    for path in (best, tmp_path / "described.ckpt"):
        if path != best:
            path.write_bytes(best.read_bytes())
            describe_best(path, operating_points=POINTS, calibration=CALIBRATION)
        model = tiny_classifier()
        module = data(phantoms, tmp_path / "cache")
        trainer(2).fit(model, datamodule=module, ckpt_path=path, weights_only=True)
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
def test_what_was_fitted_is_read_back_equal(best: Path, calibration: Calibration | None) -> None:
    describe_best(best, operating_points=POINTS, calibration=calibration)
    assert POINTS.undefined  # Hernia's reason too
    assert fitted_of(read_checkpoint(best)["xray"]) == (POINTS, calibration)


def test_fitting_again_replaces_what_was_there(best: Path) -> None:
    describe_best(best, operating_points=POINTS, calibration=CALIBRATION)
    other = OperatingRule("f1").fit(VAL)
    describe_best(best, operating_points=other, calibration=None)
    described = read_checkpoint(best)["xray"]
    assert described["thresholds"] == other.cuts
    assert fitted_of(described) == (other, None)


def test_a_checkpoint_that_was_never_fitted_says_so(best: Path) -> None:
    described = read_checkpoint(best)["xray"]
    assert described["thresholds"] == dict.fromkeys(FINDINGS, 0.5)
    assert fitted_of(described) == (None, None)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_checkpoint_that_was_there(
    step: str, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = best.read_bytes()
    monkeypatch.setattr(atomic.os, step, no_space)
    with pytest.raises(RunFailedError, match=r"best\.ckpt cannot be written .*untouched"):
        describe_best(best, operating_points=POINTS, calibration=CALIBRATION)
    monkeypatch.undo()
    assert best.read_bytes() == before
    assert os.listdir(best.parent) == [best.name]


def test_a_file_that_is_no_checkpoint_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.ckpt"
    path.write_text("notes")
    with pytest.raises(UserError, match="is damaged"):
        describe_best(path, operating_points=POINTS, calibration=None)
    assert path.read_text() == "notes"


FITTED: dict[str, Any] = {
    "thresholds": POINTS.cuts,
    "operating_points": POINTS.to_plain(),
    "calibration": CALIBRATION.to_plain(),
}


HALVES, ONES = dict.fromkeys(FINDINGS, 0.5), dict.fromkeys(FINDINGS, 1.0)
ABSENT = object()
DAMAGED: list[tuple[str, dict[str, Any], str]] = [
    ("operating_points", {"rule": "best"}, "no known rule"),
    ("operating_points", {"rule": ["youden"]}, "no known rule"),
    ("operating_points", {"rule": torch.ones(9, 2)}, "no known rule"),
    ("operating_points", {"rule": "youden"}, "no known rule"),  # which takes no target
    ("operating_points", {"images": 0}, "images is 0"),
    ("operating_points", {"images": True}, "images is True"),
    ("operating_points", {"cuts": None}, "14 findings"),
    ("operating_points", {"cuts": {"Mass": 0.5}}, "14 findings"),
    ("operating_points", {"cuts": HALVES | {"Mass": float("nan")}}, "cuts of Mass is nan"),
    ("operating_points", {"cuts": HALVES | {"Mass": 1.5}}, "cuts of Mass is 1.5"),
    ("operating_points", {"cuts": HALVES | {"Mass": "a\nb" * 99}}, "cuts of Mass is 'a"),
    ("operating_points", {"cuts": HALVES | {"Mass": np.zeros((9, 9))}}, "cuts of Mass is array"),
    ("operating_points", {"undefined": {"Cough": "it is none"}}, "undefined is"),
    ("operating_points", {"undefined": {"Mass": 1}}, "undefined is"),
    ("operating_points", {"cuts": ABSENT}, "no cuts"),
    ("operating_points", {"target": ABSENT}, "no target"),
    ("calibration", {"method": "isotonic"}, "no known method"),
    ("calibration", {"method": torch.ones(9, 2)}, "no known method"),
    ("calibration", {"images": 1.5}, "images is 1.5"),
    ("calibration", {"slope": ONES | {"Mass": 0.0}}, "slope of Mass is 0.0"),
    ("calibration", {"slope": ONES | {"Mass": -1.0}}, "slope of Mass is -1.0"),
    ("calibration", {"slope": ONES | {"Cough": 1.0}}, "14 findings"),
    ("calibration", {"slope": torch.ones(14, 2)}, "14 findings"),
    ("calibration", {"intercept": ONES | {"Mass": float("inf")}}, "intercept of Mass is inf"),
    ("calibration", {"intercept": [0.0] * 14}, "14 findings"),
    ("calibration", {"slope": ONES | {"Mass": 10**400}}, "slope of Mass is 1000"),
    ("operating_points", {"rule": "cost", "target": 10**400}, "no known rule"),
    ("calibration", {"undefined": ["Mass"]}, "undefined is"),
    ("calibration", {"slope": ABSENT}, "no slope"),
]


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("thresholds", HALVES, "thresholds are not the cuts"),
        ("thresholds", None, "thresholds are not the cuts"),
        *(("operating_points", value, "no rule") for value in ({}, 3, [], "a", torch.zeros(3, 3))),
        ("calibration", "platt", "no method"),
        *(
            (
                key,
                {k: v for k, v in (FITTED[key] | change).items() if v is not ABSENT},
                f"{key}.*{told}",
            )
            for key, change, told in DAMAGED
        ),
    ],
)
def test_damaged_values_are_refused_in_one_line(key: str, value: Any, told: str) -> None:
    assert fitted_of(FITTED) == (POINTS, CALIBRATION)
    with pytest.raises(UserError, match=told) as raised:
        fitted_of(FITTED | {key: value})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


def test_both_parts_can_stand_alone() -> None:
    assert fitted_of({"thresholds": POINTS.cuts, "operating_points": POINTS.to_plain()}) == (
        POINTS,
        None,
    )
    assert isinstance(POINTS, OperatingPoints)
    assert fitted_of({"calibration": CALIBRATION.to_plain()}) == (None, CALIBRATION)
