"""The phantoms: NIH's layout, signs where their boxes say, the same bytes for the same seed."""

import errno
import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import pytest
from PIL import Image

from xray_lightning.data.sources.phantom import dataset as phantom
from xray_lightning.data.sources.phantom.dataset import (
    PhantomSpec,
    ensure_phantoms,
    write_phantoms,
)
from xray_lightning.data.sources.phantom.patients import Exam, plan_exams, sample_chest
from xray_lightning.data.sources.phantom.render import PhantomBox, draw_phantom
from xray_lightning.data.sources.phantom.signs import Sign, reshape
from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.findings import FINDINGS, canonical, encode

SMALL = PhantomSpec(images=3, size=32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, PhantomSpec(images=40, size=64, seed=3))
    return root


def table_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "Data_Entry_2017_v2020.csv", dtype=str, keep_default_na=False)


def names_in(path: Path) -> set[str]:
    return set(path.read_text().split())


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_table_has_the_columns_of_nih_v2020(drawn: Path) -> None:
    assert list(table_of(drawn).columns) == [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
        "OriginalImage[Width",
        "Height]",
        "OriginalImagePixelSpacing[x",
        "y]",
    ]


def test_every_row_has_valid_labels_and_its_own_image(drawn: Path) -> None:
    table = table_of(drawn)
    for labels in table["Finding Labels"]:
        encode(labels)  # raises for a label that is none
    assert set(table["Patient Gender"]) == {"M", "F"}
    assert set(table["View Position"]) == {"PA", "AP"}
    assert {path.name for path in (drawn / "images").iterdir()} == set(table["Image Index"])
    for name, patient, follow_up in zip(
        table["Image Index"], table["Patient ID"], table["Follow-up #"], strict=True
    ):
        assert name == f"{int(patient):08d}_{int(follow_up):03d}.png"


def test_the_lists_cover_all_images_and_share_no_patient(drawn: Path) -> None:
    train, test = names_in(drawn / "train_val_list.txt"), names_in(drawn / "test_list.txt")
    assert train
    assert test
    assert train | test == set(table_of(drawn)["Image Index"])
    assert not {name[:8] for name in train} & {name[:8] for name in test}


def test_a_few_of_nihs_oddities_are_there(drawn: Path) -> None:
    ages = list(table_of(drawn)["Patient Age"])
    assert any(age.endswith("Y") and len(age) == 4 for age in ages)
    assert "411" in ages
    modes = []
    for path in sorted((drawn / "images").iterdir()):
        with Image.open(path) as image:
            modes.append(image.mode)
    assert modes.count("RGBA") == 1
    assert modes.count("L") == len(modes) - 1


