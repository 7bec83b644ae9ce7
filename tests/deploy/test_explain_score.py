"""Localisation: the score is right for maps that are known, and a trained model earns one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Train, Xray
from PIL import Image

from xray_lightning.data.sources.nih import read_boxes
from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms
from xray_lightning.deploy.saliency.localisation import LEVELS, MACRO, box_mask, localise
from xray_lightning.errors import UserError

pytest.importorskip("captum", reason="needs the extra explain")

S = 40
FINDINGS = ("Mass", "Nodule")
# Eleven patients with two images each; a box a finding and image, at a place of its own.
PATIENTS = 11


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Boxes of 10 x 10 of 40 x 40 pixels, and images in which they alone are white."""
    folder, rows = tmp_path_factory.mktemp("boxed"), []
    random = np.random.default_rng(0)
    for number in range(2 * PATIENTS):
        pixels = np.zeros((S, S), dtype=np.uint8)
        path = folder / f"{number}.png"
        for finding, cell in zip(FINDINGS, random.choice(16, 2, replace=False), strict=True):
            x, y = 10 * (cell % 4), 10 * (cell // 4)
            pixels[y : y + 10, x : x + 10] = 255 if finding == "Mass" else 200
            place = np.array([x, y, x + 10, y + 10]) / S
            rows.append([path.name, finding, *place, str(path), f"patient {number // 2}"])
        Image.fromarray(pixels).save(path)
    columns = ["image", "finding", "left", "top", "right", "bottom", "path", "patient_id"]
    return pd.DataFrame(rows, columns=columns)


def explainer(maps: Any) -> Any:
    """What `localise` asks of an Explainer, whose maps are a function of pixels and finding."""
    return SimpleNamespace(findings=FINDINGS, model=SimpleNamespace(image_size=S), maps=maps)


def perfect(pixels: np.ndarray, finding: int) -> np.ndarray:
    return (pixels[:, 0] == (255, 200)[finding]).astype(np.float32)


def test_a_map_of_the_box_scores_one_and_chance_is_the_boxs_share(boxes: pd.DataFrame) -> None:
    found = localise(explainer(perfect), boxes, resamples=50)
    assert found.images == dict.fromkeys(FINDINGS, boxes["image"].nunique())
    for name in (*FINDINGS, MACRO):
        score = found.pointing[name]
        assert (score.value, score.chance) == (1.0, 100 / S**2)
        assert score.another < 0.4  # the boxes of others lie elsewhere
        assert score.ci95 is None
        assert score.why == ("every resample gives the same, which does not tell how sure that is")
        for level in LEVELS:
            overlap = found.overlap[level][name]
            assert overlap.value == 1.0
            share = 100 / S**2
            assert overlap.chance == pytest.approx(share * share / (2 * share - share * share))


def test_maps_at_random_score_chance(boxes: pd.DataFrame) -> None:
    random = np.random.default_rng(0)
    hits = []
    for _ in range(40):
        found = localise(
            explainer(lambda pixels, finding: random.random((len(pixels), S, S), np.float32)),
            boxes,
            resamples=2,
        )
        hits.append(found.pointing[MACRO].value)
    deviation = np.std(hits) / np.sqrt(len(hits))
    assert abs(np.mean(hits) - 100 / S**2) < 4 * deviation
    # Half of the pixels are marked, evenly: the overlap is what chance says.
    overlap = found.overlap[0.5][MACRO]
    assert overlap.value == pytest.approx(overlap.chance, rel=0.1)


def test_a_map_of_nothing_points_nowhere_and_marks_nothing(boxes: pd.DataFrame) -> None:
    found = localise(
        explainer(lambda pixels, finding: np.zeros((len(pixels), S, S), np.float32)),
        boxes,
        resamples=2,
    )
    assert found.pointing[MACRO].value == 0
    assert found.overlap[0.25][MACRO].value == 0


def test_half_of_a_box_marked_is_an_overlap_of_a_half(boxes: pd.DataFrame) -> None:
    def left_half(pixels: np.ndarray, finding: int) -> np.ndarray:
        maps = perfect(pixels, finding)
        for one in maps:
            one[:, int(np.flatnonzero(one.any(axis=0))[0]) + 5 :] = 0
        return maps

    found = localise(explainer(left_half), boxes, resamples=2)
    assert found.overlap[0.75][MACRO].value == pytest.approx(0.5)
    assert found.pointing[MACRO].value == 1.0


def test_intervals_follow_patients_and_few_of_them_have_none(boxes: pd.DataFrame) -> None:
    hit = {f"{number}.png": number % 4 < 2 for number in range(2 * PATIENTS)}  # whole patients
    order = boxes[boxes["finding"] == "Mass"].sort_values("image")["image"].tolist()

    def some(pixels: np.ndarray, finding: int) -> np.ndarray:
        maps = perfect(pixels, finding)
        for place in range(len(maps)):
            if not hit[order[(seen[finding] + place) % len(order)]]:
                maps[place] = 0
        seen[finding] += len(pixels)
        return maps

    seen = [0, 0]
    found = localise(explainer(some), boxes, resamples=400).pointing["Mass"]
    assert found.ci95 is not None
    low, high = found.ci95
    assert low < found.value < high
    # Eleven patients who are hit or not as a whole: about +-0.3; 22 images alone: about +-0.2.
    assert high - low > 0.5
    few = boxes[boxes["patient_id"].isin([f"patient {n}" for n in range(6)])]
    score = localise(explainer(perfect), few, resamples=20).pointing["Mass"]
    assert score.ci95 is None
    assert score.why == "needs at least ten patients with the finding"


def test_unreadable_images_are_named_and_left_out(boxes: pd.DataFrame, tmp_path: Path) -> None:
    broken = boxes.copy()
    name = broken["image"][0]
    broken.loc[broken["image"] == name, "path"] = str(tmp_path / "gone.png")
    found = localise(explainer(perfect), broken, resamples=2)
    assert found.unreadable == {name: "No such file or directory"}
    assert found.images["Mass"] == boxes["image"].nunique() - 1
    with pytest.raises(UserError, match="no box of a finding that the model knows"):
        localise(explainer(perfect), boxes[boxes["finding"] == "none"], resamples=2)


def test_a_box_marks_the_pixels_whose_middle_it_holds() -> None:
    mask = box_mask(np.array([[0.25, 0.5, 0.5, 1.0]]), 8)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 7, 2, 3)
    assert mask.sum() == 8
    # One between two middles is still somewhere.
    assert box_mask(np.array([[0.501, 0.501, 0.505, 0.505]]), 8).sum() == 1
    both = box_mask(np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]), 8)
    assert both.sum() == 16


