"""Losses: their formulas, one value per image, and finite numbers at any logit."""

import math
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xray_lightning.errors import UserError
from xray_lightning.models.losses import (
    Asymmetric,
    AucMargin,
    BinaryCrossEntropy,
    FindingsLoss,
    Focal,
    LogitAdjusted,
    WeightedBinaryCrossEntropy,
)

Loss = TypeVar("Loss", bound=FindingsLoss)


def fitted(loss: Loss) -> Loss:
    loss.fit_to(positives=torch.arange(14) * 10, images=1000)
    return loss


LOSSES = [
    BinaryCrossEntropy(),
    BinaryCrossEntropy(smoothing=0.1),
    fitted(LogitAdjusted()),
    fitted(AucMargin()),
    fitted(WeightedBinaryCrossEntropy()),
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


def test_smoothed_labels_are_a_share_of_even_chances(batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    expected = F.binary_cross_entropy_with_logits(logits, 0.9 * targets + 0.1 * 0.5)
    torch.testing.assert_close(BinaryCrossEntropy(smoothing=0.1)(*batch).mean(), expected)


def test_logits_are_adjusted_by_the_odds_of_the_training_split() -> None:
    loss = LogitAdjusted(tau=0.5, findings=4)
    loss.fit_to(positives=torch.tensor([0, 100, 500, 1000]), images=1000)
    half = 0.5 * math.log(100 / 900)
    expected = F.binary_cross_entropy_with_logits(
        torch.tensor([[1.0, 1 + half, 1.0, 1.0]]), torch.ones(1, 4)
    )
    torch.testing.assert_close(loss(torch.ones(1, 4), torch.ones(1, 4))[0], expected)


def test_auc_margin_is_libauc_s() -> None:
    """Loss and gradients of LibAUC 2.0.1, AUCMLoss(margin=0.8, imratio=p)(..., auto=False)."""
    logits = torch.tensor([[-1.5, 0.25], [2.0, -0.5], [0.5, 1.0], [-0.25, -2.0]])
    targets = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])
    loss = AucMargin(margin=0.8, findings=2)
    loss.fit_to(positives=torch.tensor([100, 300]), images=1000)
    with torch.no_grad():
        loss.a.copy_(torch.tensor([0.6, 0.4]))
        loss.b.copy_(torch.tensor([0.2, 0.5]))
        loss.alpha.copy_(torch.tensor([0.7, 0.0]))
    value = loss(logits.requires_grad_(), targets).mean()
    value.backward()
    assert float(value.detach()) == pytest.approx(-0.1700291894)
    found = [(2 * part.grad).tolist() for part in (loss.a, loss.b) if part.grad is not None]
    assert found == [
        pytest.approx([-0.1364653409, -0.1726322919], rel=1e-5),
        pytest.approx([-0.0110124517, 0.0754884630], rel=1e-5),
    ]
    assert loss.alpha.grad is not None  # of which LibAUC's optimizer goes the other way
    assert (-2 * loss.alpha.grad).tolist() == pytest.approx([-0.6274529099, -0.0421207249])
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(
        [
            *(0.0025445337, 0.0069855046, -0.0099030696, -0.0021583796),
            *(-0.0358255319, 0.0113907615, 0.0057707578, -0.0029985942),
        ],
        rel=1e-4,
    )


def test_descent_with_auc_margin_separates_the_classes_and_keeps_alpha_from_below_0() -> None:
    targets = (torch.arange(40) < 8).float()[:, None]
    logits = torch.zeros(40, 1, requires_grad=True)
    loss = AucMargin(findings=1)
    loss.fit_to(positives=torch.tensor([8]), images=40)
    groups = [{"params": [logits], "lr": 20.0}, {"params": loss.parameters(), "lr": 0.1}]
    steps = torch.optim.SGD(groups)
    with torch.no_grad():
        loss.alpha.fill_(-1)
    for _ in range(500):
        steps.zero_grad()
        loss(logits, targets).mean().backward()
        steps.step()
        assert float(loss.alpha.detach()) >= 0
    scores = logits.detach().sigmoid()[:, 0]
    assert scores[:8].min() > scores[8:].max() + 0.5
    assert float(loss.a.detach()) > float(loss.b.detach())


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
    loss = fitted(WeightedBinaryCrossEntropy())
    expected = F.binary_cross_entropy_with_logits(
        *batch, pos_weight=loss.pos_weight, reduction="none"
    ).mean(dim=1)
    torch.testing.assert_close(loss(*batch), expected)


@pytest.mark.parametrize("kind", [WeightedBinaryCrossEntropy, LogitAdjusted, AucMargin])
def test_a_loss_of_the_training_split_is_refused_before_fit_to(
    kind: type[FindingsLoss], batch: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(UserError, match="fit_to"):
        kind()(*batch)


def test_pos_weight_travels_in_the_state_dict(batch: tuple[Tensor, Tensor]) -> None:
    saved, loaded = fitted(WeightedBinaryCrossEntropy()), WeightedBinaryCrossEntropy()
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
        (lambda: BinaryCrossEntropy(smoothing=1), "smoothing=1"),
        (lambda: LogitAdjusted(tau=-1), "tau=-1"),
        (lambda: AucMargin(margin=0), "margin=0"),
    ],
)
def test_an_option_out_of_range_is_refused(build: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()  # type: ignore[operator]
