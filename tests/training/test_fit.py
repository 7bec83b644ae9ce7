"""Fitting through Lightning with our own loaders, checkpoints and callbacks, in process."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_classifier
from fitting import data, trainer
from lightning.pytorch import Callback
from recorded import Recorded, normalising_backbone

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import InterruptedRunError, UserError
from xray_lightning.models import classifier as module
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.fine_tuning import FineTuning
from xray_lightning.models.image_growth import ImageGrowth
from xray_lightning.models.schedules import warmup_cosine
from xray_lightning.training.callbacks import Throughput
from xray_lightning.training.interruption import FitClock, Interruption
from xray_lightning.training.launch import SIGNALS
from xray_lightning.training.strategies import World

PLATEAU = {
    "interval": "epoch",
    "monitor": "val/loss",
    "scheduler": partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=10.0
    ),
}
COSINE = {"interval": "step", "needs_total_steps": True, "scheduler": warmup_cosine}
ONE_CYCLE = {**COSINE, "scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3)}
SCHEDULERS = {"none": None, "cosine": COSINE, "plateau": PLATEAU}


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """One thread, so that sums come in one order; and the signal handlers put back."""
    threads = torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Seen(Callback):
    """The rows of every training step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.rows.append(tuple(batch.rows.tolist()))


class StopAt(Callback):
    """Sends this process a signal in a training step, as a cluster does that wants its node back.

    Args:
        step: during which, from 1.
        validating: in the validation after it, not in the step itself.
    """

    def __init__(
        self, *, step: int, validating: bool = False, number: int = signal.SIGTERM
    ) -> None:
        self.step, self.validating, self.number = step, validating, number

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step + 1 == self.step and not self.validating:
            self.step = 0  # a step has several batches where they are accumulated
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), self.number)
            self.validating = False


def resumed_beside_uninterrupted(
    phantoms: Path,
    tmp_path: Path,
    *,
    scheduler: str,
    stop: int,
    precision: Any,
    sampler: str,
    validating: bool = False,
    image_size: int = 32,
    make_backbone: Callable[[], torch.nn.Module] = normalising_backbone,
    **further: Any,
) -> None:
    """Assert that a run that is stopped and resumed equals one that is not, bit for bit."""

    def images() -> XrayDataModule:
        return data(phantoms, tmp_path, sampler=sampler, image_size=image_size)

    def parts() -> tuple[Classifier, Seen, Throughput]:
        backbone = make_backbone()
        model = tiny_classifier(backbone=backbone, scheduler=SCHEDULERS[scheduler], **further)
        return model, Seen(), Throughput(batch_size=16)

    whole, straight, throughput = parts()
    fit = trainer(tmp_path / "a", straight, throughput, epochs=3, precision=precision)
    fit.fit(whole, datamodule=images())

    last = tmp_path / "b" / "last.ckpt"
    stopped, before, counted = parts()
    interruption = Interruption(last.parent, checkpoint=last, world=World("none"))
    callbacks = (before, counted, StopAt(step=stop, validating=validating), interruption)
    fit = trainer(last.parent, *callbacks, epochs=3, precision=precision)
    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        fit.fit(stopped, datamodule=images())
    assert len(before.rows) == stop
    if validating:  # the epoch whose validation was stopped has no row yet
        assert len(counted.history) == stop // 4 - 1

    resumed, after, again = parts()
    fit = trainer(last.parent, after, again, epochs=3, precision=precision)
    fit.fit(resumed, datamodule=images(), ckpt_path=last, weights_only=True)
    assert before.rows + after.rows == straight.rows
    assert again.history[-1]["val_loss"] == throughput.history[-1]["val_loss"]
    assert again.history[0]["train_loss"] == pytest.approx(
        throughput.history[again.history[0]["epoch"]]["train_loss"], rel=1e-6
    )
    assert again.history[-1]["lr"] == throughput.history[-1]["lr"]
    images = {row["epoch"]: row["images"] for row in throughput.history}
    assert all(row["images"] == images[row["epoch"]] for row in again.history)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class UpAt(FitClock):
    """A clock that counts steps in place of seconds.

    Args:
        steps: after which the time is up.
    """

    def __init__(self, steps: int) -> None:
        super().__init__("00:12:00:00")
        self.steps, self.now = steps, 0

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        self.now = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {"now": self.now}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.now = state_dict["now"]

    @property
    def is_up(self) -> bool:
        return self.now >= self.steps


