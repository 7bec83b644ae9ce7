"""Transforms of batches: normalisation, the numbers that augmentation draws, and augmentation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from xray_lightning.data.decode_resize import read_gray
from xray_lightning.data.transforms import (
    GAMMA,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NORMALIZATIONS,
    PLACES,
    Augment,
    Drawn,
    Normalize,
    mixed,
    uniforms,
    warp,
)
from xray_lightning.errors import UserError

# -- normalisation ---------------------------------------------------------------------------------


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


# -- the numbers that are drawn --------------------------------------------------------------------


DRAWS = torch.arange(20_000)


def test_the_source_generator_gives_its_published_numbers() -> None:
    # The first outputs from seed 1234567, as Rosetta Code's "Pseudo-random numbers/Splitmix64".
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mixed(1234567 + n * GAMMA) for n in range(1, 6)] == published


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_a_draws_numbers_are_the_generators_upper_bits(seed: int) -> None:
    draws = [0, 1, 17, 2**31, 2**45]
    found = uniforms(torch.tensor(draws), seed=seed, places=PLACES)
    for row, draw in enumerate(draws):
        start = mixed(seed) + draw * PLACES * GAMMA
        bits = [mixed(start + place * GAMMA) >> 40 for place in range(1, PLACES + 1)]
        assert (found[row].double() * 2**24).tolist() == bits


def test_a_draws_numbers_do_not_depend_on_the_batch_or_on_how_many_are_asked() -> None:
    whole = uniforms(DRAWS[:101], seed=3, places=PLACES)
    parts = [uniforms(part, seed=3, places=PLACES) for part in DRAWS[:101].split(7)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(uniforms(DRAWS[:101], seed=3, places=5), whole[:, :5])
    mixed_up = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniforms(mixed_up, seed=3, places=PLACES), whole[mixed_up])


def test_the_numbers_are_at_least_0_and_below_1() -> None:
    found = uniforms(DRAWS, seed=0, places=PLACES)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() < 1


# What follows is drawn once and for all by the seeds: a failure is a change of the generator.


@pytest.mark.parametrize("seed", [0, 1])
def test_each_place_is_uniform(seed: int) -> None:
    found = uniforms(DRAWS, seed=seed, places=PLACES).numpy().astype(np.float64)
    for place in range(PLACES):
        assert stats.kstest(found[:, place], "uniform").pvalue > 1e-3
    assert np.abs(found.mean(axis=0) - 1 / 2).max() < 4 * np.sqrt(1 / 12 / len(DRAWS))
    assert np.abs(found.var(axis=0) - 1 / 12).max() < 4 * np.sqrt(1 / 180 / len(DRAWS))


@pytest.mark.parametrize("seed", [0, 1])
def test_places_and_neighbouring_draws_and_seeds_are_independent(seed: int) -> None:
    found = uniforms(DRAWS, seed=seed, places=PLACES).numpy().astype(np.float64)
    other = uniforms(DRAWS, seed=seed + 1, places=PLACES).numpy().astype(np.float64)
    # 48 columns: this draw, the next one, the same of the next seed.
    together = np.hstack([found[:-1], found[1:], other[:-1]])
    correlations = np.corrcoef(together, rowvar=False)[np.triu_indices(3 * PLACES, k=1)]
    # The first and the second block are the same numbers one draw apart, so 120 pairs stand
    # twice; the largest of 1,008 normal numbers is below 5 deviations.
    assert np.abs(correlations).max() < 5 / np.sqrt(len(DRAWS))


def test_pairs_of_places_fill_the_square_evenly() -> None:
    found = uniforms(DRAWS, seed=0, places=PLACES).numpy().astype(np.float64)
    for one in range(PLACES):
        two = (one + 1) % PLACES
        counts, _, _ = np.histogram2d(found[:, one], found[:, two], bins=10, range=[[0, 1]] * 2)
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


# -- augmentation ----------------------------------------------------------------------------------


SIDE = 64
EVERYTHING = {
    "hflip": 0.5,
    "degrees": 10,
    "translate": 0.05,
    "scale": [0.9, 1.1],
    "crop_scale": [0.5, 1.0],
    "crop_ratio": [0.75, 1.333],
    "brightness": 0.2,
    "contrast": 0.2,
}


@pytest.fixture
def images(phantoms: Path) -> Tensor:
    """Six phantoms: uint8 (6, 1, 64, 64)."""
    paths = sorted((phantoms / "images").glob("*.png"))[:6]
    return torch.from_numpy(np.stack([read_gray(path, SIDE) for path in paths])).unsqueeze(1)


def numbers(count: int, *, first: int = 0) -> Tensor:
    return torch.arange(first, first + count)


def drawn(**given: float) -> Drawn:
    """One image's parameters, of which these are not neutral."""
    neutral = {"flip": 1, "angle": 0, "right": 0, "down": 0, "scale": 1, "area": 1}
    values = dict.fromkeys(Drawn._fields, 0.5) | neutral | given
    return Drawn(**{name: torch.tensor([float(value)]) for name, value in values.items()})


