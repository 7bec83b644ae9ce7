"""Slurm's jobs and steps without a Slurm: its variables, and stand-ins for its commands."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Ended
from slurm_stand_ins import EXAMPLE, JOB, asked, beside_train_py, stand_ins

from xray_lightning.errors import UserError
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.training.slurm import SlurmJob, Step, first_node
from xray_lightning.training.slurm_environment import SlurmStepEnvironment

STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09],cpu1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, which are on PATH."""
    folder = tmp_path / "bin"
    for name, value in stand_ins(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return folder


def in_step(monkeypatch: pytest.MonkeyPatch, **further: str) -> None:
    for name, value in (STEP | further).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[07-09],cpu1", "gpu07"),
        ("gpu[7,9-12]", "gpu7"),
        ("rack[1-2]a,b", "rack1a"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("tasks", "counts"), [("2", [2]), ("1(x3)", [1, 1, 1]), ("2(x2),1", [2, 2, 1])]
)
def test_the_tasks_of_each_node(tasks: str, counts: list[int]) -> None:
    step = Step.of(STEP | {"SLURM_STEP_TASKS_PER_NODE": tasks})
    assert step is not None
    assert step.tasks_per_node == counts


def test_lightning_gets_the_step_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(monkeypatch)
    environment = SlurmStepEnvironment()
    assert (environment.world_size(), environment.global_rank()) == (2, 1)
    assert (environment.local_size, environment.nodes) == (2, 1)
    assert environment.main_address == "127.0.0.1"
    assert 15000 <= environment.main_port < 25000
    assert not environment.auto_requeue
    environment.validate_settings(num_devices=2, num_nodes=1)
    monkeypatch.setenv("MASTER_PORT", "7")
    assert environment.main_port == 7
    ports = {one.port for n in range(9) if (one := Step.of(STEP | {"SLURM_STEP_ID": str(n)}))}
    assert len(ports) == 1  # MASTER_PORT is for all


def test_steps_and_jobs_meet_at_ports_of_their_own() -> None:
    steps = [
        Step.of(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(number)})
        for job in range(100, 120)
        for number in range(5)
    ]
    assert len({step.port for step in steps if step}) == 100


def test_uneven_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(monkeypatch, SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_STEP_NUM_TASKS="3")
    with pytest.raises(UserError, match="the nodes 2, 1 tasks: start equally many"):
        SlurmStepEnvironment()


def test_a_node_that_has_another_name_is_asked_for_its_address(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_step(monkeypatch, SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_STEP_NODELIST="nosuch[1-2]")
    (commands / "shown").write_text("NodeName=nosuch1 NodeAddr=10.0.0.7 NodeHostName=nosuch1")
    assert SlurmStepEnvironment().main_address == "10.0.0.7"
    assert asked(commands) == ["show node nosuch1"]
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    assert SlurmStepEnvironment().main_address == "elsewhere"


@pytest.mark.parametrize(
    ("environ", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "nonsense; rm"}, None),
        ({"SLURM_JOB_ID": "12"}, SlurmJob("12")),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, SlurmJob("12", 2)),
        (
            {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"},
            SlurmJob("12_3"),
        ),
    ],
)
def test_a_job_is_known_by_its_number(environ: Mapping[str, str], job: SlurmJob | None) -> None:
    assert SlurmJob.of(environ) == job


def shown(state: str, ends_in: float | None) -> str:
    """What scontrol says of a job that ends in so many seconds, or has no limit."""
    end = "Unknown"
    if ends_in is not None:
        end = f"{datetime.now() + timedelta(seconds=ends_in):%Y-%m-%dT%H:%M:%S}"
    return f"JobId=12 JobState={state} Requeue=1 EndTime={end} Partition=all"


