"""Losses: their formulas, one value per image, and finite numbers at any logit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xray_lightning.errors import UserError
from xray_lightning.models.losses import (
    Asymmetric,
    BinaryCrossEntropy,
    FindingsLoss,
    Focal,
    WeightedBinaryCrossEntropy,
)


def fitted() -> WeightedBinaryCrossEntropy:
    loss = WeightedBinaryCrossEntropy()
    loss.fit_to(positives=torch.arange(14) * 10, images=1000)
    return loss


LOSSES = [
    BinaryCrossEntropy(),
    fitted(),
    Focal(),
    Focal(alpha=-1, gamma=0),
    Asymmetric(),
    Asymmetric(gamma_pos=1, gamma_neg=4, clip=0),
    Asymmetric(gamma_pos=0, gamma_neg=0, clip=0),
]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 14, generator=draw) * 3
    return logits, (torch.rand(6, 14, generator=draw) < 0.3).float()


@pytest.mark.parametrize("loss", LOSSES)
def test_there_is_one_value_per_image_that_depends_on_it_alone(
    loss: FindingsLoss, batch: tuple[Tensor, Tensor]
) -> None:
    logits, targets = batch
    whole = loss(logits, targets)
    assert whole.shape == (6,)
    assert (whole > 0).all()
    torch.testing.assert_close(loss(logits[2:3], targets[2:3]), whole[2:3])
    torch.testing.assert_close(loss(logits, targets.to(torch.uint8)), whole)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4, 6e4])
def test_large_logits_give_finite_losses_and_gradients_under_autocast(
    loss: FindingsLoss, dtype: torch.dtype, size: float
) -> None:
    logits = torch.tensor([size, -size]).repeat(7)[None].to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = torch.cat([loss(logits, torch.full((1, 14), t)) for t in (0.0, 1.0)])
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_bce_is_the_mean_over_findings(batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(BinaryCrossEntropy()(logits, targets).mean(), expected)


def test_gamma_0_is_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    expected = BinaryCrossEntropy()(*batch)
    torch.testing.assert_close(Focal(alpha=-1, gamma=0)(*batch), expected)
    torch.testing.assert_close(Asymmetric(gamma_pos=0, gamma_neg=0, clip=0)(*batch), expected)


def test_asymmetric_with_equal_gammas_and_no_clip_is_focal(batch: tuple[Tensor, Tensor]) -> None:
    focal = Focal(alpha=-1, gamma=2)(*batch)
    torch.testing.assert_close(Asymmetric(gamma_pos=2, gamma_neg=2, clip=0)(*batch), focal)


def test_asymmetric_follows_its_formula() -> None:
    loss = Asymmetric(gamma_pos=1, gamma_neg=4, clip=0.05)
    p = 0.7
    logit = torch.full((1, 1), math.log(p / (1 - p)))
    positive = -(1 - p) * math.log(p)
    negative = -((p - 0.05) ** 4) * math.log(1 - (p - 0.05))
    assert float(loss(logit, torch.ones(1, 1))) == pytest.approx(positive, rel=1e-5)
    assert float(loss(logit, torch.zeros(1, 1))) == pytest.approx(negative, rel=1e-5)


def test_a_negative_below_the_clip_costs_nothing() -> None:
    logit = torch.full((1, 1), -4.0, requires_grad=True)  # p = 0.018
    loss = Asymmetric(clip=0.05)(logit, torch.zeros(1, 1))
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert logit.grad is not None
    assert float(logit.grad) == 0


def test_fault_56_pos_weight_is_finite_for_every_count() -> None:
    loss = WeightedBinaryCrossEntropy(max_weight=50, findings=5)
    loss.fit_to(positives=torch.tensor([0, 1, 200, 500, 1000]), images=1000)
    assert loss.pos_weight.tolist() == [1, 50, 4, 1, 1]


def test_weighted_bce_uses_the_weights(batch: tuple[Tensor, Tensor]) -> None:
    loss = fitted()
    expected = F.binary_cross_entropy_with_logits(
        *batch, pos_weight=loss.pos_weight, reduction="none"
    ).mean(dim=1)
    torch.testing.assert_close(loss(*batch), expected)


def test_weighted_bce_before_fit_to_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="fit_to"):
        WeightedBinaryCrossEntropy()(*batch)


def test_pos_weight_travels_in_the_state_dict(batch: tuple[Tensor, Tensor]) -> None:
    saved, loaded = fitted(), WeightedBinaryCrossEntropy()
    loaded.load_state_dict(saved.state_dict())
    torch.testing.assert_close(loaded(*batch), saved(*batch))


def test_counts_of_other_findings_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        WeightedBinaryCrossEntropy().fit_to(positives=torch.ones(13), images=20)


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: WeightedBinaryCrossEntropy(max_weight=0), "max_weight=0"),
        (lambda: Focal(alpha=2), "alpha=2"),
        (lambda: Focal(gamma=-1), "gamma=-1"),
        (lambda: Asymmetric(gamma_neg=0.5), "gamma_neg=0.5"),
        (lambda: Asymmetric(clip=1), "clip=1"),
    ],
)
def test_an_option_out_of_range_is_refused(build: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()  # type: ignore[operator]
