"""First weights of a run: those that have seen the test images are refused, or marked."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Train
from fitting import data
from torchvision.models import get_model

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import UserError
from xray_lightning.models.weights_transfer import TakenOver
from xray_lightning.training.weights_provenance import check_first_weights

TAKEN = TakenOver("model.weights_path=w.pth", "by name", (1, 1), (0, 0), (2, 2))


@pytest.fixture
def images(phantoms: Path, tmp_path: Path) -> XrayDataModule:
    made = data(phantoms, tmp_path)
    made.load()
    return made


def checked(images: XrayDataModule, *, allowed: bool = False, **taken: Any) -> list[str]:
    changed = dataclasses.replace(TAKEN, **taken)
    return check_first_weights(changed, images, allowed=allowed, normalize="per_image")


@pytest.mark.parametrize("seen", [("phantom",), ("imagenet", "Phantom")])
def test_weights_that_have_seen_the_data_set_are_refused_or_marked(
    seen: tuple[str, ...], images: XrayDataModule
) -> None:
    with pytest.raises(UserError, match=r"seen the data set .*model.allow_seen_test=true"):
        checked(images, seen=seen)
    assert len(checked(images, seen=seen, allowed=True)) == 1
    assert checked(images, seen=("imagenet", "chexpert")) == []


@pytest.mark.parametrize("known", ["nih", "ai4m", "chestmnist", "ChestX-ray14"])
def test_one_source_under_several_names_is_one(known: str, images: XrayDataModule) -> None:
    images.name = "nih"
    with pytest.raises(UserError, match="have seen"):
        checked(images, seen=(known,))


@pytest.mark.parametrize("column", ["image", "patient_id"])
def test_a_list_of_images_or_patients_is_compared_with_the_test_images(
    column: str, images: XrayDataModule, tmp_path: Path
) -> None:
    listed = tmp_path / "seen.csv"
    images.table("test")[[column]].iloc[:3].to_csv(listed, index=False)
    with pytest.raises(UserError, match=r"seen \d+ of the \d+ test images \(.*seen.csv\)"):
        checked(images, seen=(str(listed),))
    images.table("train")[[column]].to_csv(listed, index=False)
    assert checked(images, seen=(str(listed),)) == []
    with pytest.raises(UserError, match="cannot be read"):
        checked(images, seen=("nosuch.txt",))


def test_a_checkpoint_of_the_same_split_has_not_seen_its_test_images(
    images: XrayDataModule,
) -> None:
    own = images.usable.split.sha256
    assert checked(images, trained_on=(("phantom", own),)) == []
    with pytest.raises(UserError, match="have seen"):
        checked(images, trained_on=(("phantom", own), ("phantom", "another")))


def test_weights_that_want_other_pixels_are_refused(images: XrayDataModule) -> None:
    with pytest.raises(UserError, match=r"give data.normalize=symmetric"):
        checked(images, normalize="symmetric")


@pytest.mark.slow
def test_a_run_tells_what_it_took_over_and_is_marked_where_allowed(
    train: Train, tmp_path: Path
) -> None:
    file = tmp_path / "w.pth"
    torch.save(get_model("resnet18", weights=None).state_dict(), file)
    given = (f"model.weights_path={file}", "model.weights_seen=[phantom]")
    refused = train(*given)
    assert refused.exit_code == 2
    assert "have seen the data set phantom" in refused.error
    ended = train(*given, "model.allow_seen_test=true", "name=marked")
    assert ended.exit_code == 0, ended.stderr
    assert "taken over" in ended.stdout
    result = next(one for one in ended.results if one["name"] == "marked")
    assert result["first_weights"]["seen"] == ["phantom"]
    assert result["first_weights"]["new"]["tensors"] == 2
    run = next(path for path in ended.runs if path.name.endswith("marked"))
    assert "first weights have seen" in (run / "model_card.md").read_text()


@pytest.mark.slow
def test_the_weights_that_phantoms_make_lie_where_the_next_experiment_looks_for_them(
    train: Train,
) -> None:
    short = ("data.root=phantoms", "data.phantom.images=40", "data.image_size=32", "seed=1")
    quick = ("accelerator=cpu", "trainer.max_epochs=1", "evaluation.resamples=20", "report=false")
    made = train("experiment=phantom_pretraining", *short, *quick, defaults=False)
    assert made.exit_code == 0, made.stderr
    further = ("data=phantom", "data.name=of_patients", "growth.start=32", *short, *quick)
    ended = train("experiment=nih_small_phantoms", *further, defaults=False)
    assert ended.exit_code == 0, ended.stderr
    (taken,) = (result["first_weights"] for result in ended.results if "first_weights" in result)
    assert taken["seen"] == ["phantom"]
    assert taken["new"] == {"tensors": 0, "numbers": 0}
