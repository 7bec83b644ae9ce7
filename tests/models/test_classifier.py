"""The LightningModule: it learns, its scores are right, and it never scores what is no number."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_classifier
from fitting import batch, data, trainer
from recorded import Recorded, normalising_backbone
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from xray_lightning.data.loader import Batch
from xray_lightning.data.transforms import Normalize
from xray_lightning.errors import EXIT_RUN_FAILED, RunFailedError, UserError
from xray_lightning.findings import FINDINGS
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.gathered_outputs import finding_auroc

COUNT = len(FINDINGS)


def test_one_batch_is_learned_by_heart() -> None:
    model = tiny_classifier("resnet18")
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    whole = batch(16)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.training_step(whole, 0)
        loss.backward()
        optimizer.step()
        if loss.item() < 0.05:
            return
    pytest.fail(f"the loss is still {loss.item():.3f}")


def test_a_batch_of_one_image_too_small_for_batch_statistics_is_told_by_its_key() -> None:
    model = tiny_classifier("resnet18")
    with pytest.raises(UserError, match=r"single image.*data\.image_size=32.*data\.batch_size"):
        model.training_step(batch(1), 0)


def test_images_become_logits_and_the_backbone_sees_them_normalised() -> None:
    seen = []

    class Backbone(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return pixels.mean(dim=(1, 2, 3)).unsqueeze(1).repeat(1, COUNT)

    model = tiny_classifier(backbone=Backbone(), normalize=Normalize("imagenet"))
    images = batch(3).images
    assert model(images).shape == (3, COUNT)
    torch.testing.assert_close(seen[0], Normalize("imagenet")(images))


class Darker(nn.Module):
    """Stands for an augmentation; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[list[int]] = []

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        self.draws.append(draws.tolist())
        return images.float().square() / 255**2


def test_images_are_augmented_by_their_draws_in_training_alone() -> None:
    augment = Darker()
    model = tiny_classifier(augment=augment, normalize=Normalize("imagenet"))
    given = batch(3)
    seen = model.loss(model(given.images.float().square() / 255**2), given.targets).mean()
    torch.testing.assert_close(model.training_step(given, 0), seen)
    assert augment.draws == [[0, 1, 2]]
    model.validation_step(given, 0)
    model.test_step(given, 0)
    assert len(augment.draws) == 1


def test_a_repeated_row_counts_in_no_loss() -> None:
    model = tiny_classifier()
    padded = batch(5, repeats=2)
    alone = Batch(*(part[:3] for part in padded[:-1]), padded.scale)
    torch.testing.assert_close(model.training_step(padded, 0), model.training_step(alone, 0))
    one, two = tiny_classifier(), tiny_classifier()
    one.training_step(padded, 0)
    two.training_step(alone, 0)
    torch.testing.assert_close(one._train_sums, two._train_sums)
    assert one._train_sums[1] == 3


@pytest.mark.parametrize("columns", [COUNT, 3, 1, 0])
def test_auroc_of_each_finding_is_sklearns_and_nan_where_there_is_one_class(columns: int) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, (50, COUNT))
    targets[:, columns:] = generator.integers(0, 2, COUNT - columns)  # all zeros or all ones
    scores = generator.random((50, COUNT)).round(1)  # with ties
    answers = (torch.from_numpy(part).float() for part in (scores, targets))
    found = finding_auroc(*answers)
    assert found.shape == (COUNT,)
    for column in range(COUNT):
        if column < columns:
            expected = roc_auc_score(targets[:, column], scores[:, column])
            assert float(found[column]) == pytest.approx(expected, abs=1e-6)
        else:
            assert math.isnan(found[column])


def test_an_evaluation_gives_each_image_once_in_the_tables_order(
    phantoms: Path, tmp_path: Path
) -> None:
    model, module = tiny_classifier(), data(phantoms, tmp_path)
    for side, stage in (("val", "validate"), ("test", "test")):
        getattr(trainer(tmp_path), stage)(model, datamodule=module, verbose=False)
        outputs = model.outputs
        assert outputs is not None
        assert outputs.rows.tolist() == list(range(len(module.table(side))))
        assert (outputs.targets.numpy() == module.labels(side)).all()
        assert outputs.probabilities.shape == outputs.targets.shape
        assert outputs.losses.shape == outputs.rows.shape


