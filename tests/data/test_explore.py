"""What a data set is shown to hold is what it holds, whatever its names, files and gaps are."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from conftest import REAL, real_data
from PIL import Image
from typer.testing import CliRunner

from xray_lightning.cli.data import app
from xray_lightning.data.explore.figures import Shown, grid_figure, levels_figure
from xray_lightning.data.explore.measure import (
    ALL,
    PAPER_CORRECT,
    PAPER_OVER,
    PAPER_UNDER,
    Exposure,
    GrayLevels,
    count,
    gray_levels,
    histogram,
)
from xray_lightning.data.explore.page import Explored, explore_data
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.sources.phantom.render import draw_phantom
from xray_lightning.data.splits import SIDES, Split, make_split
from xray_lightning.errors import UserError

Gray = npt.NDArray[np.uint8]
FIGURES = {
    *("images", "image", "exposure", "exposures", "findings", "together", "ages", "views"),
    "patients",
}


# -- gray levels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example, expected",
    [
        (PAPER_OVER, Exposure.OVER),
        (PAPER_UNDER, Exposure.UNDER),
        (PAPER_CORRECT, Exposure.CORRECT),
    ],
)
def test_the_papers_examples_get_the_papers_classes(
    example: tuple[float, float], expected: Exposure
) -> None:
    assert GrayLevels(*example, 0.0, *example).exposure == expected


def test_mean_and_deviation_are_those_of_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50), dtype=np.uint8)
    levels = gray_levels(pixels)
    assert levels.mean == pytest.approx(float((pixels / 255).mean()))
    assert levels.std == pytest.approx(float((pixels / 255).std()))
    assert levels.padding == 0
    assert (levels.inside_mean, levels.inside_std) == (levels.mean, levels.std)
    shares = histogram(pixels, bins=8)
    expected, _ = np.histogram(pixels, bins=8, range=(0, 256))
    np.testing.assert_allclose(shares, expected / pixels.size)


@pytest.mark.parametrize("border", [0, 20, 240, 255])
def test_padding_is_found_at_all_edges_and_left_out(border: int) -> None:
    inside = np.random.default_rng(0).integers(60, 200, (40, 30), dtype=np.uint8)
    framed = np.pad(inside, ((3, 2), (7, 8)), constant_values=border)
    levels = gray_levels(framed)
    assert levels.padding == pytest.approx(1 - inside.size / framed.size)
    assert levels.inside_mean == pytest.approx(float(inside.mean() / 255))
    assert levels.exposure == Exposure.PADDED


def test_plain_gray_edges_are_no_padding_and_a_blank_image_is_nothing_else() -> None:
    inside = np.random.default_rng(0).integers(60, 200, (40, 30), dtype=np.uint8)
    assert gray_levels(np.pad(inside, 5, constant_values=128)).padding == 0
    blank = gray_levels(np.zeros((9, 9), dtype=np.uint8))
    assert (blank.padding, blank.mean, blank.exposure) == (1.0, 0.0, Exposure.PADDED)
    assert np.isnan(blank.inside_mean)


@pytest.fixture(scope="module")
def chest() -> Gray:
    """A phantom that is exposed correctly and has no collimation."""
    pixels, _ = draw_phantom(["Mass"], seed=1, patient=3, size=128)
    assert gray_levels(pixels).exposure == Exposure.CORRECT
    return pixels


@pytest.mark.parametrize(
    "contrast, black, expected",
    [
        (0.55, 0.10, Exposure.OVER),
        (0.60, 0.35, Exposure.UNDER),
        (0.95, 0.0, Exposure.CORRECT),
    ],
)
def test_a_chest_exposed_in_another_way_changes_its_class(
    chest: Gray, contrast: float, black: float, expected: Exposure
) -> None:
    exposed = (255 * black + contrast * chest).astype(np.uint8)
    assert gray_levels(exposed).exposure == expected
    assert gray_levels(np.pad(exposed, 8)).exposure == Exposure.PADDED


# -- numbers ---------------------------------------------------------------------------------------


def test_what_is_counted_is_what_the_table_says(phantoms: Path) -> None:
    manifest = read_manifest(phantoms)
    split = make_split(manifest, "official")
    numbers = count(manifest, split)
    table = manifest.table
    for finding in manifest.findings:
        with_it = set(table["image"][table[finding] == 1])
        assert numbers.counts.at[finding, ALL] == len(with_it)
        for side in SIDES:
            assert numbers.counts.at[finding, side] == len(with_it & set(split.sides[side]))
    both = (table["Effusion"] + table["Edema"] == 2).sum()
    row, column = map(manifest.findings.index, ("Effusion", "Edema"))
    assert numbers.together[row, column] == numbers.together[column, row] == both > 0
    images = table.groupby("patient_id").size()
    assert numbers.images_of_patients[:3].tolist() == [(images == n).sum() for n in (1, 2, 3)]
    assert numbers.images_of_patients.sum() == len(images)
    women_of_50 = table[(table["sex"] == "F") & table["age"].between(50, 54)]
    assert numbers.ages.at[50.0, "female"] == len(women_of_50) > 0
    assert numbers.ages.to_numpy().sum() + numbers.ages_unknown == len(table)
    assert numbers.views.at["AP", "male"] == ((table["view"] == "AP") & (table["sex"] == "M")).sum()


def test_rows_on_no_side_are_counted_among_all(phantoms: Path) -> None:
    manifest = read_manifest(phantoms)
    some = manifest.table["image"].tolist()
    split = Split("x", {"train": (some[0],), "val": (some[1],), "test": (some[1],)})
    counts = count(manifest, split).counts
    assert counts.loc["Images"].to_dict() == {"train": 1, "val": 1, "test": 1, "all": len(some)}
    assert list(count(manifest, None).counts.columns) == ["all"]


# -- the command -----------------------------------------------------------------------------------


def explore(*arguments: str | Path) -> str:
    """`xray data explore`, which must succeed; gives what it prints."""
    words = ["explore", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False).stdout


def check_page(out: Path) -> str:
    """Read the page; every figure is beside it and inside it, and nothing is fetched."""
    page = (out / "explore.html").read_text()
    drawn = {path.stem for path in (out / "figures").iterdir()}
    assert drawn == set(re.findall(r'<figure class="drawn" id="(\w+)">', page))
    for path in (out / "figures").iterdir():
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "Research software, not a medical device." in page
    return page


@pytest.fixture(scope="module")
def explored(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The phantoms' page, and what the command has said."""
    out = tmp_path_factory.mktemp("explored")
    return out, explore(phantoms, "--out", out)