not_empty = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def test_a_one_cycle_run_goes_on_for_more_epochs_than_it_was_planned_for(
    phantoms: Path, tmp_path: Path
) -> None:
    def fitted(epochs: int, resume: Path | None = None) -> Any:
        model = tiny_classifier(scheduler=ONE_CYCLE)
        fit = trainer(tmp_path, epochs=epochs)
        images = data(phantoms, tmp_path)
        fit.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
        return fit

    fitted(1)
    fit = fitted(3, tmp_path / "last.ckpt")
    assert fit.global_step == 12
    (config,) = fit.lr_scheduler_configs
    assert config.scheduler.total_steps == 12


def test_a_checkpoint_of_another_split_is_not_gone_on_with(phantoms: Path, tmp_path: Path) -> None:
    split = {"split": "patient_random"}
    trainer(tmp_path).fit(tiny_classifier(), datamodule=data(phantoms, tmp_path, **split))
    other = data(phantoms, tmp_path, **split, split_seed=3)
    last = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"split .{7} is not that of the data, .{7}: it may have"):
        trainer(tmp_path, epochs=2).fit(
            tiny_classifier(), datamodule=other, ckpt_path=last, weights_only=True
        )


def test_a_stop_waits_for_the_end_of_accumulated_batches_whose_gradients_no_checkpoint_holds(
    phantoms: Path, tmp_path: Path
) -> None:
    def fitted(folder: str, *callbacks: Callback, resume: Path | None = None) -> Classifier:
        model = tiny_classifier(backbone=normalising_backbone())
        fit = trainer(tmp_path / folder, *callbacks, epochs=2, accumulate_grad_batches=3)
        images = data(phantoms, tmp_path)
        fit.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
        return model

    whole, seen, last = fitted("a"), Seen(), tmp_path / "b" / "last.ckpt"
    interruption = Interruption(last.parent, checkpoint=last, world=World("none"))
    with pytest.raises(InterruptedRunError):  # in the first of three batches
        fitted("b", seen, StopAt(step=3), interruption)
    assert len(seen.rows) == 4 + 3
    for name, value in fitted("b", resume=last).state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    ("scheduler", "stop"),  # of 4 steps an epoch: in mid-epoch, at its last step, in the second
    [("none", 2), ("none", 4), ("cosine", 6), ("plateau", 4), ("plateau", 6)],
)
@not_empty
def test_fault_22_resume_equals_an_uninterrupted_run(
    scheduler: str, stop: int, phantoms: Path, tmp_path: Path
) -> None:
    options: Any = {"precision": "32-true", "sampler": "shuffle"}
    resumed_beside_uninterrupted(phantoms, tmp_path, scheduler=scheduler, stop=stop, **options)


@pytest.mark.parametrize("stop", [2, 4, 6])  # frozen and small, as that ends, and after it
@not_empty
def test_resume_of_what_changes_by_epoch_equals_an_uninterrupted_run(
    stop: int, phantoms: Path, tmp_path: Path
) -> None:
    options: Any = {"scheduler": "cosine", "precision": "32-true", "sampler": "shuffle"}
    resumed_beside_uninterrupted(
        phantoms,
        tmp_path,
        stop=stop,
        image_size=64,
        make_backbone=pooling_backbone,
        fine_tuning=FineTuning(freeze_epochs=1),
        growth=ImageGrowth(start=32, epochs=0.5),
        **options,
    )


