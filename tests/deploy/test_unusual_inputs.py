"""What the guard says of chest X-rays, and of what is none."""

import csv
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import REAL, Xray, real_data
from dicoms import PERSON, dataset, saved
from PIL import Image

from xray_lightning.data.decode_resize import UnreadableImageError
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.deploy.unusual_inputs import Rule, flags

NIH = REAL / "nih256" / "images"
READ = Preprocessing(64)


def pixels(root: Path) -> list[npt.NDArray[np.uint8]]:
    return [np.asarray(Image.open(path).convert("L")) for path in sorted(root.rglob("*.png"))]


def share(rule: Rule, images: list[npt.NDArray[np.uint8]]) -> float:
    return float(np.mean([rule in flags(READ.array(image)) for image in images]))


def test_phantoms_are_usual_and_inverted_ones_are_not(phantoms: Path) -> None:
    images = pixels(phantoms)
    assert [flags(READ.array(image)) for image in images] == [()] * len(images)
    assert share(Rule.INVERTED, [255 - image for image in images]) == 1


@real_data
def test_one_real_x_ray_in_a_hundred_at_most_is_flagged_and_nearly_all_inverted_ones() -> None:
    paths = sorted(NIH.glob("*.png"))[::10]
    images = [np.asarray(Image.open(path).convert("L")) for path in paths]
    assert np.mean([flags(READ.array(image)) != () for image in images]) <= 0.01
    assert share(Rule.INVERTED, [255 - image for image in images]) >= 0.98


def test_a_blank_image_is_blank_and_nothing_else() -> None:
    assert flags(READ.array(np.full((256, 256), 90, dtype=np.uint8))) == (Rule.BLANK,)
    assert flags(READ.array(np.zeros((256, 256), dtype=np.uint8))) == (Rule.BLANK,)


def test_a_thumbnail_is_tiny_where_the_model_takes_larger_images(phantoms: Path) -> None:
    image = pixels(phantoms)[0]  # 64 x 64
    assert flags(Preprocessing(128).array(image)) == ()
    assert flags(Preprocessing(130).array(image)) == (Rule.TINY,)
    assert Rule.TINY in flags(Preprocessing(32).array(image[:31, :31]))


def test_the_shape_is_looked_at_both_ways(phantoms: Path) -> None:
    chest = Image.fromarray(pixels(phantoms)[0])
    shapes = {(120, 180): (), (120, 181): (Rule.ASPECT,), (181, 120): (Rule.ASPECT,)}
    for shape, expected in shapes.items():
        assert flags(READ.array(np.asarray(chest.resize(shape)))) == expected


def test_a_colour_photograph_is_flagged_for_its_colour(tmp_path: Path) -> None:
    from matplotlib.cbook import get_sample_data

    photograph = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    assert Rule.COLOUR in flags(READ.file(photograph))
    Image.open(photograph).save(tmp_path / "same.png")
    assert Rule.COLOUR in flags(READ.file(tmp_path / "same.png"))


def test_noise_is_not_laid_out_as_a_chest() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((256, 256), Image.Resampling.NEAREST))
    assert flags(READ.array(image)) == (Rule.LAYOUT,)


@pytest.mark.parametrize(
    ("said", "rules"),
    [
        ({}, ()),
        ({"Modality": ""}, ()),
        ({"Modality": "DX", "BodyPartExamined": "PORT CHEST", "ViewPosition": "AP"}, ()),
        ({"Modality": "CT"}, (Rule.MODALITY,)),
        ({"BodyPartExamined": "KNEE"}, (Rule.BODY_PART,)),
        ({"ViewPosition": "LL"}, (Rule.LATERAL,)),
        (
            {"Modality": "MG", "BodyPartExamined": "BREAST", "ViewPosition": "LATERAL"},
            (Rule.MODALITY, Rule.BODY_PART, Rule.LATERAL),
        ),
        ({"Modality": PERSON["PatientName"]}, (Rule.MODALITY,)),
    ],
)
def test_a_dicom_file_is_flagged_or_refused_by_what_it_says_of_itself(
    said: dict[str, str], rules: tuple[Rule, ...], phantoms: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.dcm", dataset(pixels(phantoms)[0], **said))
    assert flags(READ.file(path)) == rules
    strict = Preprocessing(64, strict=True)
    if not rules:
        strict.file(path)
        return
    with pytest.raises(UnreadableImageError, match="the DICOM file says that it shows") as refused:
        strict.file(path)
    assert PERSON["PatientName"] not in str(refused.value)


def test_strict_prediction_leaves_another_modality_without_an_answer(
    ckpt: Path, phantoms: Path, tmp_path: Path, xray: Xray
) -> None:
    image = pixels(phantoms)[0]
    for name, modality in (("ct.dcm", "CT"), ("dx.dcm", "DX")):
        saved(tmp_path / name, dataset(image, Modality=modality))
    for strict, status in (((), "ok"), (("--strict",), "unreadable")):
        code, out, _ = xray("predict", ckpt, "ct.dcm", "dx.dcm", *strict)
        assert code == 0
        ct, dx = csv.DictReader(io.StringIO(out))
        assert (ct["status"], dx["status"], dx["flags"]) == (status, "ok", "")
        assert (ct["flags"] == "modality") is not bool(strict)
        assert ("another modality than radiography" in ct["reason"]) is bool(strict)