def test_a_data_set_is_shown_in_nine_figures_and_one_page(
    explored: tuple[Path, str], phantoms: Path
) -> None:
    out, text = explored
    page = check_page(out)
    assert {path.stem for path in (out / "figures").iterdir()} == FIGURES
    assert "80 images measured: " in text
    assert f"Written: {out}/explore.html, with exposure.csv and 9 figures beside it" in text
    rows = list(csv.DictReader(io.StringIO((out / "exposure.csv").read_text())))
    assert len(rows) == 80
    kinds = pd.Series([row["exposure"] for row in rows]).value_counts()
    for kind in Exposure:
        assert f"{kinds.get(kind.value, 0)} {kind.value}" in text
    one = next(row for row in rows if row["exposure"] == "correct")
    pixels = np.asarray(Image.open(phantoms / "images" / one["image"]).convert("L")) / 255
    assert float(one["mean"]) == pytest.approx(pixels.mean(), abs=1e-4)
    assert float(one["std"]) == pytest.approx(pixels.std(), abs=1e-4)
    assert "by side of the split official" in page
    assert "mean below 0.455 and deviation below 0.190" in page  # the rule


def test_a_sample_and_an_image_of_ones_choice_are_measured_and_the_same_seed_repeats_them(
    phantoms: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    name = sorted(path.name for path in (phantoms / "images").iterdir())[-1]
    options = ["--sample", "7", "--image", name, "--seed", "3"]
    text = explore(phantoms, "--out", out, *options)
    measured = pd.read_csv(out / "exposure.csv")["image"].tolist()
    assert name in measured
    assert len(measured) in (7, 8)
    assert f"{len(measured)} images measured" in text
    assert f"{len(measured)} images, drawn at random of 80" in check_page(out)
    explore(phantoms, "--out", again, *options, "--jobs", "1")
    assert (again / "explore.html").read_bytes() == (out / "explore.html").read_bytes()


def test_a_table_without_images_is_shown_by_its_numbers(phantoms: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for file in ("Data_Entry_2017_v2020.csv", "test_list.txt", "train_val_list.txt"):
        (root / file).write_bytes((phantoms / file).read_bytes())
    text = explore(root, "--out", out)
    assert "Rows without an image file: 80" in text
    assert "measured" not in text
    page = check_page(out)
    assert "No image of the table could be read" in page
    drawn = {path.stem for path in (out / "figures").iterdir()}
    assert drawn == {"findings", "together", "ages", "views", "patients"}


def test_hostile_names_damaged_files_and_lacking_columns_end_in_a_page(tmp_path: Path) -> None:
    root, out = tmp_path / "<b>$set$", tmp_path / "out"
    root.mkdir()
    names = ["<script>alert(1)</script>.png".replace("/", "_"), "$x$ _$.png", "z" * 200 + ".png"]
    findings = ["A (b)", "C.d", "E_f", "E f g"]
    rows = []
    for place, name in enumerate(names):
        Image.new("L", (30, 60), 80 * place).save(root / name)
        rows.append([name, str(place), *[str(int(place >= k)) for k in range(4)]])
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    rows.append(["bad.png", "9", "-1", "", "0", "0"])
    rows.append(["gone.png", "9", "0", "0", "0", "0"])
    with (root / "films.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "patient", *findings], *rows])
    text = explore(root, "--findings", ",".join(findings), "--out", out)
    assert "3 images measured" in text
    assert "Rows without an image file: 1" in text
    assert "Images that cannot be read: 1" in text
    page = check_page(out)
    assert "<script>alert" not in page
    assert "<h1>&lt;b&gt;$set$</h1>" in page
    assert "<bdi>bad.png</bdi>" in page
    drawn = {path.stem for path in (out / "figures").iterdir()}
    assert drawn == FIGURES - {"ages", "views"}


def test_two_hundred_findings_fit(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    findings = [f"Finding {number:03d}" for number in range(200)]
    cells = [str(number % 2) for number in range(200)]
    header = ",".join(["image", "patient", *findings])
    (root / "t.csv").write_text(f"{header}\na.png,1,{','.join(cells)}\n")
    named = tuple(findings)
    manifest = read_manifest(root, findings=named, own=OwnTable())
    found: Explored = explore_data(manifest, None, tmp_path / "out")
    assert found.figures == 3
    assert "The 40 most frequent ones." in check_page(tmp_path / "out")


def test_images_of_any_shape_are_drawn() -> None:
    shapes = [(1, 1), (3, 400), (900, 20)]
    images = [
        Shown("$a$\n" * 40, np.full(shape, 9, dtype=np.uint8), ["Pleural_Thickening"] * 9)
        for shape in shapes
    ]
    for drawn in (grid_figure(images), levels_figure(images)):
        with Image.open(io.BytesIO(drawn)) as image:
            image.load()


@pytest.mark.parametrize(
    "options, told",
    [
        (["--image", "no.png"], "--image 'no.png' is none of the 80 images"),
        (["--sample", "0"], "--sample=0 must be a whole number of at least 1"),
        (["--seed", "-1"], "--seed=-1 must be a whole number of at least 0"),
        (["--jobs", "0"], "--jobs=0 must be a whole number from 1 to 256"),
        (["--split", "ai4m"], "data.split=ai4m needs"),
    ],
)
def test_a_wrong_option_is_refused_before_the_work(
    options: list[str], told: str, phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["explore", str(phantoms), "--out", str(out), *options])
    assert isinstance(done.exception, UserError)
    assert told in str(done.exception)
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_refused(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["explore", str(phantoms), "--out", str(tmp_path / "file")])
    assert isinstance(done.exception, UserError)
    assert "is a file; give a folder" in str(done.exception)


@real_data
def test_the_papers_over_exposed_image_has_the_papers_mean_and_deviation() -> None:
    path = next((REAL / "nih1024").rglob("00000658_000.png"))
    levels = gray_levels(np.asarray(Image.open(path).convert("L")))
    assert (round(levels.mean, 4), round(levels.std, 4)) == PAPER_OVER
    assert levels.exposure == Exposure.OVER
