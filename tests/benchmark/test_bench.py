"""`benchmarks.side_by_side` on phantoms: what it times, what it refuses, what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Once, environment

from benchmarks import side_by_side
from benchmarks.arms import importable, prepare
from benchmarks.side_by_side import Options, loss_difference, workload_of
from benchmarks.side_by_side import bench as time_arms
from xray_lightning.errors import UserError

COMMAND = (sys.executable, "-m", "benchmarks.side_by_side")
TINY = ("--image-size", "32", "--batch-size", "16", "--repeats", "1", "--steps", "1")
# Loaded by every process of the test: two of the arms are not what they should be.
SABOTAGE = """
import sys
arguments = sys.orig_argv
if "paper_loop" in arguments:
    import PIL.Image
    resize = PIL.Image.Image.resize
    PIL.Image.Image.resize = lambda self, *a, **k: resize(self.rotate(180), *a, **k)
if "ours_no_channels_last" in arguments:
    sys.exit("no power")
"""


@dataclass(frozen=True)
class Benched:
    exit_code: int
    stdout: str
    stderr: str
    content: dict[str, Any]


def bench(*arguments: str | Path, folder: Path) -> Benched:
    out = folder / "bench.json"
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env=environment(TMPDIR=str(folder), PYTHONPATH=f"{folder}{os.pathsep}{REPOSITORY}"),
        capture_output=True,
        text=True,
        timeout=900,  # ten processes, each of which imports torch
    )
    content = json.loads(out.read_text()) if out.exists() else {}
    return Benched(done.returncode, done.stdout, done.stderr, content)


@pytest.fixture(scope="session")
def benched(phantoms: Path, once: Once) -> Benched:
    """Two arms as they are, one with other pixels, and one that crashes."""

    def fill(folder: Path) -> None:
        (folder / "ended.json").write_text(json.dumps(asdict(timed(phantoms, folder))))

    return Benched(**json.loads((once("bench", fill) / "ended.json").read_text()))


def timed(phantoms: Path, folder: Path) -> Benched:
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    arms = "paper_loop,ours,ours_no_channels_last,compute_only"
    options = (*TINY, "--threads", "1", "--precision", "32-true", "--json", "bench.json")
    return bench("--data", phantoms, "--arms", arms, *options, folder=folder)


@pytest.mark.slow
def test_the_sound_arms_are_timed_and_compared(benched: Benched) -> None:
    arms = benched.content["arms"]
    assert arms.keys() == {"ours", "compute_only"}, benched.stderr
    for facts in arms.values():
        at = facts["by_precision"]["32-true"]
        assert facts["images_per_second"] == at["images_per_second"] > 0
        assert len(at["repeats"]) == 1
        assert at["cold_seconds"] > 0
        assert at["peak_memory_bytes"]["host"] > 2**27
        assert 0 <= at["data_wait_fraction"] < 1


@pytest.mark.slow
def test_ratios_are_the_quotients_of_the_medians(benched: Benched) -> None:
    rates = {arm: facts["images_per_second"] for arm, facts in benched.content["arms"].items()}
    assert benched.content["ratios"] == {
        "ours_to_compute_only": rates["ours"] / rates["compute_only"]
    }
    equal = benched.content["ratios_by_precision"]["32-true"]["ours_to_compute_only"]
    assert equal["ratio"] == benched.content["ratios"]["ours_to_compute_only"]


@pytest.mark.slow
def test_the_rate_of_ours_is_that_of_its_results_json(benched: Benched) -> None:
    (repeat,) = benched.content["arms"]["ours"]["by_precision"]["32-true"]["repeats"]
    assert repeat["images_per_second"] == repeat["timing"]["steady_images_per_second"]
    assert repeat["timing"]["cache"] > 0
    assert repeat["timing"]["total"] < repeat["seconds"]


@pytest.mark.slow
def test_an_arm_with_other_losses_is_refused_with_both_losses(benched: Benched) -> None:
    reason = benched.content["failed"]["paper_loop"]
    losses = benched.content["losses"]
    assert f"{losses['paper_loop'][0]:.5f}" in reason
    assert f"{losses['compute_only'][0]:.5f}" in reason
    assert losses["ours"][0] == pytest.approx(losses["compute_only"][0], rel=1e-5)


@pytest.mark.slow
def test_an_arm_that_crashes_is_named_with_its_last_line(benched: Benched) -> None:
    assert benched.exit_code == 1
    assert benched.content["failed"]["ours_no_channels_last"].endswith("no power")
    assert benched.stderr.startswith("xray: error: ")
    assert benched.stderr.count("\n") == 1
    assert "ours_no_channels_last: " in benched.stderr


@pytest.mark.slow
def test_the_json_tells_where_and_how_it_was_measured(benched: Benched) -> None:
    content = benched.content
    assert content["kind"] == "bench"
    assert content["command"].startswith("python -m benchmarks.side_by_side --data ")
    assert content["machine"]["cores"] >= 1
    assert content["settings"]["train_images"] == 64
    assert content["settings"]["source_size"] == "64 x 64"
    table = content["table"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert any("paper_loop: its first losses are" in note for note in table["notes"])
    assert "compute_only" in benched.stdout


@pytest.fixture
def bench_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Benched]:
    """The same command line in this process, which has imported torch already."""

    def run(*arguments: str | Path) -> Benched:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["side_by_side.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            side_by_side.run_command()
        return Benched(int(ended.value.code or 0), *capsys.readouterr(), {})

    return run


@pytest.mark.slow
def test_the_page_of_a_folder_is_written_by_the_command(
    benched: Benched, tmp_path: Path, bench_here: Callable[..., Benched]
) -> None:
    (tmp_path / "one.json").write_text(json.dumps(benched.content))
    done = bench_here("--readme", tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    page = (tmp_path / "README.md").read_text()
    assert benched.content["table"]["title"] in page
    assert "| compute_only | 32-true | " in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm, module", [("timm", "timm"), ("monai", "monai"), ("dali", "nvidia.dali")]
)
def test_a_peer_computes_the_same_losses(
    arm: str, module: str, benched: Benched, phantoms: Path, tmp_path: Path
) -> None:
    if not importable(module):
        pytest.skip(f"{module} is not installed")
    options = Options(data=phantoms, command="", image_size=32, batch_size=16, threads=1)
    workload = prepare(workload_of(options, "cpu"), tmp_path, images=None, steps=1)
    workload.write(tmp_path / "workload.json")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.loop", "check", arm),
            *(f"--workload={tmp_path}/workload.json", f"--out={tmp_path}/out.json"),
            *(f"--folder={tmp_path}/run", f"--cache-dir={tmp_path}/cache"),
        ],
        env=environment(PYTHONWARNINGS="ignore"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    losses = {
        "compute_only": benched.content["losses"]["compute_only"],
        arm: json.loads((tmp_path / "out.json").read_text())["losses"],
    }
    assert loss_difference(losses, arm, "compute_only") is None


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--arms", "ours,nosuch"), "--arms nosuch is unknown; choose from paper_loop,"),
        (("--precision", "8-bit"), "--precision 8-bit: choose from"),
        (("--json", "absent/bench.json"), "--json absent/bench.json: its folder is not there"),
        (("--arms", "ours", "--data", "absent"), "absent does not exist"),
    ],
)
def test_what_cannot_be_timed_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], told: str, phantoms: Path, bench_here: Callable[..., Benched]
) -> None:
    done = bench_here("--data", phantoms, "--accelerator", "cpu", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


@pytest.mark.parametrize(
    "further, told",
    [
        ({"arms": ["dali"]}, "--arms dali cannot run: it needs --accelerator cuda"),
        ({"batch_size": 22}, "80 images are too few for --batch-size 22: it takes 16 more"),
        ({"model": "vgg", "batch_size": 16}, "'vgg' is unknown"),
    ],
)
def test_what_the_data_or_the_machine_refuse_is_told(
    further: dict[str, Any], told: str, phantoms: Path
) -> None:
    with pytest.raises(UserError, match=told):
        time_arms(Options(data=phantoms, command="", accelerator="cpu", **further))


def test_a_missing_peer_that_was_named_is_an_error_with_its_install_line(phantoms: Path) -> None:
    if importable("timm"):
        pytest.skip("timm is installed")
    with pytest.raises(UserError, match="timm is not installed: uv sync --extra bench"):
        time_arms(Options(data=phantoms, command="", accelerator="cpu", arms=["timm"]))


@pytest.mark.slow
def test_control_c_leaves_no_process_and_no_file(phantoms: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(phantoms), "--arms", "compute_only", *TINY]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts its background jobs with SIGINT ignored, and this suite may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.glob("xray-bench-*/arms/**/log.txt")) and process.poll() is None:
        time.sleep(0.02)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (arm := listed.read_text().split()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not any(Path(f"/proc/{number}").exists() for number in arm)
    assert os.listdir(tmp_path) == []


def test_control_c_while_a_process_is_being_started_leaves_none(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        """Once there is a process, and before the caller has it."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    options = Options(data=phantoms, command="", accelerator="cpu", image_size=32, batch_size=16)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(side_by_side.subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            time_arms(options)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists()
    assert os.listdir(tmp_path) == []
