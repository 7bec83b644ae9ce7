import numpy as np
import pytest
import torch

from xray_lightning.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORMALIZATIONS,
    Normalize,
)
from xray_lightning.errors import UserError

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8))


def test_per_image_normalisation_gives_each_image_zero_mean_and_unit_deviation() -> None:
    out = Normalize("per_image")(IMAGES)
    assert out.shape == IMAGES.shape
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    spread = out.std(dim=(1, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.ones(3), atol=1e-4, rtol=0)


def test_a_constant_image_becomes_zeros() -> None:
    out = Normalize("per_image")(torch.full((1, 1, 4, 4), 255, dtype=torch.uint8))
    assert out.abs().max() == 0


def test_dataset_normalisation_uses_the_training_splits_statistics_and_saves_them() -> None:
    normalize = Normalize("dataset")
    normalize.fit_to(mean=0.5, std=0.25)
    torch.testing.assert_close(normalize(IMAGES), (IMAGES.float() / 255 - 0.5) / 0.25)
    again = Normalize("dataset")
    again.load_state_dict(normalize.state_dict())
    torch.testing.assert_close(again(IMAGES), normalize(IMAGES))


def test_imagenet_normalisation_keeps_its_statistics_whatever_it_is_fitted_to() -> None:
    normalize = Normalize("imagenet")
    normalize.fit_to(mean=0.1, std=0.1)
    expected = (IMAGES.float() / 255 - IMAGENET_MEAN) / IMAGENET_STD
    torch.testing.assert_close(normalize(IMAGES), expected)


def test_an_unknown_normalisation_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match="per_image, dataset, imagenet"):
        Normalize("zscore")


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_float_images_are_normalised_as_the_same_uint8_ones(mode: str) -> None:
    normalize = Normalize(mode)
    pixels = IMAGES.float() / 255
    torch.testing.assert_close(normalize(pixels), normalize(IMAGES), rtol=0, atol=1e-6)


def test_per_image_normalisation_is_the_mean_and_deviation_of_torch() -> None:
    pixels = IMAGES.double() / 255
    deviation, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
    expected = ((pixels - mean) / (deviation + 1e-6)).float()
    torch.testing.assert_close(Normalize("per_image")(IMAGES), expected, rtol=0, atol=2e-6)


def test_per_image_normalisation_undoes_brightness_and_contrast() -> None:
    pixels = IMAGES.float() / 255
    out = Normalize("per_image")(0.7 * pixels + 0.1)
    torch.testing.assert_close(out, Normalize("per_image")(IMAGES), rtol=0, atol=1e-4)


def test_gradients_reach_float_images() -> None:
    pixels = (IMAGES.float() / 255).requires_grad_()
    Normalize("per_image")(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
