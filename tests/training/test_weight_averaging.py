"""Averaged weights: validated, kept as best, tested and exported; resumed bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train, tiny_classifier
from fitting import data, trainer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from xray_lightning.deploy.export import export
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.onnx_backend import OnnxMember
from xray_lightning.errors import UserError
from xray_lightning.evaluation.evaluate import DataChoice, Options, score
from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint
from xray_lightning.models.classifier import Classifier
from xray_lightning.training.weight_averaging import AveragedWeights, refuse_other_averaging

WEIGHT = "backbone.1.weight"
DECAY = 0.9


class Watch(Callback):
    """Averages by the formula, in float64; keeps what is validated; saves once within an epoch."""

    def __init__(self, cut: Path | None = None) -> None:
        self.cut = cut
        self.average: Tensor | None = None
        self.averages: list[Tensor] = []  # at each epoch's end
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        now, steps = pl_module.state_dict()[WEIGHT].double(), trainer.global_step - 1
        kept = min(DECAY, (1 + steps) / (10 + steps))
        self.average = now if self.average is None else kept * self.average + (1 - kept) * now
        if self.cut is not None and trainer.global_step == 2:
            trainer.save_checkpoint(self.cut)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        assert self.average is not None
        self.averages.append(self.average)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self.validated.append(pl_module.state_dict()[WEIGHT].clone())
            if self.cut is not None:
                trainer.save_checkpoint(self.cut.with_stem("validating"))


def fitted(
    phantoms: Path, folder: Path, *, watch: Watch, resume: Path | None = None
) -> tuple[Trainer, Classifier, Any]:
    best = ModelCheckpoint(
        folder / "kept",
        filename="best",
        monitor="val/auroc_macro",
        mode="max",
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    fit = trainer(folder, AveragedWeights(decay=DECAY), watch, best, epochs=3)
    model, images = tiny_classifier(), data(phantoms, folder)
    fit.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
    return fit, model, images


def test_the_average_is_validated_kept_as_best_tested_and_restored(
    phantoms: Path, tmp_path: Path
) -> None:
    watch = Watch()
    fit, model, images = fitted(phantoms, tmp_path, watch=watch)
    best = read_checkpoint(tmp_path / "kept" / "best.ckpt")
    torch.testing.assert_close(watch.validated[0].double(), watch.averages[0], rtol=1e-5, atol=1e-7)
    kept = best["state_dict"][WEIGHT]
    torch.testing.assert_close(kept.double(), watch.averages[best["epoch"]], rtol=1e-5, atol=1e-7)
    assert "current_model_state" not in best

    path = tmp_path / "kept" / "best.ckpt"
    fit.test(model, images, ckpt_path=path, weights_only=True, verbose=False)
    assert torch.equal(model.state_dict()[WEIGHT], kept)
    again = tiny_classifier(recipe=best["xray"] | {"model": {}})
    again.load_state_dict(best["state_dict"])
    assert model.outputs is not None
    with torch.no_grad():
        probabilities = torch.cat([again(b.images).sigmoid() for b in images.test_dataloader()])
    torch.testing.assert_close(probabilities, model.outputs.probabilities)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_cut_within_an_epoch_ends_bit_for_bit_as_an_uncut_one(
    phantoms: Path, tmp_path: Path
) -> None:
    cut, names = tmp_path / "cut.ckpt", ("last.ckpt", "kept/best.ckpt")
    fitted(phantoms, tmp_path, watch=Watch(cut))
    before = [read_checkpoint(tmp_path / name) for name in names]
    fitted(phantoms, tmp_path, watch=Watch(), resume=cut)
    after = [read_checkpoint(tmp_path / name) for name in names]
    for whole, rest in zip(before, after, strict=True):
        for kind in ("state_dict", "current_model_state", "averaging_state"):
            one, other = whole.get(kind, {}), rest.get(kind, {})
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
    assert "current_model_state" in before[0]


def test_a_checkpoint_of_a_stop_in_validation_holds_both_weights_under_their_own_names(
    phantoms: Path, tmp_path: Path
) -> None:
    watch = Watch(tmp_path / "cut.ckpt")
    fitted(phantoms, tmp_path, watch=watch)
    last, held = (read_checkpoint(tmp_path / name) for name in ("last.ckpt", "validating.ckpt"))
    assert torch.equal(held["state_dict"][WEIGHT], watch.validated[-1])
    assert not torch.equal(held["current_model_state"][WEIGHT], watch.validated[-1])
    for kind in ("state_dict", "current_model_state"):  # saved after that epoch's last step, too
        assert torch.equal(held[kind][WEIGHT], last[kind][WEIGHT])


@pytest.mark.slow  # 20 s
def test_what_is_exported_quantised_and_evaluated_is_the_average(
    train: Train, phantoms: Path, tmp_path: Path
) -> None:
    """By its answers: those of the average, and not those of the weights that were trained."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    options = ("callbacks=ema", "callbacks.ema.decay=0.9", "trainer.max_epochs=1")
    options = (*options, "optimizer.lr=0.002")  # far from the average
    ended = train(*options, "strategy=single")
    assert ended.exit_code == 0, ended.stderr
    (run,) = ended.runs
    best, last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
    latest = read_checkpoint(last)
    assert latest["epoch"] == read_checkpoint(best)["epoch"]  # of the same steps
    latest["state_dict"] = latest["current_model_state"]
    write_checkpoint(latest, tmp_path / "trained.ckpt")

    export(best, tmp_path / "float32.onnx", format="onnx")
    export(best, tmp_path / "int8.onnx", format="onnx", int8=Path(phantoms))
    side = load_model(best, device="cpu").image_size
    images = np.random.default_rng(0).integers(0, 256, (8, side, side), dtype=np.uint8)
    average, trained, float32 = (
        load_model(path, device="cpu").predict(images).probabilities
        for path in (best, tmp_path / "trained.ckpt", tmp_path / "float32.onnx")
    )
    apart = float(np.abs(average - trained).mean())
    assert apart > 0.005
    np.testing.assert_allclose(float32, average, atol=1e-4)

    scored = score([best], Options(resamples=0), command="")
    tested = ended.results[0]["metrics"]["test"]
    assert scored.content["metrics"]["auroc_macro"] == pytest.approx(tested["auroc_macro"])
    here = Options(DataChoice(phantoms), resamples=0, out=tmp_path / "here")
    right, wrong = (
        score([path], here, command="").content["metrics"]
        for path in (best, tmp_path / "trained.ckpt")
    )
    assert wrong["brier_macro"] != pytest.approx(right["brier_macro"])
    # In 8 bits this network, which has learnt little, is far from either: by what it was made of.
    made_of = OnnxMember.read(tmp_path / "int8.onnx").described["int8"]["auroc_macro_float32"]
    assert made_of == pytest.approx(right["auroc_macro"], abs=1e-3)


@pytest.mark.parametrize(
    "checkpoint, callbacks, says",
    [
        ({"current_model_state": {}}, [], "averaged its weights: give callbacks=ema"),
        ({}, [AveragedWeights()], "did not average its weights: leave out callbacks=ema"),
    ],
)
def test_averaging_cannot_begin_or_end_with_a_resume(
    checkpoint: dict[str, Any], callbacks: list[Callback], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        refuse_other_averaging(checkpoint, callbacks)
    refuse_other_averaging({}, [])


def test_a_decay_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"callbacks.ema.decay=1.0 must be at least 0 and below 1"):
        AveragedWeights(decay=1.0)
