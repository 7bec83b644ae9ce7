"""The `xray` command as a process: its exit codes, and the single line of an error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, Xray, environment

from xray_lightning.errors import UserError

SAMPLE = REPOSITORY / "tests" / "results_sample.json"


def process(
    *arguments: str | Path, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xray_lightning.cli.main", *map(str, arguments)],
        cwd=folder,
        env=environment(**{"COLUMNS": "100", "XRAY_DEBUG": "", **variables}),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(SAMPLE.read_bytes())
    return folder


def test_the_console_script_helps_and_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "heavy = {'torch', 'lightning', 'pandas', 'numpy', 'matplotlib', 'PIL'}\n"
        "atexit.register(lambda: print('IMPORTED', *(heavy & sys.modules.keys())))\n"
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("xray"), "--help"],
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout
    assert done.stdout.splitlines()[-1] == "IMPORTED"


@pytest.mark.parametrize(
    "command",
    [
        ("predict",),
        ("explain",),
        ("info",),
        ("export",),
        ("report",),
        ("evaluate",),
        ("recalibrate",),
        ("compare",),
        ("data", "phantom"),
        ("data", "check"),
        ("data", "cache"),
        ("data", "explore"),
        ("data", "export-folders"),
    ],
)
def test_every_command_shows_an_example(xray: Xray, command: tuple[str, ...]) -> None:
    code, out, _ = xray(*command, "--help")
    assert code == 0
    assert f"Example: xray {' '.join(command)}" in out


def test_report_without_a_run_shows_the_newest_and_says_where_it_wrote(run: Path) -> None:
    done = process("report", folder=run.parents[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "phantom_resnet18" in done.stdout
    assert "Written: runs/first/report.md" in done.stdout
    assert (run / "report.md").is_file()


def test_report_writes_where_it_is_told(run: Path, xray: Xray, tmp_path: Path) -> None:
    assert xray("report", run, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "figures" / "loss.png").is_file()
    assert not (run / "report.md").exists()


def test_report_prints_where_the_terminal_knows_only_ascii(run: Path) -> None:
    results = run / "results.json"
    results.write_text(results.read_text().replace("phantom_resnet18", "胸部"), encoding="utf-8")
    done = process("report", folder=run.parents[1], PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.831" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "absent"),
        ("report",),
        ("report", "."),
        ("evaluate", "--predictions", "absent.csv"),
        ("data", "phantom", "x", "--images", "0"),
        ("data", "cache", "absent"),
        ("data", "cache", ".", "--image-size", "0"),
    ],
)
def test_an_error_of_the_caller_is_one_line_and_exit_code_2(
    xray: Xray, arguments: tuple[str, ...]
) -> None:
    code, out, err = xray(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("xray: error: ")
    assert err.count("\n") == 1


def test_a_message_that_quotes_a_file_keeps_its_beginning_and_its_end() -> None:
    message = str(UserError(f"a.json: {'x' * 100_000}; write it again"))
    assert len(message) <= 3005
    assert message.startswith("a.json: xxx")
    assert message.endswith("xxx; write it again")
    assert str(UserError("x" * 3000)) == "x" * 3000


def test_a_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    done = process("report", "absent", folder=tmp_path, XRAY_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_damaged_results_alone_are_named_and_exit_with_2(run: Path, xray: Xray) -> None:
    (run / "results.json").write_text('{"schema_version": 1')
    code, _, err = xray("report", "runs")
    assert code == 2
    assert err.count("\n") == 1
    assert "runs/first/results.json: not complete JSON" in err


@pytest.mark.parametrize("arguments", [("--bogus",), ("report", "--bogus"), ("nonsense",)])
def test_an_unknown_option_or_command_exits_with_2(xray: Xray, arguments: tuple[str, ...]) -> None:
    code, _, err = xray(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_phantoms_are_drawn_once(tmp_path: Path, xray: Xray) -> None:
    arguments = ("data", "phantom", "ph", "--images", "12", "--size", "48", "--seed", "3")
    code, out, err = xray(*arguments)
    assert (code, err) == (0, "")
    assert "Drawn: 12 phantoms of 48 x 48 pixels in ph" in out
    assert len(list((tmp_path / "ph" / "images").glob("*.png"))) == 12
    assert "Already there" in xray(*arguments)[1]


CACHE = ("--image-size", "32", "--cache-dir", "cache")


def test_a_cache_is_built_ahead_found_again_and_verified(
    phantoms: Path, tmp_path: Path, xray: Xray
) -> None:
    arguments = ("data", "cache", phantoms, *CACHE)
    code, out, err = xray(*arguments)
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "cache").iterdir()
    there = f"80 images of 32 x 32 pixels in cache/{folder.name}"
    assert f"Built: {there}: 80 decoded, 0 copied from another cache, 0 kept; " in out
    assert out.rstrip().endswith(" images/s")
    assert xray(*arguments)[1] == f"Already there: {there}\n"
    assert xray(*arguments, "--verify")[1] == f"Already there: {there}; every checksum is right\n"


def test_fault_45_verifying_names_damage_in_one_line_and_mends_it(
    phantoms: Path, tmp_path: Path
) -> None:
    arguments = ("data", "cache", phantoms, *CACHE)
    process(*arguments, folder=tmp_path)
    (pixels,) = tmp_path.glob("cache/*/pixels.npy")
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = process(*arguments, "--verify", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "pixels.npy is damaged in 1 of 2 chunks looked at" in done.stderr
    assert ": 16 decoded, 0 copied from another cache, 64 kept; " in done.stdout
    assert pixels.read_bytes() == whole


def test_a_run_finds_the_cache_that_was_built_ahead(
    phantoms: Path, tmp_path: Path, xray: Xray
) -> None:
    from xray_lightning.data.datamodule import XrayDataModule

    xray("data", "cache", phantoms, *CACHE)
    (folder,) = (tmp_path / "cache").iterdir()
    data = XrayDataModule(
        name="phantom", root=str(phantoms), image_size=32, cache_dir=str(tmp_path / "cache")
    )
    data.setup("fit")
    assert data.cache_key == folder.name


@pytest.mark.parametrize(
    "number, exit_code, line",
    [
        (signal.SIGINT, 130, ""),
        (signal.SIGTERM, 143, "xray: error: interrupted by SIGTERM\n"),
    ],
)
def test_a_signal_ends_a_command_and_leaves_nothing(
    number: signal.Signals, exit_code: int, line: str, tmp_path: Path
) -> None:
    arguments = ["data", "phantom", "ph", "--images", "140", "--size", "1024"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xray_lightning.cli.main", *arguments],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and this suite may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.glob(".ph.*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "Traceback" not in stderr
    assert stderr.endswith(line)
    assert list(tmp_path.iterdir()) == []