@pytest.mark.parametrize(("scheduler", "stop"), [("none", 4), ("plateau", 8)])
@not_empty
def test_fault_22_resume_of_a_run_stopped_in_a_validation_equals_an_uninterrupted_run(
    scheduler: str, stop: int, phantoms: Path, tmp_path: Path
) -> None:
    options: Any = {"precision": "32-true", "sampler": "shuffle", "validating": True}
    resumed_beside_uninterrupted(phantoms, tmp_path, scheduler=scheduler, stop=stop, **options)


@pytest.mark.parametrize("stop", [3, 4])  # in mid-epoch, and at its end
@not_empty
def test_a_fit_whose_time_is_up_ends_validated_and_goes_on_as_an_uninterrupted_one(
    stop: int, phantoms: Path, tmp_path: Path
) -> None:
    def fitted(name: str, seen: Seen, steps: int, *, ckpt_path: Path | None = None) -> Any:
        last, model = tmp_path / name / "last.ckpt", tiny_classifier()
        clock, throughput = UpAt(steps), Throughput(batch_size=16)
        interruption = Interruption(last.parent, checkpoint=last, world=World("none"), clock=clock)
        fit = trainer(last.parent, seen, throughput, clock, interruption, epochs=3)
        images = data(phantoms, tmp_path)
        fit.fit(model, datamodule=images, ckpt_path=ckpt_path, weights_only=True)
        return model.state_dict(), [row["epoch"] for row in throughput.history]

    whole, first, second = Seen(), Seen(), Seen()
    expected, _ = fitted("whole", whole, 99)
    _, epochs = fitted("cut", first, stop)
    assert len(first.rows) == stop
    assert epochs == [0]  # with the scores of a validation
    last = tmp_path / "cut" / "last.ckpt"
    _, epochs = fitted("cut", Seen(), stop, ckpt_path=last)
    assert epochs == []  # no time is left, and nothing is trained
    found, epochs = fitted("cut", second, 99, ckpt_path=last)
    assert epochs[-1] == 2
    assert first.rows + second.rows == whole.rows
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4, 7, 8])
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@not_empty
def test_fault_22_resume_equals_an_uninterrupted_run_whatever_is_switched(
    scheduler: str, precision: str, sampler: str, stop: int, phantoms: Path, tmp_path: Path
) -> None:
    options: Any = {"precision": precision, "sampler": sampler}
    resumed_beside_uninterrupted(phantoms, tmp_path, scheduler=scheduler, stop=stop, **options)


