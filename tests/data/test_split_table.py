"""The table at the start of a run counts right and fits a terminal."""

import io
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL, real_data
from rich.console import Console
from tables import make_manifest

from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.splits import Split, make_split, render_split_table, split_table
from xray_lightning.findings import FINDINGS

# image -> patient, findings
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a.png": ("1", ("Mass",)),
    "b.png": ("1", ("Mass", "Edema")),
    "c.png": ("2", ()),
    "d.png": ("3", ("Hernia",)),
    "e.png": ("3", ()),
}
SPLIT = Split("x", {"train": ("a.png", "b.png", "c.png"), "val": ("d.png",), "test": ("e.png",)})


MANIFEST = make_manifest(
    {name: patient for name, (patient, _) in ROWS.items()},
    labels={name: findings for name, (_, findings) in ROWS.items()},
)


def rendered(table: pd.DataFrame, *, width: int = 80, title: str = "a title") -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_split_table(table, title=title))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().splitlines()


def test_patients_images_and_positives_are_counted_by_side() -> None:
    table = split_table(MANIFEST, SPLIT)
    assert list(table.columns) == ["train", "val", "test", "all"]
    assert list(table.index) == ["Patients", "Images", "No Finding", *FINDINGS]
    assert table.loc["Patients"].tolist() == [2, 1, 1, 3]
    assert table.loc["Images"].tolist() == [3, 1, 1, 5]
    assert table.loc["No Finding"].tolist() == [1, 0, 1, 2]
    assert table.loc["Mass"].tolist() == [2, 0, 0, 2]
    assert table.loc["Edema"].tolist() == [1, 0, 0, 1]
    assert table.loc["Hernia"].tolist() == [0, 1, 0, 1]
    assert table.loc["Fibrosis"].tolist() == [0, 0, 0, 0]


def test_an_image_on_two_sides_counts_once_in_all() -> None:
    shared = Split("x", SPLIT.sides | {"test": ("a.png", "e.png")})
    table = split_table(MANIFEST, shared)
    assert table.loc["Images"].tolist() == [3, 1, 2, 5]
    assert table.loc["Mass"].tolist() == [2, 0, 1, 2]


def test_counts_do_not_overflow_the_labels_8_bits() -> None:
    table = pd.concat([MANIFEST.table] * 200, ignore_index=True)
    table["image"] = [f"{number}.png" for number in range(len(table))]
    manifest = Manifest(table, "nih", Path("/data"), {}, {}, 0)
    split = Split("x", {"train": tuple(table["image"]), "val": ("0.png",), "test": ("1.png",)})
    assert split_table(manifest, split).at["Mass", "train"] == 400


def test_the_rendered_table_shows_counts_and_shares() -> None:
    lines = rendered(split_table(MANIFEST, SPLIT))
    assert lines[0].strip() == "a title"
    mass = next(line for line in lines if line.startswith("Mass"))
    assert mass.split() == ["Mass", "2", "66.7%", "0", "0.0%", "0", "0.0%", "2", "40.0%"]
    images = next(line for line in lines if line.startswith("Images"))
    assert images.split() == ["Images", "3", "1", "1", "5"]
    assert any(line.startswith("Pleural Thickening") for line in lines)


def test_a_side_without_images_has_no_share() -> None:
    empty = Split("x", SPLIT.sides | {"test": ()})
    lines = rendered(split_table(MANIFEST, empty))
    assert next(line for line in lines if line.startswith("Mass")).split()[5:7] == ["0", "-"]


@real_data
@pytest.mark.parametrize("folder", ["nih256", "nih_full_metadata"])
def test_the_table_of_nih_fits_80_columns_uncut(folder: str) -> None:
    manifest = read_manifest(REAL / folder)
    table = split_table(manifest, make_split(manifest, "official"))
    lines = rendered(table)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert table.at["Images", "all"] == len(manifest.table)
    assert table.at["Infiltration", "all"] == int(manifest.table["Infiltration"].sum())