@pytest.mark.parametrize(
    ("warned", "state", "ends_in", "again"),
    [
        (True, "RUNNING", 9999, True),  # SIGUSR1 means it
        (False, "RUNNING", 60, True),  # --signal=TERM@60
        (False, "TIMEOUT", -1, True),
        (False, "PREEMPTED", 60, True),
        (False, "CANCELLED", 60, False),
        (False, "RUNNING", 9999, False),  # somebody's `scancel --signal=TERM`
        (False, "RUNNING", None, False),
    ],
)
def test_a_stopped_job_is_queued_again_unless_it_was_cancelled(
    warned: bool, state: str, ends_in: float | None, again: bool, commands: Path, tmp_path: Path
) -> None:
    (commands / "shown").write_text(shown(state, ends_in))
    job = SlurmJob("12")
    said = job.requeue(warned=warned, folder=tmp_path)
    assert ("requeue 12" in asked(commands)) is again
    assert ("is queued again" in said) is again
    assert ("was cancelled, and is not queued again; resume=. goes on" in said) is not again
    assert job.await_requeue(tmp_path, seconds=0.1)
    assert not SlurmJob("12", 1).await_requeue(tmp_path, seconds=0.1)  # another start of it


def test_a_job_that_slurm_does_not_queue_again_is_told_with_its_words(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands / "refuses").write_text("Requested operation is presently disabled for job 12")
    said = SlurmJob("12").requeue(warned=True, folder=tmp_path)
    assert "not queued again (Requested operation is presently disabled for job 12)" in said
    assert said.endswith("; resume=. goes on")
    monkeypatch.setenv("PATH", "")
    assert "not queued again ([Errno 2]" in SlurmJob("12").requeue(warned=True)


def test_a_job_finds_the_run_of_its_command_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "one"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("[]\n")
    SlurmJob("12").note("python train.py", folder)
    again = SlurmJob("12", 1)
    assert again.noted("python train.py") == folder
    assert again.noted("python train.py seed=1") is None
    assert SlurmJob("12").noted("python train.py") is None  # at its first start
    assert SlurmJob("13", 1).noted("python train.py") is None
    again.forget("python train.py")
    assert again.noted("python train.py") is None


# Warns its own process, as `#SBATCH --signal=USR1@60` does, once in each part of the job.
CUTS = """
import os, signal
from lightning.pytorch import Callback

class Cut(Callback):
    def on_train_batch_start(self, trainer, *_):
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if restarts < 2 and trainer.global_step == (1, 6)[restarts]:
            os.kill(os.getpid(), signal.SIGUSR1)
    def on_validation_batch_start(self, trainer, *_, **__):
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if restarts == 2 and trainer.global_step == 8 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow  # half a minute: nine processes that import torch
def test_a_job_warned_three_times_equals_an_unwarned_one_bit_by_bit(
    small: list[str], tmp_path: Path
) -> None:
    environ = stand_ins(tmp_path / "bin", tasks=2)
    options = (*small, "data.batch_size=15", "trainer.max_epochs=3")
    found = []
    for name, further in (("cut", ("+callbacks.cut._target_=cut.Cut",)), ("whole", ())):
        folder = tmp_path / name
        path = beside_train_py(folder, cut=CUTS)
        command = [str(tmp_path / "bin" / "sbatch"), str(EXAMPLE), *options, *further]
        ended = Ended.of(command, folder, **environ, **path)
        assert ended.exit_code == 0, ended.stdout + ended.stderr
        (run,) = ended.runs
        found.append((ended, read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]))
    (ended, cut), (_, whole) = found
    assert ended.stderr.count("xray: error: interrupted by SIGUSR1") == 3
    assert asked(tmp_path / "bin") == [f"requeue {JOB}"] * 3
    assert all(torch.equal(cut[key], whole[key]) for key in whole)
    (result,) = ended.results
    assert [row["epoch"] for row in result["history"]] == [0, 1, 2]
    assert result["environment"]["slurm"] == {"name": str(JOB), "restarts": 3}
    assert json.dumps(result).count("interrupted") == 0


# Warns all tasks of the step when rank 0 waits for rank 1 in a collective.
EARLY = """
import os, signal, subprocess, time
from lightning.pytorch import Callback

