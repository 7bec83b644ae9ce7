"""`xray data check`: its exit codes, its JSON, and what it prints of hostile names."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from PIL import Image
from typer.testing import CliRunner, Result

from xray_lightning.cli.data import app
from xray_lightning.errors import UserError

HEADER = "Image Index,Finding Labels,Patient ID"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two images of two patients, sound but for the notes that columns and lists are lacking."""
    root = tmp_path / "set"
    root.mkdir()
    for shade, name in enumerate(("a.png", "b.png")):
        image = Image.new("L", (40, 40), 90 * shade)
        image.putpixel((3, 3), 200)
        image.save(root / name)
    (root / "Data_Entry.csv").write_text(f"{HEADER}\na.png,Mass,1\nb.png,Edema,2\n")
    return root


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], catch_exceptions=True)


def test_notes_leave_the_exit_code_0_and_problems_make_it_1(small: Path) -> None:
    done = check(small)
    assert done.exit_code == 0, done.output
    assert "Columns that the table lacks" in done.output
    assert "Sound, with" in done.output
    (small / "b.png").unlink()
    done = check(small)
    assert done.exit_code == 1
    assert "Rows without an image file: 1" in done.output
    assert "-> add the files" in done.output
    assert "Not sound: 1 kind of problem." in done.output


def test_json_goes_to_stdout_alone_or_to_a_file_beside_the_summary(small: Path) -> None:
    (small / "b.png").unlink()
    for place in (["--json"], ["--json", "--jobs", "1"]):
        done = check(small, *place)
        assert done.exit_code == 1
        content = json.loads(done.stdout)
    file = small / "check.json"
    done = check("--json", file, small)
    assert done.exit_code == 1
    assert json.loads(file.read_text()) == content
    assert "Not sound" in done.output
    (problem,) = content["problems"]
    assert problem == {
        "kind": "missing_file",
        "text": "rows without an image file",
        "count": 1,
        "advice": problem["advice"],
        "names": ["b.png"],
        "details": {},
    }
    assert content["sound"] is False
    assert set(content) == {
        *("schema_version", "root", "images", "dialect", "release", "told_by", "sound"),
        *("counts", "positives", "modes", "sizes", "splits", "problems", "notes"),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/nosuch"], "does not exist"),
        (["{}/a.png"], "is not a folder"),
        (["{}/empty"], "holds no table of images"),
        (["{}", "--images", "{}/nosuch"], "--images"),
        (["{}", "--split", "nosuch"], "--split nosuch is neither"),
        (["{}", "--jobs", "0"], "--jobs=0"),
        (["{}", "--json", "{}/nosuch/x.json"], "there is no folder"),
        (["{}", "--table", "nosuch.csv"], "is no file"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_one_line(
    small: Path, arguments: list[str], said: str
) -> None:
    (small / "empty").mkdir()
    done = check(*(one.format(small) for one in arguments))
    assert isinstance(done.exception, UserError)
    assert done.exception.exit_code == 2
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)


def test_fault_37_hostile_names_are_spelled_out_and_left_whole_in_the_json(small: Path) -> None:
    name = "x\x1b[31m[bold]\u202e.png"
    Image.new("L", (40, 40)).save(small / name)
    with open(os.fsencode(small) + b"/\xff.png", "wb"):
        pass
    (small / "Data_Entry.csv").write_text(f"{HEADER}\na.png,Mass,1\nb.png,\x1b[2J[red],2\n")
    done = check(small)
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "x\\x1b[31m[bold]\\u202e.png" in done.output
    assert "\\udcff.png" in done.output
    done = check(small, "--json")
    notes = {one["kind"]: one["names"] for one in json.loads(done.stdout)["notes"]}
    assert notes["unlisted_file"] == [name, "\udcff.png"]


def test_fault_60_ids_and_ages_of_patients_are_never_told(small: Path) -> None:
    header = f"{HEADER},Patient Age"
    rows = ["a.png,Mass,MRN-4711,107", "b.png,Mass,MRN-4711,ninety-one", "a.png,Edema,MRN-0815,5"]
    (small / "Data_Entry.csv").write_text("\n".join([header, *rows]))
    (small / "train_val_list.txt").write_text("a.png")
    (small / "test_list.txt").write_text("b.png")
    for output in (check(small).output, check(small, "--json").output):
        assert "a.png" in output
        assert not any(value in output for value in ("4711", "0815", "107", "ninety"))


def test_fault_60_a_table_of_ones_own_is_not_quoted_where_it_speaks_of_persons(small: Path) -> None:
    (small / "Data_Entry.csv").rename(small / "own.csv")
    (small / "own.csv").write_text("image,patient,Mass,age\na.png,4711,1,it's ninety\n")
    done = check(small, "--findings", "Mass")
    assert done.exit_code == 1
    output = " ".join(done.output.split())
    assert "line 2: age: not an age such as 58 or 058Y (read to here only)" in output
    assert not any(value in output for value in ("4711", "ninety"))


def test_a_listing_fits_80_columns_without_blanks_at_its_ends(small: Path) -> None:
    rows = [f"{'y' * 60}{number}.png,Mass,{number}" for number in range(20)]
    (small / "Data_Entry.csv").write_text("\n".join([HEADER, *rows]))
    done = CliRunner().invoke(app, ["check", str(small)], env={"COLUMNS": "80"})
    assert (done.exit_code, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "and 15 more" in " ".join(done.stdout.split())
    assert not any(line.startswith("      ") and line != line.rstrip() for line in lines)


def test_control_c_ends_with_130_and_writes_nothing(small: Path) -> None:
    rows = []
    for number in range(3000):
        os.link(small / "a.png", small / f"{number}.png")
        rows.append(f"{number}.png,Mass,{number}")
    (small / "Data_Entry.csv").write_text("\n".join([HEADER, *rows]))
    code = (
        "import sys; sys.argv = ['xray', *sys.argv[1:]]\n"
        "from xray_lightning.data import decode_resize\n"
        "look = decode_resize.decode_gray\n"
        "def slow(path):\n"
        "    import os, time; os.write(1, b'looking\\n'); time.sleep(0.02); return look(path)\n"
        "decode_resize.decode_gray = slow\n"
        "from xray_lightning.cli.main import main; main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "data", "check", small, "--json", small / "check.json"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and this suite may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "looking\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not (small / "check.json").exists()
