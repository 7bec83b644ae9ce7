"""An exported data set trains as its source does, and is whole, or goes on where it was."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL, real_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tables import write, write_ai4m
from typer.testing import CliRunner

from xray_lightning.cli.data import app
from xray_lightning.data.export_folders import MODES, export_folders
from xray_lightning.data.manifest import Manifest, read_manifest
from xray_lightning.data.sources.custom_csv import OwnTable
from xray_lightning.data.splits import SIDES, Split, make_split, usable_split, whole_split
from xray_lightning.errors import UserError

Export = Callable[..., str]
Source = tuple[Manifest, Split]


@pytest.fixture
def export() -> Export:
    """`xray data export-folders`, which must succeed; gives what it prints."""

    def run(*arguments: str | Path) -> str:
        words = ["export-folders", *map(str, arguments)]
        return CliRunner().invoke(app, words, catch_exceptions=False).stdout

    return run


def facts(manifest: Manifest, split: Split) -> pd.DataFrame:
    """Side, patient and labels of every image, by side and image."""
    sides = {(side, name): None for side in SIDES for name in split.sides[side]}
    rows = manifest.table.set_index("image")[["patient_id", *manifest.findings]]
    index = pd.MultiIndex.from_tuples(sides, names=["side", "image"])
    return rows.loc[index.get_level_values("image")].set_index(index).sort_index()


def pixels(manifest: Manifest) -> dict[str, bytes]:
    return {Path(path).name: Path(path).read_bytes() for path in manifest.table["path"] if path}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_exported_is_read_as_what_it_came_from(
    mode: str, export: Export, phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = export(phantoms, out, "--mode", mode)
    assert f"Train on it: uv run train.py data=ai4m data.root={out}\n" in text
    source, copy = read_manifest(phantoms), read_manifest(out)
    split, again = make_split(source, "official"), make_split(copy, "ai4m")
    assert again.sha256 == split.sha256
    pd.testing.assert_frame_equal(facts(copy, again), facts(source, split))
    assert pixels(copy) == pixels(source)
    for side in SIDES:
        assert {path.name for path in (out / side).iterdir()} == set(split.sides[side])
    one = Path(copy.table["path"].iloc[0])
    original = Path(source.table["path"].iloc[0])
    assert one.is_symlink() == (mode == "symlink")
    assert one.samefile(original) == (mode != "copy")
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == set()
    assert export(phantoms, out, "--mode", mode).startswith(f"{len(source.table)} images")
    assert ": 0 new, 80 there" in export(phantoms, out, "--mode", mode)


def leaky(root: Path) -> Path:
    """AI for Medicine's CSVs, with one image in train and val, and one without a file."""
    root.mkdir()
    for file, names in (("train-small", "ab"), ("valid-small", "b"), ("test", "cd")):
        write_ai4m(root / f"{file}.csv", *((f"{name}.png", name, "") for name in names))
    for shade, name in enumerate("abc"):
        Image.new("L", (40, 40), 50 * shade).save(root / f"{name}.png")
    return root


@pytest.mark.parametrize("mode", MODES)
def test_an_image_on_two_sides_is_exported_twice_and_can_be_read(
    mode: str, export: Export, tmp_path: Path
) -> None:
    root, out = leaky(tmp_path / "leaky"), tmp_path / "out"
    options = ["--missing", "skip", "--allow-patient-overlap", "--mode", mode]
    text = export(root, out, *options)
    assert "4 images" in text
    assert "Left out: 1 row without a file" in text
    assert "data.allow_patient_overlap=true" in text
    assert (out / "train" / "b.png").read_bytes() == (out / "val" / "b.png").read_bytes()
    copy = read_manifest(out)
    assert make_split(copy, "ai4m").sides == {
        "train": ("a.png", "b.png"),
        "val": ("b.png",),
        "test": ("c.png",),
    }
    assert (copy.table["path"] != "").all()


def test_an_image_that_lies_on_one_side_needs_no_room_on_its_other(tmp_path: Path) -> None:
    manifest, out = read_manifest(leaky(tmp_path / "leaky")), tmp_path / "out"
    asked = make_split(manifest, "ai4m")
    usable = usable_split(manifest, asked, missing="skip", allow_patient_overlap=True)
    split = usable.split
    export_folders(manifest, split, out)
    (out / "val" / "b.png").unlink()
    export_folders(manifest, split, out, free=lambda folder: 0)
    assert (out / "val" / "b.png").samefile(out / "train" / "b.png")