def test_the_box_list_names_findings_of_its_images_inside_the_1024_grid(drawn: Path) -> None:
    header, *rows = (drawn / "BBox_List_2017.csv").read_text().splitlines()
    assert header == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    assert rows
    labels = table_of(drawn).set_index("Image Index")["Finding Labels"]
    for row in rows:
        name, finding, *numbers = row.split(",")
        assert finding != "Infiltration"  # NIH's box list says Infiltrate
        assert canonical(finding) in str(labels[name]).split("|")
        x, y, width, height = map(float, numbers)
        assert min(x, y) >= 0
        assert min(width, height) > 0
        assert max(x + width, y + height) <= 1024.01


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_phantoms(tmp_path / name, PhantomSpec(images=3, size=48, seed=seed))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    other = files_of(tmp_path / "c")
    first = "images/00000001_000.png"
    assert files_of(tmp_path / "a")[first] != other[first]


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    spec = PhantomSpec(images=60, size=32)
    told: list[int] = []
    write_phantoms(tmp_path / "one", spec, workers=1, progress=told.append)
    write_phantoms(tmp_path / "two", spec, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert told == [50, 10]


def test_a_longer_data_set_begins_with_the_shorter_one() -> None:
    assert plan_exams(200, seed=1)[:50] == plan_exams(50, seed=1)


def test_a_patient_keeps_the_sex_and_grows_no_younger() -> None:
    exams = plan_exams(600, seed=0)
    assert {exam.follow_up for exam in exams} == set(range(6))
    for before, after in pairwise(exams):
        if before.patient == after.patient:
            assert (after.sex, after.follow_up) == (before.sex, before.follow_up + 1)
            assert after.age >= before.age


def test_two_thousand_images_hold_enough_of_every_finding() -> None:
    exams = plan_exams(2000, seed=0)
    for finding in FINDINGS:
        share = np.mean([finding in exam.findings for exam in exams])
        assert 0.05 < share < 0.15, finding
        assert sum(finding in exam.findings for exam in exams if exam.in_test) >= 15, finding
    assert 0.35 < np.mean([not exam.findings for exam in exams]) < 0.45
    assert 0.15 < np.mean([exam.in_test for exam in exams]) < 0.25


def test_a_chest_has_dark_lungs_beside_a_bright_mediastinum() -> None:
    image, boxes = draw_phantom(size=128, patient=4)
    assert image.shape == (128, 128)
    assert image.dtype == np.uint8
    assert not boxes
    rows = slice(50, 70)
    middle = image[rows, 60:68].mean()
    for lung in (image[rows, 30:45], image[rows, 85:97]):
        assert lung.mean() < 0.75 * middle
    assert image[110:120, 40:90].mean() > 1.3 * image[rows, 30:45].mean()  # the abdomen is bright


def inside(boxes: list[PhantomBox], size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros((size, size), dtype=bool)
    scale = size / 1024
    for box in boxes:
        rows = slice(int(box.y * scale), int((box.y + box.height) * scale) + 1)
        mask[rows, int(box.x * scale) : int((box.x + box.width) * scale) + 1] = True
    return mask


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_the_image_inside_its_box(finding: str) -> None:
    for patient in (1, 2, 3):
        without, _ = draw_phantom(size=96, patient=patient)
        image, boxes = draw_phantom([finding], size=96, patient=patient, severity=0.8)
        assert boxes
        assert {box.finding for box in boxes} == {finding}
        change = np.abs(image.astype(float) - without)
        mask = inside(boxes, 96)
        assert change[mask].mean() > 5
        assert change[mask].mean() > 2 * change[~mask].mean()


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_subtle_finding_still_changes_the_image(finding: str) -> None:
    without, _ = draw_phantom(size=64, patient=7)
    image, _ = draw_phantom([finding], size=64, patient=7, severity=0.0)
    assert np.abs(image.astype(float) - without).max() > 8


def test_signs_keep_their_side_over_the_follow_ups() -> None:
    sides = set()
    for follow_up in range(3):
        _, boxes = draw_phantom(["Mass"], size=64, patient=9, follow_up=follow_up)
        sides.add(boxes[0].x + boxes[0].width / 2 < 512)
    assert len(sides) == 1


def test_nodules_are_smaller_than_3_cm_and_masses_larger() -> None:
    cm = 36 / 1024
    for patient in range(1, 9):
        _, nodules = draw_phantom(["Nodule"], size=128, patient=patient, severity=0.6)
        _, masses = draw_phantom(["Mass"], size=128, patient=patient, severity=0.6)
        assert all(1 < box.width * cm < 3 for box in nodules)
        assert all(3 < box.width * cm < 8 for box in masses)


def test_cardiomegaly_means_a_heart_wider_than_half_the_chest() -> None:
    for patient in range(1, 40):
        exam = Exam(patient, 0, "M", 60, "PA", ())
        chest = sample_chest(exam, seed=0)
        ill = reshape(chest, {"Cardiomegaly": Sign(severity=0.0, place=0, look=0)})
        assert chest.heart_ratio < 0.5 < ill.heart_ratio


def test_an_existing_data_set_is_reused(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    assert ensure_phantoms(root, SMALL)
    before = (root / "images").stat().st_mtime_ns
    assert not ensure_phantoms(root, SMALL)
    assert (root / "images").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert ensure_phantoms(tmp_path / "new" / "empty", SMALL)
    (tmp_path / "there").mkdir()
    assert ensure_phantoms(tmp_path / "there", SMALL)


def test_another_spec_or_version_or_a_lost_image_is_redrawn(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    ensure_phantoms(root, SMALL)
    assert ensure_phantoms(root, PhantomSpec(images=2, size=32))
    assert len(list((root / "images").iterdir())) == 2
    mark = json.loads((root / "phantom.json").read_text())
    (root / "phantom.json").write_text(json.dumps({**mark, "version": 0}))
    assert ensure_phantoms(root, PhantomSpec(images=2, size=32))
    (root / "images" / "00000001_000.png").unlink()
    assert ensure_phantoms(root, PhantomSpec(images=2, size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


@pytest.mark.parametrize("mark", [None, "{}", "[1]", "not json"])
def test_a_folder_of_other_files_is_refused_and_left_alone(
    tmp_path: Path, mark: str | None
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    if mark is not None:
        (tmp_path / "phantom.json").write_text(mark)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="give an empty or new folder"):
        ensure_phantoms(tmp_path, SMALL)
    assert files_of(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="folder"):
            ensure_phantoms(root, SMALL)
    assert files_of(tmp_path) == {"file": b"mine"}


def test_a_failure_while_drawing_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_phantoms(tmp_path / "phantoms", SMALL, progress=stop)
    assert not list(tmp_path.iterdir())


def test_fault_07_a_drawing_process_that_is_killed_ends_the_work_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    def kill(_: int) -> None:
        for worker in psutil.Process().children():
            # Called again before the pool has noticed, it finds those that it has killed already.
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(worker.cmdline()):
                    worker.kill()

    with pytest.raises(RunFailedError, match="a drawing process died; is there memory left"):
        ensure_phantoms(tmp_path / "phantoms", PhantomSpec(images=400, size=32), progress=kill)
    assert not list(tmp_path.iterdir())


def test_a_failed_redraw_leaves_the_former_data_set(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    root = tmp_path / "phantoms"
    ensure_phantoms(root, SMALL)
    before = files_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ensure_phantoms(root, PhantomSpec(images=2, size=32), progress=stop)
    assert files_of(tmp_path) == before


def test_fault_14_a_full_disk_is_told_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(phantom, "draw_exam", fail)
    with pytest.raises(RunFailedError, match="No space left on device"):
        ensure_phantoms(tmp_path / "phantoms", SMALL)
    assert not list(tmp_path.iterdir())


def test_the_loser_of_a_race_takes_the_winners_data_set(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    won: list[bool] = []

    def overtake(_: int) -> None:
        won.append(ensure_phantoms(root, SMALL))

    assert not ensure_phantoms(root, SMALL, progress=overtake)
    assert won == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"size": 8}, {"seed": -1}])
def test_an_impossible_spec_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        PhantomSpec(**wrong)
