"""`xray explain`: a folder with a map of what was asked for, and a reason for every other file."""

import csv
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import CONTRASTS, LEAST_CONTRAST
from checkpoints import SIDE, without_numbers
from conftest import Xray
from PIL import Image

from xray_lightning.data.sources.nih import read_boxes
from xray_lightning.deploy.model import load_model
from xray_lightning.deploy.saliency import gallery as gallery_of
from xray_lightning.deploy.saliency.gallery import heat_png, overlay_png, shrunk
from xray_lightning.deploy.saliency.maps import Explainer
from xray_lightning.findings import FINDINGS

pytest.importorskip("captum", reason="needs the extra explain")


@pytest.fixture
def chest(phantoms: Path, tmp_path: Path) -> Path:
    """Two phantoms, one of them cut to 64 x 40 pixels, with what is no image beside them."""
    folder = tmp_path / "chest"
    folder.mkdir()
    first, second = sorted(phantoms.rglob("*.png"))[:2]
    shutil.copy(first, folder / "a.png")
    Image.open(second).convert("L").crop((0, 0, 64, 40)).save(folder / "b.png")
    (folder / "empty.dcm").touch()
    (folder / "note.txt").write_text("no image")
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "explained.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_mixed_folder_gives_maps_and_reasons(ckpt: Path, chest: Path, xray: Xray) -> None:
    code, out, err = xray("explain", ckpt, chest, "--out", "new", "--top", "2")
    assert code == 0, err
    assert "4 images, 2 unreadable, 4 maps" in out
    folder = chest.parent / "new"
    rows = rows_of(folder)
    reasons = {Path(row["path"]).name: row["reason"] for row in rows if row["reason"]}
    assert reasons == {
        "empty.dcm": "the file is empty (0 bytes)",
        "note.txt": "neither PNG, JPEG nor DICOM (starts with b'no image')",
    }
    model = load_model(ckpt, device="cpu")
    said = model.predict(str(chest / "b.png"))
    best = [FINDINGS[place] for place in np.argsort(-said.probabilities[0])[:2]]
    of_b = [row for row in rows if row["path"].endswith("b.png")]
    assert [row["finding"] for row in of_b] == best
    for row in of_b:
        place = FINDINGS.index(row["finding"])
        assert float(row["probability"]) == pytest.approx(said.probabilities[0, place], abs=1e-6)
        assert float(row["calibrated"]) == pytest.approx(said.calibrated[0, place], abs=1e-6)
        assert float(row["threshold"]) == pytest.approx(model.operating_points[row["finding"]])
        assert row["decision"] == str(int(said.decisions[0, place]))
        with Image.open(folder / row["overlay"]) as overlay:
            assert (overlay.size, overlay.mode) == ((64, 40), "RGB")
    with np.load(folder / "maps" / "b.npz", allow_pickle=False) as arrays:
        assert arrays["findings"].tolist() == best
        maps = arrays["maps"]
    assert (maps.dtype, maps.shape) == (np.float32, (2, SIDE, SIDE))
    pixels = next(model.decoded([str(chest / "b.png")]))[0].picture.pixels
    explainer = Explainer.load(ckpt, method="layercam", device="cpu")
    expected = explainer.maps(pixels[None, None], FINDINGS.index(best[0]))[0]
    np.testing.assert_allclose(maps[0], expected, rtol=1e-4, atol=1e-6)
    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    assert float(of_b[0]["peak_x"]) == pytest.approx((column + 0.5) / SIDE)
    assert float(of_b[0]["peak_y"]) == pytest.approx((row + 0.5) / SIDE)


def test_findings_that_are_asked_for_are_those_that_are_mapped(
    ckpt: Path, chest: Path, xray: Xray
) -> None:
    for method in ("layercam", "gradcam"):
        code, *_ = xray(
            *("explain", ckpt, chest / "a.png", "--out", method, "--method", method),
            *("--findings", "Hernia,Mass"),
        )
        assert code == 0
        assert {row["finding"] for row in rows_of(chest.parent / method)} == {"Hernia", "Mass"}
    one, other = (
        np.load(chest.parent / method / "maps" / "a.npz")["maps"]
        for method in ("layercam", "gradcam")
    )
    assert not np.allclose(one, other)