def test_a_leak_and_a_missing_file_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root, out = leaky(tmp_path / "leaky"), tmp_path / "out"
    done = CliRunner().invoke(app, ["export-folders", str(root), str(out)])
    assert isinstance(done.exception, UserError)
    assert "train and val share 1 patient (b)" in str(done.exception)
    assert "1 of 5 rows have no file" in str(done.exception)
    assert not out.exists()


def test_a_table_of_ones_own_comes_back_with_its_folders_people_and_sides(
    export: Export, tmp_path: Path
) -> None:
    root, out = tmp_path / "own", tmp_path / "out"
    table = (
        "image,patient,Mass,Scoliosis,age,sex,view,split\n"
        "p1/a.png,7,1,0,058Y,F,AP,train\np2/a.png,8,0,1,,m,PA,val\nb.png,unknown,0,0,41,,,test\n"
    )
    for shade, name in enumerate(("p1/a.png", "p2/a.png", "b.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 40), 50 * shade).save(root / name)
    (root / "films.csv").write_text(table)
    text = export(root, out, "--findings", "Mass,Scoliosis")
    wanted = f"data=csv data.root={out} data.split=column 'data.findings=[Mass,Scoliosis]'"
    assert wanted in text
    named = ("Mass", "Scoliosis")
    source = read_manifest(root, findings=named, own=OwnTable())
    copy = read_manifest(out, findings=named, own=OwnTable())
    sides = make_split(copy, "column").sides
    assert sides == {
        "train": ("train/p1/a.png",),
        "val": ("val/p2/a.png",),
        "test": ("test/b.png",),
    }
    kept = [*named, "age", "sex", "view", "follow_up"]
    pd.testing.assert_frame_equal(copy.table[kept], source.table[kept])
    assert list(copy.table["patient_id"]) == ["7", "8", "unknown: b.png"]
    for one, other in zip(copy.table["path"], source.table["path"], strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


@pytest.fixture
def whole(phantoms: Path) -> Source:
    manifest = read_manifest(phantoms)
    return manifest, make_split(manifest, "official")


@contextmanager
def stopped_after_five(title: str, images: int) -> Iterator[Callable[[int], None]]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done == 5:
            raise KeyboardInterrupt

    yield advance


def test_a_stopped_export_is_no_data_set_yet_and_goes_on_where_it_was(
    whole: Source, tmp_path: Path
) -> None:
    manifest, split = whole
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export_folders(manifest, split, out, progress=stopped_after_five)
    with pytest.raises(UserError, match="no table of images"):
        read_manifest(out)
    first = out / "train" / split.sides["train"][0]
    first.write_bytes(b"half")  # as after a power failure
    done = export_folders(manifest, split, out)
    assert done.new == len(manifest.table) - 4
    assert pixels(read_manifest(out)) == pixels(manifest)


def test_a_finished_export_gets_back_what_was_removed_and_keeps_what_was_edited(
    whole: Source, tmp_path: Path
) -> None:
    manifest, split = whole
    out = tmp_path / "out"
    export_folders(manifest, split, out, mode="hardlink")
    (out / "test" / split.sides["test"][0]).unlink()
    (out / "test.csv").unlink()
    (out / "train-small.csv").write_text("mine\n")
    assert export_folders(manifest, split, out, mode="hardlink").new == 1
    assert (out / "test.csv").is_file()
    assert (out / "train-small.csv").read_text() == "mine\n"


def test_another_export_and_a_folder_of_other_things_are_left_alone(
    whole: Source, tmp_path: Path
) -> None:
    manifest, split = whole
    out = tmp_path / "out"
    export_folders(manifest, split, out, mode="symlink")
    before = (out / "export.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another export \(split official, symlink"):
        export_folders(manifest, split, out, mode="copy")
    assert (out / "export.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other is not empty; give a new folder"):
        export_folders(manifest, split, other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_place_inside_the_source_or_a_file_or_an_unknown_mode_is_refused(
    whole: Source, tmp_path: Path
) -> None:
    manifest, split = whole
    with pytest.raises(UserError, match="is inside"):
        export_folders(manifest, split, manifest.root / "out")
    assert not (manifest.root / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        export_folders(manifest, split, tmp_path / "file")
    with pytest.raises(UserError, match="--mode link is unknown; choose copy, hardlink, symlink"):
        export_folders(manifest, split, tmp_path / "out", mode="link")


def test_copies_that_do_not_fit_are_refused_before_the_first(whole: Source, tmp_path: Path) -> None:
    manifest, split = whole
    out = tmp_path / "out"
    needed = sum(os.path.getsize(path) for path in manifest.table["path"])
    with pytest.raises(UserError, match="are needed"):
        export_folders(manifest, split, out, free=lambda folder: needed - 1)
    assert list(out.iterdir()) == []
    export_folders(manifest, split, out, free=lambda folder: needed)
    # What is there needs no room.
    export_folders(manifest, split, out, free=lambda folder: 0)
    export_folders(manifest, split, tmp_path / "links", mode="symlink", free=lambda folder: 0)


def test_hard_links_to_another_file_system_are_refused_with_what_to_use(
    whole: Source, tmp_path: Path
) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs /dev/shm on another file system")
    manifest, split = whole
    out = elsewhere / f"{tmp_path.parent.name}-{tmp_path.name}"
    try:
        with pytest.raises(UserError, match="use --mode copy or --mode symlink"):
            export_folders(manifest, split, out, mode="hardlink")
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_two_exports_at_once_into_one_folder_do_not_meet(whole: Source, tmp_path: Path) -> None:
    manifest, split = whole
    out = tmp_path / "out"

    @contextmanager
    def meanwhile(title: str, images: int) -> Iterator[Callable[[int], None]]:
        with pytest.raises(UserError, match="another export works in it"):
            export_folders(manifest, split, out)
        yield lambda done: None

    assert export_folders(manifest, split, out, progress=meanwhile).new == len(manifest.table)


def test_a_data_set_without_a_split_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "t.csv").write_text("image,patient,Mass\na.png,1,0\n")
    words = ["export-folders", str(tmp_path / "own"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError)
    assert "brings no split along; give --split patient_random, or a CSV" in str(done.exception)


@real_data
def test_the_papers_images_come_out_on_the_sides_of_its_csvs(
    export: Export, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--missing", "skip", "--allow-patient-overlap", "--mode", "symlink"]
    export(REAL / "ai4m", out, "--images", REAL / "nih1024", *options)
    counts = {side: len(list((out / side).iterdir())) for side in SIDES}
    assert counts == {"train": 66, "val": 19, "test": 32}
    assert json.loads((out / "export.json").read_text())["finished"] is True


def names_of(*parts: str) -> st.SearchStrategy[list[str]]:
    name = st.lists(st.sampled_from(parts), min_size=1, max_size=3).map("/".join)
    return st.lists(name, min_size=5, max_size=12, unique=True)


WITHIN = ("a.png", "b.png", "c.png", "x", "link", "~", "a\\b.png", "train", "...")
BEYOND = ("..", ".", "", "OUT", "OUTSIDE", "/")


@given(names=names_of(*WITHIN) | names_of(*WITHIN, *BEYOND), mode=st.sampled_from(MODES))
def test_whatever_the_names_nothing_is_written_outside(
    names: list[str], mode: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("names")
    root, outside, out = base / "films", base / "outside", base / "out"
    for folder in (root / "x", root / "train", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    names = [name.replace("OUTSIDE", str(outside)).replace("OUT", str(out)) for name in names]
    for name in names:
        path = root / name
        if path.parent.is_dir() and not path.is_dir() and path.resolve().is_relative_to(root):
            path.write_bytes(name.encode())
    rows = [f'"{name}",{number},{number % 2}' for number, name in enumerate(names)]
    write(root / "films.csv", "image,patient,Mass", *rows)
    before = {path: path.is_file() and path.read_bytes() for path in base.rglob("*")}
    with suppress(UserError):
        manifest = read_manifest(root, own=OwnTable())
        split = whole_split(manifest)
        usable = usable_split(manifest, split, missing="skip", allow_patient_overlap=False)
        export_folders(manifest, usable.split, out, mode=mode)
    after = {path: path.is_file() and path.read_bytes() for path in base.rglob("*")}
    assert {path: after[path] for path in after if not path.is_relative_to(out)} == before
