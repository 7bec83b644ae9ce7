"""Several checkpoints that answer as one: which may, and what they answer."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_classifier

from xray_lightning.data.loader import Batch
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.ensemble import (
    Member,
    average,
    member_logits,
    probabilities_of,
    read_members,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.classifier import Classifier

COUNT, SIDE = len(FINDINGS), 32
RECIPE = {
    "model": {"arch": "resnet18", "hidden": [], "dropout": 0.0},
    "normalize": "per_image",
    "image_size": SIDE,
    "split_sha256": "ab" * 32,
}
CPU = torch.device("cpu")


def checkpoint(path: Path, *, seed: int = 0, **recipe: Any) -> Path:
    """A checkpoint of a ResNet18 that has learned nothing."""
    built: Classifier = tiny_classifier(recipe=RECIPE | recipe)
    torch.manual_seed(seed)
    built.backbone = build_backbone(arch="resnet18").to(memory_format=torch.channels_last)
    content: dict[str, Any] = {"state_dict": built.state_dict()}
    built.on_save_checkpoint(content)
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("members")
    for seed in range(2):
        checkpoint(root / f"{seed}.ckpt", seed=seed)
    return root


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def batches(count: int, *, size: int = 3) -> Iterator[Batch]:
    """One side in an order of its own, as training images come."""
    pixels = images(count)
    for rows in torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(size):
        yield Batch(pixels[rows], torch.zeros(len(rows), COUNT), rows, rows, 1.0)


def answers(members: list[Member], count: int = 7) -> np.ndarray[Any, Any]:
    done: list[int] = []
    logits = member_logits(
        members,
        batches(count),
        images=count,
        device=CPU,
        precision="32-true",
        advance=done.append,
    )
    assert sum(done) == count
    return logits


def test_each_member_answers_to_each_image_in_the_order_of_the_table(folder: Path) -> None:
    members = read_members([folder / "0.ckpt", folder / "1.ckpt"])
    logits = answers(members)
    assert logits.shape == (2, 7, COUNT)
    with torch.inference_mode():
        for member, found in zip(members, logits, strict=True):
            assert np.allclose(found, member.model(images(7)).numpy(), atol=1e-5)
    assert not np.allclose(logits[0], logits[1], atol=1e-3)


def test_a_checkpoint_is_known_by_what_it_holds(folder: Path) -> None:
    member = Member.read(folder / "0.ckpt")
    assert member.sha256 == hashlib.sha256((folder / "0.ckpt").read_bytes()).hexdigest()
    assert member.described["split_sha256"] == "ab" * 32


def test_probabilities_or_logits_are_averaged() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (3, 5, COUNT)).astype(np.float32)
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.allclose(average(logits, of="probabilities"), sigmoid.mean(axis=0), atol=1e-7)
    means = logits.astype(np.float64).mean(axis=0)
    assert np.allclose(average(logits, of="logits"), 1 / (1 + np.exp(-means)), atol=1e-7)
    assert average(logits, of="logits").dtype == np.float32


def test_one_checkpoint_alone_is_not_changed_by_averaging() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (1, 9, COUNT)).astype(np.float32)
    for of in ("probabilities", "logits"):
        assert np.array_equal(average(logits, of=of), probabilities_of(logits[0]))
    assert np.array_equal(probabilities_of(logits[0]), torch.from_numpy(logits[0]).sigmoid())


def test_probabilities_of_extreme_logits_stay_probabilities() -> None:
    logits = np.array([[[500.0, -500.0]], [[400.0, -1e4]]], dtype=np.float32)
    for of in ("probabilities", "logits"):
        assert average(logits, of=of).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("split_sha256", "cd" * 32, "split_sha256 is abab"),
        ("image_size", 64, "image_size is 32 in .* and 64 in"),
        ("normalize", "imagenet", "normalize is per_image in .* and imagenet in"),
    ],
)
def test_checkpoints_that_were_not_trained_alike_are_refused_with_both_values(
    key: str, value: Any, shown: str, folder: Path, tmp_path: Path
) -> None:
    other = checkpoint(tmp_path / "other.ckpt", seed=1, **{key: value})
    with pytest.raises(UserError, match=shown) as refused:
        read_members([folder / "0.ckpt", other])
    for part in (str(value), str(folder / "0.ckpt"), str(other)):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_checkpoint_given_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes((folder / "0.ckpt").read_bytes())
    with pytest.raises(UserError, match="are the same checkpoint"):
        read_members([folder / "0.ckpt", folder / "1.ckpt", copy])


def test_a_member_that_gives_no_number_is_named(folder: Path) -> None:
    members = read_members([folder / "0.ckpt", folder / "1.ckpt"])
    members[1].model.backbone.fc.bias.data[3] = math.nan
    with pytest.raises(RunFailedError, match=r"1\.ckpt gives no number for 7 of 7 images"):
        answers(members)


def test_half_precision_answers_nearly_alike(folder: Path) -> None:
    members = read_members([folder / "0.ckpt"])
    half = member_logits(
        members,
        batches(6),
        images=6,
        device=CPU,
        precision="bf16-mixed",
        advance=lambda done: None,
    )
    full = answers(members, 6)
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    assert np.allclose(half, full, atol=0.1)