def test_a_finding_with_a_box_is_mapped_and_its_box_is_in_the_gallery(
    ckpt: Path, phantoms: Path, xray: Xray, tmp_path: Path
) -> None:
    boxes = read_boxes(phantoms / "BBox_List_2017.csv")
    image = boxes["image"][0]
    path = next(phantoms.rglob(image))
    code, out, _ = xray("explain", ckpt, path, "--out", "new", "--top", "1", "--html")
    assert code == 0
    assert "1 with boxes" in out
    boxed = set(boxes["finding"][boxes["image"] == image])
    mapped = {row["finding"] for row in rows_of(tmp_path / "new")}
    assert boxed <= mapped
    assert len(mapped) <= len(boxed) + 1
    page = (tmp_path / "new" / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<rect") == (boxes["image"] == image).sum()
    # A list that was not asked for, and is damaged, is told of and does no harm.
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path, copy)
    (copy / "BBox_List_2017.csv").write_text("nonsense\n1\n")
    code, out, _ = xray("explain", ckpt, copy / image, "--out", "without")
    assert code == 0
    assert "with boxes" not in out
    code, _, err = xray(
        *("explain", ckpt, copy / image, "--out", "third"),
        *("--boxes", copy / "BBox_List_2017.csv"),
    )
    assert code == 2
    assert "BBox_List_2017.csv" in err


