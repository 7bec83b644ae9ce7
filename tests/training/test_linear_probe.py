"""Linear probe: scikit-learn as its judge, features of evaluation, once a run."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from fitting import data, trainer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from xray_lightning.data.folds import stratified_folds
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import build_backbone
from xray_lightning.models.fine_tuning import FineTuning
from xray_lightning.training import linear_probe
from xray_lightning.training.linear_probe import PENALTIES, LinearProbe, best_fit, linear_head


def drawn(images: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N, 6) on scales of their own, and targets (N, 2) that depend on them."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(images, 6))
    logits = features @ np.random.default_rng(0).normal(size=(6, 2)) - 1
    targets = draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    scaled = features * [1, 10, 0.1, 3, 1, 1] + [0, 5, 0, -2, 0, 0]
    return torch.from_numpy(scaled).float(), torch.from_numpy(targets).float()


def thirds(images: int) -> Tensor:
    """Folds in which an image and the next but two stand together."""
    return torch.arange(images) % 3


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_the_fit_and_its_score_out_of_fold_are_scikit_learns(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_probe, "PENALTIES", (penalty,))
    train, other = drawn(300, seed=1), drawn(200, seed=2)
    folds = thirds(300)
    fit = best_fit(*train, folds=folds)

    def judged(rows: Tensor, number: int, features: Tensor) -> Any:
        mean, scale = train[0][rows].mean(0).double(), train[0][rows].std(0, correction=0)
        judge = LogisticRegression(C=1 / (len(rows) * penalty), solver="newton-cholesky", tol=1e-8)
        judge.fit(((train[0][rows] - mean) / scale).numpy(), train[1][rows, number].numpy())
        return judge.decision_function(((features - mean) / scale).numpy())

    areas = []
    for number in range(2):
        expected = judged(torch.arange(300), number, other[0])
        np.testing.assert_allclose(fit.logits(other[0])[:, number], expected, atol=2e-3)
        for fold in range(3):
            held = folds == fold
            scores = judged((~held).nonzero().squeeze(1), number, train[0][held])
            areas.append(roc_auc_score(train[1][held, number], scores))
    assert fit.auroc == pytest.approx(np.mean(areas), abs=1e-3)


def test_the_penalty_is_that_which_is_best_out_of_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = drawn(100, seed=1)
    noise = torch.randn(100, 300, generator=torch.Generator().manual_seed(0))
    train = torch.cat([features, noise], 1), targets
    chosen = best_fit(*train, folds=thirds(100))
    found = {}
    for penalty in PENALTIES:
        monkeypatch.setattr(linear_probe, "PENALTIES", (penalty,))
        found[penalty] = best_fit(*train, folds=thirds(100)).auroc
    assert chosen.auroc == pytest.approx(max(found.values()), abs=2e-3)
    assert found[chosen.penalty] == pytest.approx(max(found.values()), abs=2e-3)
    assert min(found.values()) < max(found.values()) - 0.005


def test_groups_of_features_weigh_alike_whatever_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A feature that stands there four times is as one of twice its deviation."""
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.1,))
    features, targets = drawn(200, seed=1)
    repeated = torch.cat([features[:, :1], features[:, 1:2].expand(-1, 4)], dim=1)
    fit = best_fit(repeated, targets, folds=thirds(200), widths=[1, 4])
    plain = best_fit(features[:, :2], targets, folds=thirds(200))
    alike = fit.weight[:, 1:].sum(dim=1)
    # Both groups' variances are 2.5: a penalty of 0.1 on them is one of 0.04 on variances of 1.
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.04,))
    expected = best_fit(features[:, :2], targets, folds=thirds(200))
    torch.testing.assert_close(alike, expected.weight[:, 1], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(fit.weight[:, 0], expected.weight[:, 0], rtol=1e-2, atol=1e-4)
    assert not torch.allclose(plain.weight, expected.weight, rtol=1e-2)


@pytest.mark.parametrize("folds", [thirds(50), torch.zeros(50, dtype=torch.int64)], ids=len)
def test_without_a_score_out_of_fold_the_largest_penalty_is_taken(folds: Tensor) -> None:
    features, targets = drawn(50, seed=1)
    fit = best_fit(features, torch.zeros_like(targets), folds=folds)
    assert fit.penalty == max(PENALTIES)
    assert np.isnan(fit.auroc)
    assert fit.weight.isfinite().all()


def backbone(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, 14)),
    )
    model.head_prefix = "6."  # type: ignore[assignment]
    return model


