"""One preprocessing: all that reads an image sees the same numbers of the same file."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SIDE, checkpoint
from PIL import Image

from xray_lightning.data.cache import ImageSet, open_cache
from xray_lightning.data.cache_build import ensure_cache
from xray_lightning.data.decode_resize import UnreadableImageError
from xray_lightning.data.transforms import NORMALIZATIONS, Normalize
from xray_lightning.deploy.export import export
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.preprocess import Preprocessing, decoded_batches
from xray_lightning.deploy.saliency.gallery import Choice, explain_each
from xray_lightning.deploy.saliency.maps import Explainer
from xray_lightning.deploy.unusual_inputs import Picture
from xray_lightning.errors import UserError
from xray_lightning.evaluation.ensemble import Member

SLOW = pytest.mark.slow  # of each way to normalise, as they take ten seconds each


def files(folder: Path) -> list[str]:
    """A gray PNG, an RGBA one, one of 16 bits and a JPEG, none of them square."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    gray = Image.fromarray(noise).resize((170, 190), Image.Resampling.BICUBIC)
    gray.save(folder / "a.png")
    gray.convert("RGBA").save(folder / "b.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 250).save(folder / "c.png")
    gray.save(folder / "d.jpg")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize(
    "normalize",
    [pytest.param(name, marks=[] if name == "per_image" else SLOW) for name in NORMALIZATIONS],
)
def test_training_evaluation_prediction_explanation_and_export_agree_on_the_same_files(
    normalize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    paths = files(tmp_path / "images")
    path = checkpoint(tmp_path / "one.ckpt", normalize=normalize)
    images = ImageSet(paths)
    ensure_cache(images, image_size=SIDE, cache_dir=tmp_path)
    trained_on = open_cache(images, image_size=SIDE, cache_dir=tmp_path).read(images.rows(paths))
    member = Member.read(path)
    pictures = [Preprocessing(member.model.image_size).file(one) for one in paths]
    assert np.array_equal(np.stack([one.pixels for one in pictures]), trained_on)

    pixels = torch.from_numpy(trained_on)[:, None]
    training, evaluation = Normalize(normalize), member.model.normalize
    assert torch.equal(training(pixels), evaluation(pixels))
    with torch.inference_mode():
        evaluated = member.model(pixels).sigmoid().numpy()
    assert np.array_equal(load_model(path, device="cpu").predict(paths).probabilities, evaluated)

    pytest.importorskip("captum", reason="needs the extra explain")
    asked: list[np.ndarray] = []

    def keep(self: Explainer, batch: np.ndarray, finding: int) -> np.ndarray:
        asked.append(batch)
        return np.zeros((len(batch), SIDE, SIDE), dtype=np.float32)

    monkeypatch.setattr(Explainer, "maps", keep)
    explainer = Explainer.load(path, method="layercam", device="cpu")
    for one in explain_each(explainer, paths, Choice(("Mass",)), boxes={}):
        assert one.prediction.probabilities is not None
        place = paths.index(one.prediction.image)
        assert np.array_equal(one.prediction.probabilities, evaluated[place])
    assert np.array_equal(np.concatenate(asked), trained_on[:, None])

    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    done = export(path, tmp_path / "one.onnx", format="onnx", images=paths)
    assert done.images == len(paths)
    exported = load_model(tmp_path / "one.onnx", device="cpu").predict(paths).probabilities
    np.testing.assert_allclose(exported, evaluated, atol=1e-6)


def test_an_array_is_taken_as_its_file_is(ckpt: Path, tmp_path: Path) -> None:
    path, *_ = files(tmp_path)
    array = np.asarray(Image.open(path))
    model = load_model(ckpt, device="cpu")
    one, other = model.predict(path), model.predict(array)
    assert np.array_equal(one.probabilities, other.probabilities)
    assert other.images == ("array 0",)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), dtype=np.float32),
        np.zeros((8, 8, 3), dtype=np.uint8),
        np.zeros((0, 8), dtype=np.uint8),
        None,
    ],
    ids=["float", "colour", "empty", "none"],
)
def test_what_is_no_gray_image_of_8_bits_is_refused(image: object) -> None:
    with pytest.raises(UserError, match="image"):
        Preprocessing(32).array(image)  # type: ignore[arg-type]


def test_colour_is_told_from_gray_in_the_format_of_colour(tmp_path: Path) -> None:
    read = Preprocessing(32).file
    assert [read(path).colour < 2 for path in files(tmp_path)] == [True] * 4
    ramp = np.linspace(0, 255, 120, dtype=np.uint8)
    photograph = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 255 - ramp[:, None]), 2)
    for name in ("red.png", "red.jpg"):
        Image.fromarray(photograph).save(tmp_path / name)
        assert read(tmp_path / name).colour > 40


# -- ahead of the model ----------------------------------------------------------------------------


def picture(number: int) -> Picture:
    if number % 7 == 3:
        raise UnreadableImageError(f"{number}: odd")
    time.sleep(0.001 * (number % 3))
    return Picture(np.full((8, 8), number % 256, dtype=np.uint8), 8, 8)


def test_every_input_comes_once_and_in_order_with_its_error() -> None:
    batches = list(decoded_batches(range(45), picture, size=10))
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 5]
    every = [one for batch in batches for one in batch]
    assert [one.source for one in every] == list(range(45))
    for one in every:
        assert (one.error is not None) == (one.picture is None) == (one.source % 7 == 3)
        assert one.picture is None or one.picture.pixels[0, 0] == one.source


def test_no_more_than_three_batches_are_taken_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    batches = decoded_batches(endless(), picture, size=5)
    for consumed in range(20):
        next(batches)
        assert taken <= 5 * (consumed + 3)
    batches.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name == "in_threads"]


def test_another_error_ends_the_work_with_it() -> None:
    def fail(number: int) -> Picture:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(decoded_batches(range(3), fail, size=2))
