"""`xray predict`: a row for every file, whatever it is, and what the numbers are."""

import csv
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Hostile, checkpoint, without_numbers
from conftest import Xray
from PIL import Image

from xray_lightning import load_model
from xray_lightning.findings import FINDINGS

KINDS = ("prob", "calibrated", "threshold", "decision")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 0.ckpt and 1.ckpt, which have operating points, and bare.ckpt without."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint(folder / "0.ckpt")
    checkpoint(folder / "1.ckpt", seed=1)
    checkpoint(folder / "bare.ckpt", seed=2, fitted=False)
    return folder


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def read(path: Path) -> list[dict[str, str]]:
    return rows_of(path.read_text(encoding="utf-8"))


@pytest.fixture
def chest(phantoms: Path, tmp_path: Path) -> Path:
    """A folder of three phantoms, one of them in a folder below."""
    folder = tmp_path / "chest"
    (folder / "below").mkdir(parents=True)
    paths = sorted(phantoms.rglob("*.png"))[:3]
    for path, name in zip(paths, ("b.png", "a.png", "below/c.png"), strict=True):
        shutil.copy(path, folder / name)
    return folder


def test_a_folder_gives_a_row_a_file_with_every_number(
    models: Path, chest: Path, tmp_path: Path, xray: Xray
) -> None:
    code, out, err = xray("predict", models / "0.ckpt", chest, "--out", tmp_path / "o.csv")
    assert (code, err) == (0, "")
    assert "Written" in out
    assert "3 images, 0 unreadable" in out
    rows = read(tmp_path / "o.csv")
    assert [row["path"] for row in rows] == [
        f"{chest}/{n}" for n in ("a.png", "b.png", "below/c.png")
    ]
    assert list(rows[0]) == ["path", "status", "reason", "flags"] + [
        f"{kind}_{finding}" for kind in KINDS for finding in FINDINGS
    ]
    found = load_model(models / "0.ckpt", device="cpu").predict([row["path"] for row in rows])
    assert found.findings == FINDINGS
    assert found.calibrated is not None
    assert found.decisions is not None
    assert found.decisions.any() != found.decisions.all()
    for row, raw, calibrated, decided in zip(
        rows, found.probabilities, found.calibrated, found.decisions, strict=True
    ):
        assert (row["status"], row["reason"], row["flags"]) == ("ok", "", "")
        for place, finding in enumerate(FINDINGS):
            assert np.float32(row[f"prob_{finding}"]) == raw[place]
            assert float(row[f"calibrated_{finding}"]) == pytest.approx(calibrated[place], 1e-8)
            odds = np.log(raw[place] / (1 - raw[place]))
            assert calibrated[place] == pytest.approx(1 / (1 + np.exp(1 - 1.5 * odds)), rel=1e-5)
            cut = float(row[f"threshold_{finding}"])
            assert cut == pytest.approx(0.3 + 0.03 * place)
            assert (
                row[f"decision_{finding}"]
                == str(int(raw[place] >= cut))
                == str(int(decided[place]))
            )


def test_json_lines_hold_the_same_numbers_by_finding(
    models: Path, chest: Path, tmp_path: Path, xray: Xray
) -> None:
    (chest / "note.txt").write_text("no image")
    for name in ("o.csv", "o.jsonl"):
        assert xray("predict", models / "0.ckpt", chest, "--out", tmp_path / name)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    for line, row in zip(lines, read(tmp_path / "o.csv"), strict=True):
        assert (line["path"], line["status"]) == (row["path"], row["status"])
        for finding, found in line["findings"].items():
            assert found["probability"] == pytest.approx(float(row[f"prob_{finding}"]), rel=1e-8)
            assert found["decision"] is (row[f"decision_{finding}"] == "1")
            assert set(found) == {"probability", "calibrated", "threshold", "decision"}
    (unread,) = [line for line in lines if line["status"] == "unreadable"]
    assert unread["path"] == str(chest / "note.txt")
    assert unread["findings"] == {}
    assert "neither PNG, JPEG nor DICOM" in unread["reason"]


