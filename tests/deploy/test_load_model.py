"""`load_model`: what a caller in Python gets, and what ends the call."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SIDE

import xray_lightning
from xray_lightning import load_model
from xray_lightning.data.decode_resize import UnreadableImageError
from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS

ARRAYS = np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(ckpt: Path) -> xray_lightning.Model:
    return load_model(ckpt, device="cpu")


def test_a_stack_a_list_and_single_images_get_the_same_answers(
    model: xray_lightning.Model,
) -> None:
    stack, several = model.predict(ARRAYS), model.predict(list(ARRAYS))
    assert (len(stack), model.image_size, stack.findings) == (3, SIDE, FINDINGS)
    assert np.array_equal(stack.probabilities, several.probabilities)
    for array, answer in zip(ARRAYS, stack.probabilities, strict=True):
        # A batch of another size may round otherwise.
        assert np.allclose(model.predict(array).probabilities, answer, atol=1e-6)


def test_what_cannot_be_read_ends_predict_and_is_a_row_of_predict_each(
    model: xray_lightning.Model, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.png"
    with pytest.raises(UnreadableImageError, match=r"absent\.png: No such file"):
        model.predict([ARRAYS[0], absent])
    good, bad, last = model.predict_each([ARRAYS[0], absent, ARRAYS[1]])
    assert (bad.image, bad.reason, bad.probabilities) == (
        str(absent),
        "No such file or directory",
        None,
    )
    assert (good.image, last.image) == ("array 0", "array 2")
    assert np.allclose(
        np.stack([good.probabilities, last.probabilities]),  # type: ignore[list-item]
        model.predict(ARRAYS[:2]).probabilities,
        atol=1e-6,
    )


def test_images_are_taken_as_they_are_needed(model: xray_lightning.Model) -> None:
    endless = itertools.cycle(ARRAYS)
    first = next(iter(model.predict_each(endless)))
    assert first.probabilities is not None


def test_what_no_model_can_be_loaded_from_is_refused(
    ckpt: Path, model: xray_lightning.Model
) -> None:
    with pytest.raises(UserError, match="accelerator=tpu is unknown"):
        load_model(ckpt, device="tpu")
    with pytest.raises(UserError, match="no checkpoint"):
        load_model([])
    with pytest.raises(UserError, match="batch_size=0"):
        load_model(ckpt, batch_size=0)
    with pytest.raises(UserError, match=r"shape \(40, 30, 3\) is an image in colour"):
        model.predict(np.zeros((40, 30, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="no image"):
        model.predict([])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        xray_lightning.nothing  # noqa: B018
