"""A step that is captured once and replayed; on a CPU, with a recorder that runs it again."""

import torch
from conftest import tiny_classifier
from recorded import Recorded, normalising_backbone
from test_classifier import batch

from xray_lightning.models.classifier import Classifier


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
