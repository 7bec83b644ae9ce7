"""MixUp and CutMix: what is drawn, what becomes of an image, and how its loss is shared."""

import pytest
import torch
from torch import nn

from xray_lightning.data.loader import Batch
from xray_lightning.data.mixing import CutMix, Mixing, MixUp, beta_quantiles
from xray_lightning.errors import UserError
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.losses import Focal

DRAWS = torch.arange(4000)


def noise(count: int = 3, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_quantiles_are_those_of_the_beta_distribution(alpha: float) -> None:
    quantiles = beta_quantiles(alpha, 101)
    torch.manual_seed(0)
    drawn = torch.distributions.Beta(alpha, alpha).sample((200_000,))
    expected = torch.quantile(drawn, torch.linspace(0, 1, 101))
    assert (quantiles - expected)[1:-1].abs().max() < 0.01  # the ends are 0 and 1
    assert (quantiles + quantiles.flip(0) == 1).all()
    assert (quantiles.diff() >= 0).all()


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_shares_depend_on_seed_and_draw_alone(kind: type[Mixing]) -> None:
    images = noise(4000, side=4)
    mixed, own = kind(alpha=0.5, seed=3)(images, DRAWS)
    again, shares = kind(alpha=0.5, seed=3)(images[:7], DRAWS[:7])
    assert torch.equal(shares, own[:7])
    assert torch.equal(again[1:], mixed[1:7])  # the first one's neighbour is another
    assert not torch.equal(own, kind(alpha=0.5, seed=4)(images, DRAWS)[1])
    assert ((own >= 0) & (own <= 1)).all()
    assert ((mixed >= 0) & (mixed <= 1)).all()


def test_mixup_draws_shares_of_a_mean_and_a_spread_as_beta_has_them() -> None:
    _, own = MixUp(alpha=0.5)(noise(4000, side=1), DRAWS)
    assert float(own.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(own.var()) == pytest.approx(1 / 8, abs=0.005)  # 1 / (4 (2 alpha + 1))


def test_mixup_is_the_weighted_mean_with_the_image_before() -> None:
    images = noise()
    mixed, own = MixUp(alpha=1.0)(images, DRAWS[:3])
    share, pixels = own[:, None, None, None], images / 255
    assert torch.allclose(mixed, share * pixels + (1 - share) * pixels[[2, 0, 1]])


def test_cutmix_has_a_box_of_the_image_before_and_counts_its_area() -> None:
    images = torch.arange(1, 201, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 16, 16)
    mixed, own = CutMix(alpha=1.0)(images, DRAWS[:200])
    for place in range(200):
        kept = mixed[place, 0] == (place + 1) / 255
        other = mixed[place, 0] == ((place - 1) % 200 + 1) / 255
        assert (kept | other).all()
        assert float(own[place]) == pytest.approx(float(kept.float().mean()))
        rows, columns = other.any(dim=1), other.any(dim=0)
        assert torch.equal(other, rows[:, None] & columns)  # a box
        assert int(rows.int().diff().abs().sum()) <= 2  # in one piece
    assert 0.1 < float((own > 0.9).float().mean()) < 0.5


def test_a_batch_of_one_image_stays_as_it_is() -> None:
    for kind in (MixUp, CutMix):
        mixed, _ = kind(alpha=1.0)(noise(1), DRAWS[:1])
        assert torch.allclose(mixed, noise(1) / 255)


def test_a_loss_is_shared_as_the_images_are_whatever_the_loss() -> None:
    torch.manual_seed(0)
    model = Classifier(
        backbone=nn.Sequential(nn.Flatten(), nn.Linear(64, 14)),
        loss=Focal(gamma=2.0, alpha=0.25),
        mixing=MixUp(alpha=1.0),
    )
    targets = torch.randint(0, 2, (3, 14)).float()
    rows = torch.tensor([0, 1, 2])
    batch = Batch(noise(), targets, rows, DRAWS[:3], 1 / 3)
    loss = model._loss(batch)
    images, own = MixUp(alpha=1.0)(noise(), DRAWS[:3])
    logits = model(images)
    expected = own * model.loss(logits, targets)
    expected += (1 - own) * model.loss(logits, targets[[2, 0, 1]])
    assert float(loss.detach()) == pytest.approx(float(expected.mean().detach()), rel=1e-5)


@pytest.mark.parametrize("alpha", [0, -1, True, "1", float("nan"), 101])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"mixing\.alpha=.* must be a number above 0"):
        MixUp(alpha=alpha)