def test_a_box_is_cut_off_at_the_edge_and_one_beyond_it_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "BBox_List_2017.csv"
    sound = "Image Index,Finding Label,Bbox [x,y,w,h],,,\nb.png,Infiltrate,512,0,1024,256\n"
    path.write_text(sound)
    (found,) = read_boxes(path).itertuples(index=False, name=None)
    assert found == ("b.png", "Infiltration", 0.5, 0.0, 1.0, 0.25)
    path.write_text(f"{sound}a.png,Mass,2000,2,3,4\n")
    with pytest.raises(UserError, match=r"line 3.*covers nothing"):
        read_boxes(path)


def test_the_command_scores_a_data_set_and_says_the_same_in_json(
    ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    arguments = ("explain", ckpt, phantoms, "--score", "--resamples", "20", "--side", "all")
    code, out, err = xray(*arguments, "--json", "score.json")
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "score.json").read_text())
    macro = content["pointing"][MACRO]
    assert content["side"] == "all"
    assert len(content["sha256"]) == 64
    assert f"{macro['value']:.3f}" in out
    assert f"{macro['chance']:.3f}" in out
    assert list(content["iou"]) == ["0.25", "0.5", "0.75"]
    code, again, _ = xray(*arguments, "--json")
    assert json.loads(again) == content
    code, out, _ = xray(*arguments, "--findings", "Mass,Nodule", "--json")
    assert list(json.loads(out)["images"]) == ["Mass", "Nodule"]


def test_a_data_set_or_a_model_without_such_boxes_is_refused(
    ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    code, _, err = xray("explain", ckpt, phantoms, "--score", "--findings", "Gout")
    assert (code, err.count("\n")) == (2, 1)
    assert "--findings Gout" in err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("images", "Data_Entry_2017_v2020.csv"):
        (bare / name).symlink_to(phantoms / name)
    code, _, err = xray("explain", ckpt, bare, "--score")
    assert code == 2
    assert "there is no bare/BBox_List_2017.csv".replace("bare/", f"{bare}/") in err
    (bare / "BBox_List_2017.csv").symlink_to(phantoms / "BBox_List_2017.csv")
    code, _, err = xray("explain", ckpt, bare, "--score")
    assert code == 2
    assert "give --side all" in err


@pytest.mark.slow
def test_a_model_trained_on_phantoms_points_at_their_signs(
    train: Train, xray: Xray, tmp_path: Path
) -> None:
    root = tmp_path / "signs"
    ensure_phantoms(root, PhantomSpec(images=1000, size=64, seed=3))
    ended = train(
        *("data=phantom", "data.phantom=null", f"data.root={root}", "data.image_size=64"),
        *("accelerator=cpu", "trainer.max_epochs=6", "data.batch_size=8", "report=false"),
        *("scheduler=one_cycle", "stages=[fit]"),
        *("speed.threads=1", "optimizer.fused=true"),
        defaults=False,
    )
    assert ended.exit_code == 0, ended.stderr
    (ckpt,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    arguments = ("explain", ckpt, root, "--score", "--side", "all", "--resamples", "100", "--json")
    code, out, err = xray(*arguments)
    assert code == 0, err
    found = json.loads(out)
    assert len(found["images"]) == 14
    macro = found["pointing"][MACRO]
    assert macro["value"] >= 3 * macro["chance"]
    assert macro["value"] > macro["another_patient"]