def test_fault_37_hostile_names_stay_in_the_folder(
    ckpt: Path, chest: Path, monkeypatch: pytest.MonkeyPatch, xray: Xray
) -> None:
    image = (chest / "a.png").read_bytes()
    shutil.rmtree(chest)
    names = [b"=cmd.png", b"new\nline.png", b"\xff.png", b"n" * 251 + b".png", b"..png"]
    names += [b"<img src=x onerror=alert(1)>.png", b"A b.png", b"a_b.png", b"\x1b[31m.png"]
    chest.mkdir()
    for name in names:
        (chest / os.fsdecode(name)).write_bytes(image)
    (chest / "below").mkdir()
    (chest / "below" / "a_b.png").write_bytes(image)
    code, _, err = xray("explain", ckpt, chest, "--out", "new", "--top", "1", "--html")
    assert code == 0, err
    folder = chest.parent / "new"
    rows = rows_of(folder)
    assert len(rows) == len(names) + 1
    for kind in ("overlay", "maps"):
        files = [folder / row[kind] for row in rows]
        assert len(set(files)) == len(rows)
        assert {path.resolve().parent.parent for path in files} == {folder.resolve()}
        assert all(path.is_file() for path in files)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("explained.csv", "gallery.html", "maps", "overlays"),
    ]
    page = (folder / "gallery.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "\x1b" not in page + (folder / "explained.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--out is missing; give a new folder, or --score"),
        (("--out", "full"), "--out full holds files already"),
        (("--out", "file"), "--out file"),
        (("--out", "new", "--top", "0"), "--top=0 must be"),
        (("--out", "new", "--top", "1", "--findings", "Mass"), "give one of them"),
        (("--out", "new", "--findings", "Mass,Gout"), "Gout"),
        (("--out", "new", "--method", "occlusion"), "--method occlusion is unknown"),
        (("--out", "new", "--boxes", "absent.csv"), "there is no absent.csv"),
        (("--out", "new", "--accelerator", "abacus"), "abacus"),
        (("absent.png", "--out", "new"), None),
        (("--score", "--out", "new"), "--out cannot stand beside --score"),
        (("--score", "--html"), "--html cannot stand beside --score"),
        (("--score", "--side", "val"), "--side val is unknown"),
        (("--score", "--resamples", "0"), "--resamples=0 must be"),
        (("--score", "--json", "absent/x.json"), "--json absent/x.json"),
        (("--side", "all", "--out", "new"), "--side needs --score"),
        (("--score", "second"), "--score takes one folder"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str | None, ckpt: Path, chest: Path, xray: Xray
) -> None:
    here = chest.parent
    (here / "full").mkdir()
    (here / "full" / "kept").touch()
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    code, out, err = xray("explain", ckpt, chest, *arguments)
    if message is None:  # a file that is not there, among others, is a row
        assert code == 0
        return
    assert (code, out) == (2, "")
    assert err.startswith("xray: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(here.rglob("*")) == before


def test_a_model_that_gives_no_number_leaves_nothing(
    ckpt: Path, chest: Path, xray: Xray, tmp_path: Path
) -> None:
    without_numbers(ckpt, tmp_path / "nan.ckpt")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = xray("explain", tmp_path / "nan.ckpt", chest, "--out", "new")
    assert code == 1
    assert "gives no number" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_overlay_is_hot_where_the_map_is_and_the_image_elsewhere() -> None:
    gray = np.full((60, 90), 100, dtype=np.uint8)
    values = np.zeros((6, 6), dtype=np.float32)
    values[0, 0] = 3.0
    overlay = np.asarray(Image.open(io.BytesIO(overlay_png(gray, values)))).astype(int)
    assert overlay.shape == (60, 90, 3)
    assert overlay[2, 2, 0] > 180  # the upper end of the colours
    assert (overlay[30:, 45:] == 100).all()
    heat = np.asarray(Image.open(io.BytesIO(heat_png(values))))
    assert heat.shape[2] == 4
    assert heat[..., 3].max() == 255
    assert heat[-1, -1, 3] == 0
    nothing = np.asarray(Image.open(io.BytesIO(heat_png(np.zeros((6, 6), np.float32)))))
    assert nothing[..., 3].max() == 0
    assert shrunk(np.zeros((2000, 1000), np.uint8)).shape == (512, 256)


def test_the_gallery_says_when_it_does_not_show_all(
    ckpt: Path, chest: Path, xray: Xray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_of, "MOST_IMAGES", 1)
    code, *_ = xray("explain", ckpt, chest, "--out", "new", "--html")
    assert code == 0
    page = (chest.parent / "new" / "gallery.html").read_text(encoding="utf-8")
    assert "These are the first 1 of 2 images" in page
    assert page.count('class="heat"') == 3
    assert "and 1 more, in explained.csv" in page
    assert page.count("Research software, not a medical device.") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_slider_fades_the_map_and_a_finding_brings_its_own(
    scheme: str, ckpt: Path, phantoms: Path, chest: Path, opened: Any, xray: Xray
) -> None:
    boxes = read_boxes(phantoms / "BBox_List_2017.csv")
    boxed = next(phantoms.rglob(boxes["image"][0]))
    code, _, err = xray("explain", ckpt, boxed, chest, "--out", "new", "--html")
    assert code == 0, err
    page = chest.parent / "new" / "gallery.html"
    for width in (1280, 360):
        seen = opened(page, width=width, scheme=scheme)
        faint = [text for text in seen.page.evaluate(CONTRASTS) if text[0] < LEAST_CONTRAST]
        assert faint == []
        seen.check()
    card = seen.page.locator(".card").first
    shown = card.locator(".heat:not([hidden])")
    assert shown.count() == 1
    opacity = "heat => getComputedStyle(heat).opacity"
    assert shown.evaluate(opacity) == "0.8"
    slider = card.locator("input[type=range]")
    slider.focus()
    seen.page.keyboard.press("Home")
    assert shown.evaluate(opacity) == "0"
    assert card.locator("output").inner_text() == "0 %"
    seen.page.keyboard.press("ArrowRight")
    assert shown.evaluate(opacity) == "0.01"
    slider.fill("55")
    assert shown.evaluate(opacity) == "0.55"
    # The other images keep theirs.
    other = seen.page.locator(".card").nth(1).locator(".heat:not([hidden])")
    assert other.evaluate(opacity) == "0.8"

    before = shown.get_attribute("src")
    choice = card.locator("input[type=radio]").nth(1)
    choice.check()
    assert shown.count() == 1
    assert shown.get_attribute("data-finding") == choice.get_attribute("value")
    assert shown.get_attribute("src") != before
    assert shown.evaluate(opacity) == "0.55"
    drawn = "image => image.naturalWidth > 0 && image.getBoundingClientRect().height > 50"
    assert shown.evaluate(drawn)
    # The map lies on its image, pixel for pixel.
    rectangles = "e => JSON.stringify(e.getBoundingClientRect())"
    assert shown.evaluate(rectangles) == card.locator("img").first.evaluate(rectangles)
    assert card.locator("rect.marked").first.is_visible()
    seen.page.locator("#boxes").uncheck()
    assert not card.locator("rect.marked").first.is_visible()
    seen.check()