def test_a_mixed_folder_ends_well_and_every_oddity_has_its_reason(
    models: Path, chest: Path, xray: Xray
) -> None:
    from matplotlib.cbook import get_sample_data

    (chest / "empty.png").touch()
    (chest / "note.txt").write_text("no image")
    (chest / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(20))
    whole = (chest / "a.png").read_bytes()
    (chest / "cut.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(get_sample_data("grace_hopper.jpg", asfileobj=False), chest / "photo.jpg")
    negative = 255 - np.asarray(Image.open(chest / "a.png").convert("L"))
    Image.fromarray(negative).save(chest / "negative.png")
    (chest / "gone.png").symlink_to(chest / "nowhere")
    os.mkfifo(chest / "pipe.png")  # no regular file: reading it would never end
    (chest / "below" / "loop").symlink_to(chest)
    code, out, err = xray("predict", models / "0.ckpt", chest)
    assert code == 0
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert rows.keys() == {
        *("a.png", "b.png", "c.png", "empty.png", "note.txt", "x.dcm", "cut.png", "photo.jpg"),
        *("negative.png", "gone.png"),
    }
    assert rows["empty.png"]["reason"] == "the file is empty (0 bytes)"
    assert rows["cut.png"]["reason"].startswith("damaged image")
    assert rows["gone.png"]["reason"] == "No such file or directory"
    assert "colour" in rows["photo.jpg"]["flags"].split(";")
    assert rows["negative.png"]["flags"] == "inverted"
    for row in rows.values():
        unreadable = row["status"] == "unreadable"
        assert unreadable == bool(row["reason"])
        assert {row[f"{kind}_Hernia"] == "" for kind in KINDS} == {unreadable}
    assert "10 images, 5 unreadable" in err
    assert "flagged as inverted" in err


def test_fault_37_60_hostile_names_are_one_harmless_row_each(
    models: Path, chest: Path, monkeypatch: pytest.MonkeyPatch, xray: Xray
) -> None:
    monkeypatch.chdir(chest)
    image = (chest / "a.png").read_bytes()
    names = [b"=cmd|x.png", b"-x.png", b"@sum.png", b"+1.png", b"new\nline.png", b"\xff.png"]
    names += [b"n" * 251 + b".png", b'a,"b".png', b"\x1b[31m.png"]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(image)
    arguments = [os.fsdecode(name) for name in names if name[:1] != b"-"]
    code, *_ = xray("predict", models / "0.ckpt", "--out", "o.csv", *arguments, "--", "-x.png")
    assert code == 0
    data = Path("o.csv").read_bytes()
    assert data.isascii()
    assert b"\x1b" not in data
    assert data.count(b"\n") == len(names) + 1
    rows = read(Path("o.csv"))
    assert {row["status"] for row in rows} == {"ok"}
    assert not [row["path"] for row in rows if row["path"].startswith(("=", "+", "-", "@"))]
    assert rows[0]["path"] == "./=cmd|x.png"
    assert {r"new\nline.png", r"\udcff.png"} <= {row["path"] for row in rows}


def test_patterns_and_repeats_are_each_file_once(models: Path, chest: Path, xray: Xray) -> None:
    code, out, err = xray("predict", chest / "*.png", chest / "a.png", models / "0.ckpt")
    assert code == 0
    assert [Path(row["path"]).name for row in rows_of(out)] == ["a.png", "b.png"]
    assert "1 named again" in err
    _, out, _ = xray("predict", models / "0.ckpt", chest / "**" / "*.png")
    assert [Path(row["path"]).name for row in rows_of(out)] == ["a.png", "b.png", "c.png"]


def test_a_table_names_its_images_at_any_depth_and_lost_ones_are_rows(
    models: Path, chest: Path, phantoms: Path, tmp_path: Path, xray: Xray
) -> None:
    table = tmp_path / "list.csv"
    table.write_text("Patient ID,Image Index\n1,c.png\n2,a.png\n3,lost.png\n")
    code, out, _ = xray("predict", models / "0.ckpt", table, "--images", chest)
    assert code == 0
    found = [
        (Path(row["path"]).relative_to(chest).as_posix(), row["status"]) for row in rows_of(out)
    ]
    assert found == [("below/c.png", "ok"), ("a.png", "ok"), ("lost.png", "unreadable")]
    own = tmp_path / "own.csv"
    own.write_text(out)
    code, again, _ = xray("predict", models / "0.ckpt", own)
    assert (code, again) == (0, out)


def test_several_checkpoints_are_averaged_and_decide_nothing(
    models: Path, chest: Path, xray: Xray
) -> None:
    pair = [models / "0.ckpt", models / "1.ckpt"]
    code, out, err = xray("predict", *pair, chest / "a.png")
    assert code == 0
    assert "2 checkpoints averaged have no operating points" in err
    (row,) = rows_of(out)
    assert not [key for key in row if key.startswith(("calibrated", "threshold", "decision"))]
    each = [load_model(one, device="cpu").predict(chest / "a.png").probabilities for one in pair]
    assert float(row["prob_Hernia"]) == pytest.approx(np.mean(each, axis=0)[0, -1], rel=1e-6)


def test_a_checkpoint_without_operating_points_decides_nothing(
    models: Path, chest: Path, xray: Xray
) -> None:
    code, out, err = xray("predict", models / "bare.ckpt", chest)
    assert code == 0
    assert "decision_Hernia" not in rows_of(out)[0]
    assert "has no operating points" in err


def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    models: Path, chest: Path, tmp_path: Path, xray: Xray
) -> None:
    (tmp_path / "hollow").mkdir()
    Path("old.ckpt").write_bytes(b"")
    content = torch.load(models / "0.ckpt", weights_only=True)
    content["xray"]["schema_version"] = 0
    torch.save(content, "old.ckpt")
    Path("hostile.ckpt").write_bytes(pickle.dumps({"xray": Hostile()}))
    Path("list.csv").write_text("image\na.png\n")
    good = models / "0.ckpt"
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((good,), "nothing to predict"),
        ((chest,), "no checkpoint is given"),
        ((good, "absent"), "absent: no file to predict"),
        ((good, "hollow"), "hollow: no file to predict"),
        ((good, chest, "--out", "o.txt"), "the ending must be one of"),
        ((good, chest, "--out", "no/o.csv"), "there is no folder no"),
        ((good, "list.csv", "--out", "list.csv"), "is one of the inputs"),
        ((good, chest, "--images", chest), "--images is of a CSV's images"),
        ((good, chest, "--average", "votes"), "average=votes is unknown"),
        ((good, chest, "--batch-size", "0"), "--batch-size=0"),
        (("absent.ckpt", chest), "absent.ckpt does not exist"),
        (("old.ckpt", chest), "schema_version 0"),
        (("hostile.ckpt", chest), "is not loaded"),
    ]
    before = sorted(os.listdir())
    for arguments, message in cases:
        code, out, err = xray("predict", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert message in err
    assert sorted(os.listdir()) == before


def test_an_earlier_output_is_no_input_and_is_kept_when_the_work_fails(
    models: Path, chest: Path, xray: Xray
) -> None:
    out = chest / "o.csv"
    assert xray("predict", models / "0.ckpt", chest, "--out", out)[0] == 0
    first = out.read_bytes()
    assert xray("predict", models / "0.ckpt", chest, "--out", out)[0] == 0
    assert out.read_bytes() == first
    broken = without_numbers(models / "0.ckpt", chest.parent / "nan.ckpt")
    code, _, err = xray("predict", broken, chest, "--out", out)
    assert code == 1
    assert "gives no number" in err
    assert out.read_bytes() == first
    assert [path.name for path in chest.iterdir() if path.name.startswith(".")] == []


def test_parquet_holds_the_same(models: Path, chest: Path, tmp_path: Path, xray: Xray) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    (chest / "note.txt").write_text("no image")
    out = tmp_path / "o.parquet"
    code, _, err = xray("predict", models / "0.ckpt", chest, "--out", out)
    assert (code, err) == (0, "")
    xray("predict", models / "0.ckpt", chest, "--out", tmp_path / "o.csv")
    table = parquet.read_table(out).to_pylist()
    assert [line["status"] for line in table].count("unreadable") == 1
    for line, row in zip(table, read(tmp_path / "o.csv"), strict=True):
        assert list(line) == list(row)
        if row["status"] == "unreadable":
            assert line["reason"] == row["reason"]
            assert line["prob_Mass"] is None
        else:
            assert line["prob_Mass"] == np.float32(row["prob_Mass"])
            assert line["decision_Mass"] is (row["decision_Mass"] == "1")


def test_parquet_without_pyarrow_says_what_it_needs(
    models: Path, chest: Path, tmp_path: Path, xray: Xray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = xray("predict", models / "0.ckpt", chest, "--out", tmp_path / "o.parquet")
    assert (code, err.count("\n")) == (2, 1)
    assert "parquet needs pyarrow" in err
