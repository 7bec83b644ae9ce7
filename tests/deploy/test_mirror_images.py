"""Test-time augmentation: what is averaged, and that everything fitted was fitted to the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import SIDE, checkpoint
from conftest import Train, Xray

from xray_lightning.deploy.export import export
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.model_card.info import model_info
from xray_lightning.errors import UserError
from xray_lightning.evaluation.judge import Judge
from xray_lightning.evaluation.operating_points import OperatingRule
from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint
from xray_lightning.runs.predictions import read_predictions

IMAGES = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE), dtype=np.uint8)
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose operating points are for the image alone."""
    return checkpoint(tmp_path_factory.mktemp("plain") / "plain.ckpt")


@pytest.fixture(scope="module")
def flipped(plain: Path) -> Path:
    """The same weights, with operating points for the mean with the mirror image."""
    content = read_checkpoint(plain)
    content["xray"] = {**content["xray"], "tta": "flip"}
    write_checkpoint(content, plain.with_name("flipped.ckpt"))
    return plain.with_name("flipped.ckpt")


def answers(path: Path | list[Path], images: Array = IMAGES, **options: Any) -> Array:
    return load_model(path, device="cpu", **options).predict(images).probabilities


def mean_of_logits(path: Path) -> Array:
    one, mirrored = (
        torch.from_numpy(answers(path, images, tta="none")).double().logit()
        for images in (IMAGES, np.ascontiguousarray(IMAGES[..., ::-1]))
    )
    return ((one + mirrored) / 2).sigmoid().numpy()


def test_logits_are_averaged_with_those_of_the_mirror_image(plain: Path) -> None:
    expected = mean_of_logits(plain)
    np.testing.assert_allclose(answers(plain, tta="flip"), expected, atol=1e-5)
    assert np.abs(answers(plain) - expected).max() > 1e-3
    mirrored = np.ascontiguousarray(IMAGES[..., ::-1])
    again = answers(plain, mirrored, tta="flip")
    np.testing.assert_allclose(again, answers(plain, tta="flip"), atol=1e-5)


def test_bf16_and_an_ensemble_average_each_members_logits(plain: Path, tmp_path: Path) -> None:
    expected = mean_of_logits(plain)
    half = answers(plain, tta="flip", precision="bf16-mixed")
    np.testing.assert_allclose(half, expected, atol=0.02)
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    both = (expected + mean_of_logits(other)) / 2
    np.testing.assert_allclose(answers([plain, other], tta="flip"), both, atol=1e-5)


def test_a_model_does_as_its_operating_points_were_fitted(plain: Path, flipped: Path) -> None:
    np.testing.assert_array_equal(answers(flipped), answers(plain, tta="flip"))
    for path, other in ((plain, "flip"), (flipped, "none")):
        own, changed = (load_model(path, device="cpu", tta=tta) for tta in (None, other))
        assert own.operating_points is not None
        assert own.calibrated
        assert (changed.operating_points, changed.calibrated) == (None, False)
        assert "for another --tta" in str(changed.why_undecided)
        assert changed.predict(IMAGES).decisions is None
    with pytest.raises(UserError, match="not tested with the same augmentation; give --tta flip"):
        load_model([flipped, checkpoint(flipped.with_name("o.ckpt"), seed=1)], device="cpu")


@pytest.mark.slow  # 8 s
def test_an_exported_model_averages_too_and_tells_others_to(flipped: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    out = tmp_path / "one.onnx"
    export(flipped, out, format="onnx")
    np.testing.assert_allclose(answers(out), answers(flipped), atol=1e-5)
    np.testing.assert_allclose(answers(out, tta="none"), answers(flipped, tta="none"), atol=1e-5)
    assert load_model(out, device="cpu").operating_points is not None
    assert load_model(out, device="cpu", tta="none").operating_points is None
    texts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert "mirror image" in texts["preparation"]
    assert model_info(out).checkpoint.tta == "flip"  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["mirror", "none", True, 5])
def test_any_other_value_is_one_line(value: Any, plain: Path) -> None:
    with pytest.raises(UserError, match=rf"evaluation.tta={value} is unknown; give flip, or null"):
        Judge(operating_point=OperatingRule(), tta=value)
    with pytest.raises(UserError, match="--tta rotate is unknown; choose one of flip, none"):
        load_model(plain, device="cpu", tta="rotate")


def columns(path: Path) -> Array:
    table = read_predictions(path)
    return table[[name for name in table if name.startswith("prob_")]].to_numpy(np.float32)


@pytest.mark.slow  # 40 s
def test_a_run_fits_and_tests_evaluates_and_predicts_the_same_means_on_any_ranks(
    train: Train, xray: Xray
) -> None:
    ended = train("strategy=single", "evaluation.tta=flip", "name=flip")
    assert ended.exit_code == 0, ended.stderr
    (run,), (results,) = ended.runs, ended.results
    best = run / "checkpoints" / "best.ckpt"
    assert read_checkpoint(best)["xray"]["tta"] == "flip"
    assert results["config"]["evaluation"]["tta"] == "flip"
    assert "tta flip" in (run / "model_card.md").read_text()
    tested = results["metrics"]["test"]

    code, out, err = xray("evaluate", best, "--resamples", 0)
    assert (code, err) == (0, "")
    content = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert content["tta"] == "flip"
    assert "tta flip" in out
    assert content["fitted"]["operating_points"] == "stored in the checkpoint"
    for key in ("auroc_macro", "brier_macro", "label_accuracy"):
        assert content["metrics"][key] == pytest.approx(tested[key], abs=1e-6)
    own = columns(run / "predictions_test.csv")
    np.testing.assert_allclose(columns(run / "evaluation/predictions_test.csv"), own, atol=1e-6)

    xray("evaluate", best, "--resamples", 0, "--tta", "none", "--out", "none")
    content = json.loads((run.parent.parent / "none" / "evaluation.json").read_text())
    assert (content["tta"], content["fitted"]["calibration"] is None) == (None, False)
    assert content["fitted"]["operating_points"].startswith("fitted on validation predictions")
    alone = columns(run.parent.parent / "none" / "predictions_test.csv")
    assert np.abs(alone - own).max() > 1e-4

    # Stored operating points are used for what they were fitted to alone.
    test = ("strategy=mpi", "stages=[test]", f"ckpt_path={best}")
    ended = train(*test, "evaluation.tta=flip", "name=ranks")
    assert ended.exit_code == 0, ended.stderr
    ranks = next(path for path in ended.runs if path.name.endswith("ranks"))
    np.testing.assert_allclose(columns(ranks / "predictions_test.csv"), own, atol=1e-5)
    ended = train("strategy=single", *test[1:], "name=without")
    without = next(path for path in ended.runs if path.name.endswith("without"))
    np.testing.assert_allclose(columns(without / "predictions_test.csv"), alone, atol=1e-5)
    assert "another evaluation.tta: fitted anew" in (without / "train.log").read_text()