class Broken(nn.Module):
    """Gives no number for the last image of each batch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(COUNT))
        self.value = value

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.weight.repeat(len(pixels), 1)
        logits[-1] = self.value
        return logits


def test_fault_55_predictions_that_are_no_numbers_are_never_scored(
    phantoms: Path, tmp_path: Path
) -> None:
    model, module = tiny_classifier(backbone=Broken(math.nan)), data(phantoms, tmp_path)
    for stage in ("validate", "test"):
        with pytest.raises(RunFailedError, match=r"no number for \d+ of \d+ images") as told:
            getattr(trainer(tmp_path), stage)(model, datamodule=module, verbose=False)
        assert told.value.exit_code == EXIT_RUN_FAILED
        assert model.outputs is None


def test_dataset_statistics_are_those_of_the_training_images_and_are_saved(
    phantoms: Path, tmp_path: Path
) -> None:
    model = tiny_classifier(normalize=Normalize("dataset"))
    module = data(phantoms, tmp_path)
    trainer(tmp_path).fit(model, datamodule=module)
    mean, std = module.pixel_statistics()
    state = model.state_dict()
    assert float(state["normalize.mean"]) == pytest.approx(mean)
    assert float(state["normalize.std"]) == pytest.approx(std)


@pytest.mark.parametrize(
    "parts, told",
    [
        ({"optimizer": partial(torch.optim.Adam, lr=-1.0)}, "optimizer: Invalid learning rate"),
        ({"optimizer": partial(torch.optim.Adam, rate=1)}, "optimizer: .*unexpected keyword"),
        ({"scheduler": {"interval": "epoch", "scheduler": StepLR}}, "scheduler: "),
    ],
)
def test_what_torch_refuses_is_told_by_the_group_that_it_came_from(
    parts: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        tiny_classifier(**parts).configure_optimizers()


def test_the_plain_scheduler_is_stepped_as_its_own_file_says(
    phantoms: Path, tmp_path: Path
) -> None:
    step = partial(StepLR, step_size=1, gamma=0.1)
    model = tiny_classifier(scheduler={"interval": "epoch", "scheduler": step})
    fitted = trainer(tmp_path)
    fitted.fit(model, datamodule=data(phantoms, tmp_path))
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-4)


# A step that is captured once and replayed; on a CPU, with a recorder that runs it again.


def trained(*, steps: int, graph: bool) -> tuple[Classifier, list[float]]:
    """A tiny model after some steps of SGD on batches of 6 and, each third, of 4 images."""
    model = tiny_classifier(backbone=normalising_backbone()).train()
    step = Recorded(model, lambda b: (model._loss(b),) * 2, state=[model._train_sums])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for number in range(steps):
        given = batch(4 if number % 3 == 2 else 6, repeats=number % 2)
        if graph:
            loss = step(given)
        else:
            optimizer.zero_grad()
            loss = model._loss(given)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_a_replayed_step_trains_as_an_ordinary_one_does() -> None:
    Recorded.records = 0
    ordinary, expected = trained(steps=7, graph=False)
    replayed, losses = trained(steps=7, graph=True)
    assert losses == expected
    assert Recorded.records == 2  # one for each batch size, the tail's too
    states = zip(ordinary.state_dict().values(), replayed.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)
    assert torch.equal(ordinary._train_sums, replayed._train_sums)


def test_a_capture_leaves_running_statistics_and_the_epochs_loss_alone() -> None:
    model = tiny_classifier(backbone=normalising_backbone()).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step = Recorded(model, lambda b: (model._loss(b),) * 2, state=[model._train_sums])
    step._capture(batch(6))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model._train_sums.tolist() == [0, 0]