class Weights(Callback):
    """The state of the model at the start and after each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.states.append({key: value.clone() for key, value in module.state_dict().items()})

    on_train_epoch_end = on_fit_start


@pytest.mark.parametrize("graph", [False, True])
def test_a_frozen_backbone_keeps_its_weights_and_then_is_trained(
    graph: bool, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "StepGraph", Recorded)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.5)
    tuning = FineTuning(freeze_epochs=1)
    model = tiny_classifier(
        backbone=normalising_backbone(), optimizer=optimizer, fine_tuning=tuning
    )
    model.cuda_graph = graph
    seen = Weights()
    trainer(tmp_path, seen, epochs=2).fit(model, datamodule=data(phantoms, tmp_path))
    names = [name for name, _ in model.named_parameters()]
    moved = [
        {name for name in names if not torch.equal(before[name], after[name])}
        for before, after in pairwise(seen.states)
    ]
    assert moved == [{"backbone.3.weight", "backbone.3.bias"}, set(names)]
    statistics = "backbone.1.running_mean"
    assert not torch.equal(seen.states[0][statistics], seen.states[1][statistics])


def test_frozen_blocks_keep_their_weights_and_take_no_gradient(
    phantoms: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 8, 3), torch.nn.AdaptiveAvgPool2d(4)),
        *(torch.nn.Flatten(), torch.nn.Linear(128, 14)),
    )
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.5)
    model = tiny_classifier(
        backbone=backbone, optimizer=optimizer, fine_tuning=FineTuning(freeze_blocks=1)
    )
    needed: list[bool] = []
    backbone[1].register_forward_pre_hook(
        lambda part, given: needed.append(given[0].requires_grad) if part.training else None
    )
    seen = Weights()
    trainer(tmp_path, seen).fit(model, datamodule=data(phantoms, tmp_path))
    before, after = seen.states
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"backbone.{n}.{kind}" for n in (1, 4) for kind in ("weight", "bias")}
    assert needed
    assert not any(needed)


def test_a_backbone_that_does_not_name_its_head_cannot_be_frozen(
    phantoms: Path, tmp_path: Path
) -> None:
    model = tiny_classifier(fine_tuning=FineTuning(freeze_epochs=1))
    with pytest.raises(UserError, match="has no head_prefix"):
        trainer(tmp_path).fit(model, datamodule=data(phantoms, tmp_path))


class Sides(Callback):
    """Side of the images that the model gets in each training step."""

    def __init__(self) -> None:
        self.sides: list[int] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        def note(module: Any, given: Any) -> None:
            if module.training:
                self.sides.append(given[0].shape[-1])

        module.backbone.register_forward_pre_hook(note)


def pooling_backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 8, 3), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
    backbone = torch.nn.Sequential(*layers, torch.nn.Linear(128, 14))
    backbone.head_prefix = "3."  # type: ignore[assignment]
    return backbone


@pytest.mark.parametrize("graph", [False, True])
def test_training_images_grow_and_evaluation_sees_whole_ones(
    graph: bool, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "StepGraph", Recorded)
    model = tiny_classifier(backbone=pooling_backbone(), growth=ImageGrowth(start=32, epochs=0.7))
    model.cuda_graph = graph
    seen, whole = Sides(), []
    model.backbone.register_forward_pre_hook(
        lambda module, given: None if module.training else whole.append(given[0].shape[-1])
    )
    images = data(phantoms, tmp_path, image_size=96)
    trainer(tmp_path, seen, epochs=3).fit(model, datamodule=images)
    steps = [side for epoch in (32, 64, 96) for side in [epoch] * 4]
    assert list(dict.fromkeys(seen.sides)) == [32, 64, 96]
    assert graph or seen.sides == steps
    assert whole[0] == 32  # whether the backbone takes such images at all
    assert set(whole[1:]) == {96}


def test_a_backbone_of_one_image_size_cannot_grow(phantoms: Path, tmp_path: Path) -> None:
    images = data(phantoms, tmp_path, image_size=64)
    model = tiny_classifier(growth=ImageGrowth(start=32, epochs=1.0), backbone=flat(64))
    with pytest.raises(UserError, match=r"growth.start=32: this backbone takes no such images"):
        trainer(tmp_path).fit(model, datamodule=images)
    model = tiny_classifier(growth=ImageGrowth(start=96, epochs=1.0), backbone=flat(64))
    with pytest.raises(UserError, match=r"growth.start=96 is above data.image_size=64"):
        trainer(tmp_path).fit(model, datamodule=images)


def flat(side: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side * side, 14))


# A fit whose steps are replayed, through Lightning's own loop, optimizer and precision.


def fitted_with_a_graph_and_without(
    phantoms: Path, tmp_path: Path, **further: Any
) -> list[dict[str, torch.Tensor]]:
    states = []
    for graph in (True, False):
        model = tiny_classifier(backbone=normalising_backbone())
        model.cuda_graph = graph
        fit = trainer(tmp_path / str(graph), epochs=2, **further)
        fit.fit(model, datamodule=data(phantoms, tmp_path))
        assert model._graph is None
        states.append({key: value.cpu() for key, value in model.state_dict().items()})
    return states


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_with_a_graph_equals_one_without(
    precision: str, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "StepGraph", Recorded)
    Recorded.records = 0
    one, other = fitted_with_a_graph_and_without(phantoms, tmp_path, precision=precision)
    assert Recorded.records == 2  # by the fit with a graph: one for each size of a batch
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_cuda_a_captured_fit_follows_the_uncaptured_one(
    precision: str, phantoms: Path, tmp_path: Path
) -> None:
    one, other = fitted_with_a_graph_and_without(
        phantoms, tmp_path, precision=precision, accelerator="gpu"
    )
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