def test_a_fit_begins_with_the_head_of_features_as_evaluation_has_them(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = partial(torch.optim.SGD, lr=1e-12)
    model = tiny_classifier(backbone=backbone(), optimizer=optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = data(phantoms, tmp_path)
    caplog.set_level(logging.INFO)
    trainer(tmp_path, LinearProbe()).fit(model, datamodule=images)

    fresh = tiny_classifier(backbone=backbone()).eval()
    body = fresh.backbone[:-1]  # type: ignore[index]
    table = images.table("train")
    batches = list(images.in_order("train"))
    with torch.no_grad():
        features = torch.cat([body(fresh.normalize(batch.images)) for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert len(features) == len(table)
    labels, patients = targets.numpy().astype(bool), table["patient_id"].to_numpy(dtype=str)
    folds = torch.from_numpy(stratified_folds(labels, patients, folds=5, seed=0))
    fit = best_fit(features, targets, folds=folds)
    after = model.state_dict()
    torch.testing.assert_close(after["backbone.6.weight"], fit.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after["backbone.6.bias"], fit.bias, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after["backbone.0.weight"], before["backbone.0.weight"])
    assert f"linear probe: macro AUROC {fit.auroc:.4f} out of fold, of 32 features" in caplog.text


@pytest.mark.parametrize(
    ("tuning", "fixed"),
    [
        (FineTuning(), False),
        (FineTuning(probe=True), True),
        (FineTuning(probe=True, freeze_norm=False), False),
        (FineTuning(freeze_norm=True), True),
    ],
    ids=str,
)
def test_batch_norms_keep_their_statistics_beside_a_probe_or_where_that_is_asked(
    tuning: FineTuning, fixed: bool, phantoms: Path, tmp_path: Path
) -> None:
    model = tiny_classifier(backbone=backbone(), fine_tuning=tuning)
    trainer(tmp_path, epochs=2).fit(model, datamodule=data(phantoms, tmp_path))
    norm = model.backbone[1]  # type: ignore[index]
    assert torch.equal(norm.running_mean, torch.zeros(8)) is fixed
    assert torch.equal(norm.running_var, torch.ones(8)) is fixed
    assert not torch.equal(norm.weight, torch.ones(8))  # trained all the same


def test_a_resumed_fit_keeps_the_head_that_it_has(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(name: str, epochs: int, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        model = tiny_classifier(backbone=backbone(dropout=0))
        images = data(phantoms, tmp_path)
        fit = trainer(tmp_path / name, LinearProbe(), epochs=epochs)
        fit.fit(model, datamodule=images, ckpt_path=ckpt_path, weights_only=True)
        return {key: value.clone() for key, value in model.state_dict().items()}

    whole = fitted("whole", 2)
    fitted("cut", 1)

    def refuse(*_: object) -> None:
        raise AssertionError("fitted a second time")

    monkeypatch.setattr(linear_probe, "best_fit", refuse)
    resumed = fitted("cut", 2, tmp_path / "cut" / "last.ckpt")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_head_of_several_layers_and_a_word_for_yes_are_refused() -> None:
    assert isinstance(linear_head(build_backbone(arch="resnet18", dropout=0.1)), nn.Linear)
    with pytest.raises(UserError, match=r"head of one linear layer; take model\.hidden=\[\]"):
        linear_head(build_backbone(arch="resnet18", hidden=[8]))
    with pytest.raises(UserError, match="head of one linear layer"):
        linear_head(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"fine_tuning\.probe=yes must be true or false"):
        FineTuning(probe="yes")  # type: ignore[arg-type]