class Early(Callback):
    def setup(self, trainer, pl_module, stage):
        if "SLURM_RESTART_COUNT" not in os.environ and stage == "fit" and trainer.global_rank == 1:
            time.sleep(2)
            subprocess.run(["pkill", "-USR1", "-P", str(os.getppid()), "python"], check=True)
            time.sleep(60)
"""


@pytest.mark.slow
def test_a_job_warned_while_rank_0_waits_for_another_rank_is_queued_again(
    small: list[str], tmp_path: Path
) -> None:
    environ = stand_ins(tmp_path / "bin", tasks=2) | beside_train_py(tmp_path, early=EARLY)
    further = ("stages=[fit]", "+callbacks.early._target_=early.Early")
    command = [str(tmp_path / "bin" / "sbatch"), str(EXAMPLE), *small, *further]
    ended = Ended.of(command, tmp_path, **environ)
    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert asked(tmp_path / "bin") == [f"requeue {JOB}"]
    (result,) = ended.results
    assert result["status"] == "finished"


# Warns rank 1 alone, as it is about to meet rank 0 for the first time.
FIRST_MEETING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch.distributed":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGUSR1)

if os.environ.get("SLURM_PROCID") == "1" and "SLURM_RESTART_COUNT" not in os.environ:
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow  # a minute: rank 0 has its time to hear of it first
def test_a_job_warned_before_its_run_has_a_folder_is_queued_again(
    small: list[str], tmp_path: Path
) -> None:
    environ = stand_ins(tmp_path / "bin", tasks=2)
    environ |= beside_train_py(tmp_path, sitecustomize=FIRST_MEETING)
    command = [str(tmp_path / "bin" / "sbatch"), str(EXAMPLE), *small, "stages=[fit]"]
    ended = Ended.of(command, tmp_path, **environ)
    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert asked(tmp_path / "bin") == [f"requeue {JOB}"]
    (result,) = ended.results
    assert result["status"] == "finished"


@pytest.mark.slow
def test_each_job_of_a_sweep_is_a_batch_job_that_is_queued_again_by_itself(
    small: list[str], tmp_path: Path
) -> None:
    environ = stand_ins(tmp_path / "bin", tasks=2) | beside_train_py(tmp_path, early=EARLY)
    launcher = ("hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.2", "strategy=ddp")
    job = ("stages=[fit]", "seed=0,1", "+callbacks.early._target_=early.Early")
    command = ["python", str(REPOSITORY / "train.py"), "-m", *launcher, *small, *job]
    ended = Ended.of(command, tmp_path, **environ)
    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert sorted(asked(tmp_path / "bin")) == [f"requeue {JOB}", f"requeue {JOB + 1}"]
    paths = sorted(tmp_path.glob("runs/*_sweep/*/results.json"))
    found = [json.loads(path.read_text()) for path in paths]
    assert [(result["seed"], result["status"]) for result in found] == [
        (0, "finished"),
        (1, "finished"),
    ]
    slurm = [result["environment"]["slurm"] for result in found]
    assert slurm == [{"name": str(JOB + job), "restarts": 1} for job in (0, 1)]


@pytest.mark.slow
def test_a_job_that_cannot_be_queued_again_ends_with_its_checkpoint_and_one_line(
    small: list[str], tmp_path: Path
) -> None:
    environ = stand_ins(tmp_path / "bin") | {"SLURM_JOB_ID": str(JOB), "PYTHONPATH": str(tmp_path)}
    (tmp_path / "bin" / "refuses").write_text("Job is not requeueable")
    (tmp_path / "cut.py").write_text(CUTS)
    command = ["python", str(REPOSITORY / "train.py"), *small, "+callbacks.cut._target_=cut.Cut"]
    ended = Ended.of(command, tmp_path, **environ)
    assert ended.exit_code == 138
    assert ended.error == "xray: error: interrupted by SIGUSR1"
    told = f"Slurm job {JOB} is not queued again (Job is not requeueable); resume=runs/"
    assert told in ended.stdout
    assert read_checkpoint(ended.runs[0] / "checkpoints" / "last.ckpt")["global_step"] == 2