def shown(image: Tensor, *, size: tuple[float, float] = (1, 1), **given: float) -> Tensor:
    """One image (1, S, S) through the affine map."""
    where = {"size": torch.tensor([size]), "centre": torch.zeros(1, 2)}
    return warp(image.unsqueeze(0), drawn(**given), **where).squeeze(0)


def by_torchvision(
    image: Tensor, *, flip: bool, degrees: float, translate: list[float], scale: float
) -> Tensor:
    return torchvision.affine(
        torchvision.hflip(image) if flip else image,
        angle=degrees,
        translate=translate,
        scale=scale,
        shear=[0.0],
        interpolation=InterpolationMode.BILINEAR,
    )


# -- what is done ----------------------------------------------------------------------------------


def test_without_options_the_images_are_only_scaled_to_1(images: Tensor) -> None:
    out = Augment()(images, numbers(6))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, images.float() / 255, rtol=0, atol=0)
    again = Augment()(out, numbers(6))
    torch.testing.assert_close(again, out, rtol=0, atol=0)


def test_a_flip_alone_is_exact_and_flips_its_share(images: Tensor) -> None:
    many = images[:1].expand(1000, -1, -1, -1)
    out = Augment(hflip=0.3)(many, numbers(1000))
    pixels = images[0] / 255
    flipped = (out == pixels.flip(-1)).all(dim=(1, 2, 3))
    plain = (out == pixels).all(dim=(1, 2, 3))
    assert (flipped ^ plain).all()
    assert stats.binomtest(int(flipped.sum()), 1000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize(
    "angle, right, down, scale, flip",
    [
        (7, 0, 0, 1, False),
        (-10, 0, 0, 1, False),
        (0, 3, -5, 1, False),
        (0, 0, 0, 1.1, False),
        (0, 0, 0, 0.85, True),
        (9, -4, 2, 0.9, False),
        (-30, 6, 3, 1.2, True),
    ],
)
def test_the_affine_map_is_torchvisions(
    images: Tensor, *, angle: float, right: int, down: int, scale: float, flip: bool
) -> None:
    for image in images / 255:
        expected = by_torchvision(
            image, flip=flip, degrees=angle, translate=[right, down], scale=scale
        )
        out = shown(
            image,
            size=(-1 if flip else 1, 1),
            angle=np.deg2rad(angle),
            right=2 * right / SIDE,
            down=2 * down / SIDE,
            scale=scale,
        )
        # Both are single precision: positions agree to about 1e-5 of a pixel.
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_the_drawn_flip_and_affine_are_torchvisions(images: Tensor) -> None:
    augment = Augment(hflip=0.5, degrees=15, translate=0.1, scale=[0.8, 1.2])
    parameters = augment.draw(numbers(6))
    assert len(set((parameters.flip < 0).tolist())) == 2
    out = augment(images, numbers(6))
    for row, image in enumerate(images / 255):
        one = Drawn(*(values[row].item() for values in parameters))
        shift = [one.right * SIDE / 2, one.down * SIDE / 2]
        degrees = np.rad2deg(one.angle)
        expected = by_torchvision(
            image, flip=one.flip < 0, degrees=degrees, translate=shift, scale=one.scale
        )
        torch.testing.assert_close(out[row], expected, rtol=0, atol=1e-4)


def test_a_crop_is_torchvisions_resized_crop(images: Tensor) -> None:
    top, left, height, width = 5, 9, 40, 32
    centre = torch.tensor([[2 * left + width, 2 * top + height]]) / SIDE - 1
    size = torch.tensor([[width, height]]) / SIDE
    for image in images / 255:
        expected = torchvision.resized_crop(
            image, top, left, height, width, [SIDE, SIDE], antialias=False
        )
        out = warp(image.unsqueeze(0), drawn(), size=size, centre=centre).squeeze(0)
        # torchvision repeats the crop's outermost pixels where ours sees what is beyond them.
        torch.testing.assert_close(out[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0, atol=1e-4)


def test_what_lies_outside_is_black_and_a_flip_through_the_map_is_a_flip(images: Tensor) -> None:
    pixels = images[0] / 255
    assert shown(torch.ones_like(pixels), right=0.5)[:, :, : SIDE // 4].abs().max() == 0
    assert shown(torch.ones_like(pixels), right=0.5)[:, :, SIDE // 4 + 1 :].min() > 0.999
    torch.testing.assert_close(shown(pixels, size=(-1, 1)), pixels.flip(-1), rtol=0, atol=1e-4)


def test_brightness_and_contrast_are_torchvisions(images: Tensor) -> None:
    augment = Augment(brightness=0.4, contrast=0.4)
    parameters = augment.draw(numbers(6))
    out = augment(images, numbers(6))
    for row, image in enumerate(images / 255):
        brighter = torchvision.adjust_brightness(image, parameters.brightness[row].item())
        expected = torchvision.adjust_contrast(brighter, parameters.contrast[row].item())
        torch.testing.assert_close(out[row], expected, rtol=0, atol=1e-6)


def test_everything_at_once_stays_between_0_and_1_and_changes_every_image(images: Tensor) -> None:
    before = images.clone()
    out = Augment(**EVERYTHING)(images, numbers(6))
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert ((out - images / 255).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_float_images_are_treated_as_the_same_uint8_ones(images: Tensor) -> None:
    augment = Augment(**EVERYTHING)
    out = augment(images, numbers(6))
    torch.testing.assert_close(augment(images / 255, numbers(6)), out, rtol=0, atol=0)
    pixels = (images / 255).requires_grad_()
    assert not augment(pixels, numbers(6)).requires_grad


# -- what is drawn ---------------------------------------------------------------------------------


def test_the_parameters_are_uniform_over_their_ranges() -> None:
    parameters = Augment(**EVERYTHING).draw(numbers(10_000))
    ranges = {
        "flip": (-0.5, 0.5),
        "angle": (-np.deg2rad(10), np.deg2rad(10)),
        "right": (-0.1, 0.1),  # half sides
        "down": (-0.1, 0.1),
        "scale": (0.9, 1.1),
        "brightness": (0.8, 1.2),
        "contrast": (0.8, 1.2),
        "area": (0.5, 1.0),
        "shape": (0, 1),
        "left": (0, 1),
        "top": (0, 1),
    }
    assert tuple(ranges) == Drawn._fields
    for name, (low, high) in ranges.items():
        values = getattr(parameters, name).double().numpy()
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3


def test_a_crop_has_its_area_its_ratio_and_lies_within_the_image() -> None:
    augment = Augment(crop_scale=[0.3, 1.0], crop_ratio=[0.75, 1.333])
    parameters = augment.draw(numbers(5000))
    size, centre = augment.crop(parameters)
    assert (size > 0).all()
    assert (centre.abs() + size <= 1 + 1e-6).all()
    torch.testing.assert_close(size.prod(dim=1), parameters.area)
    ratio = size[:, 0] / size[:, 1]
    assert 0.75 - 1e-5 <= ratio.min() < 0.78
    assert 1.28 < ratio.max() <= 1.333 + 1e-5
    assert (centre.abs() + size).min(dim=0).values.max() < 0.9  # not only at the edges


def test_an_option_leaves_the_other_parameters_as_they_are() -> None:
    few = Augment(degrees=10, contrast=0.2).draw(numbers(50))
    all_of_them = Augment(**EVERYTHING).draw(numbers(50))
    assert torch.equal(few.angle, all_of_them.angle)
    assert torch.equal(few.contrast, all_of_them.contrast)


def test_an_image_is_transformed_alike_in_any_batch(images: Tensor) -> None:
    augment = Augment(seed=3, **EVERYTHING)
    many, draws = images.repeat(4, 1, 1, 1), numbers(24, first=10**9)
    whole = augment(many, draws)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for part in order.split(5):
        for one, all_of_them in zip(augment.draw(draws[part]), augment.draw(draws), strict=True):
            assert torch.equal(one, all_of_them[part])
        out = augment(many[part], draws[part])
        # A mean's and a cosine's last bit may depend on how a batch is cut into vectors.
        torch.testing.assert_close(out, whole[part], rtol=0, atol=1e-4)
        assert (out - whole[part]).abs().mean() < 1e-6


def test_the_number_of_threads_and_autocast_change_nothing(images: Tensor) -> None:
    augment = Augment(**EVERYTHING)
    expected = augment(images, numbers(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augment(images, numbers(6))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        out = augment(images, numbers(6))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_seeds_draws_and_epochs_differ_and_the_same_seed_does_not() -> None:
    def angles(seed: int, first: int) -> Tensor:
        return Augment(seed=seed, degrees=10).draw(numbers(1000, first=first)).angle

    assert torch.equal(angles(0, 0), angles(0, 0))
    for one, other in ((angles(0, 0), angles(1, 0)), (angles(0, 0), angles(0, 1000))):
        assert (one == other).sum() < 3
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.12
    torch.manual_seed(1)
    state = torch.get_rng_state()
    angles(0, 0)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone


def test_nothing_looks_at_a_value(images: Tensor) -> None:
    # On the meta device there are no values: what runs there has no `.item()` and no shape that
    # depends on one, as a CUDA graph demands.
    augment = Augment(**EVERYTHING).to("meta")
    out = augment(images.to("meta"), numbers(6).to("meta"))
    assert out.shape == images.shape


def test_a_checkpoint_holds_nothing_of_it() -> None:
    assert Augment(**EVERYTHING).state_dict() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_transforms_as_the_cpu_and_in_a_graph(images: Tensor) -> None:
    augment = Augment(**EVERYTHING)
    expected = augment(images, numbers(6))
    augment.to("cuda")
    pixels, draws = images.cuda(), numbers(6).cuda()
    torch.testing.assert_close(augment(pixels, draws).cpu(), expected, rtol=0, atol=1e-3)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = augment(pixels, draws)
    draws.copy_(numbers(6, first=6))
    graph.replay()
    again = Augment(**EVERYTHING)(images, numbers(6, first=6))
    torch.testing.assert_close(out.cpu(), again, rtol=0, atol=1e-3)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["light", "strong"])
def test_the_configured_options_are_accepted_and_do_something(option: str, images: Tensor) -> None:
    text = (REPOSITORY / "conf" / "augment" / f"{option}.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(text.replace("${seed}", "5"))
    assert options.pop("_target_") == f"{Augment.__module__}.{Augment.__name__}"
    augment = Augment(**options)
    assert augment.seed == 5
    assert augment.flips == (option == "strong")
    out = augment(images, numbers(6))
    assert ((out - images / 255).abs().mean(dim=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize(
    "key, value",
    [
        ("hflip", 1.5),
        ("hflip", True),
        ("degrees", -1),
        ("degrees", float("nan")),
        ("translate", "far"),
        ("brightness", 1.01),
        ("contrast", None),
        ("scale", 0.9),
        ("scale", [1.1, 0.9]),
        ("scale", [0.0, 1.0]),
        ("crop_scale", [0.5, 1.5]),
        ("crop_scale", [0.5, 0.8, 1.0]),
        ("crop_ratio", ["a", "b"]),
        ("crop_ratio", [1.5, 2.0]),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        Augment(**{key: value})
    assert str(caught.value).startswith(f"augment.{key}={value} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_that_is_no_whole_number_is_refused(seed: float) -> None:
    make: Callable[..., Augment] = Augment
    with pytest.raises(UserError, match="seed="):
        make(seed=seed)
