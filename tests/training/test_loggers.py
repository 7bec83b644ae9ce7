"""Loggers beside TensorBoard: one run for each job, as each logger's own files tell it."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import TRAIN_PY, Ended, Train, environment

from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.training.loggers import CsvRun, MlflowRun, RunLogger, WandbRun

SLOW = pytest.mark.slow
ALL = "logger=[csv,mlflow,wandb]"
RANKS = ("strategy=mpi", "strategy.processes=2")

FAULT = """
import os, time
from lightning.pytorch import Callback

class Fault(Callback):
    def __init__(self, rank=None, seconds=0.0):
        self.rank, self.seconds = rank, seconds
    def on_train_batch_start(self, trainer, *_):
        open("step", "w").close()
        time.sleep(self.seconds)
        if self.rank == trainer.global_rank and trainer.global_step == 2:
            raise ValueError("the sky has fallen")
"""


@pytest.fixture
def fault(tmp_path: Path) -> dict[str, str]:
    """The environment in which `+callbacks.fault` is a callback that slows down, or fails."""
    (tmp_path / "faulty_callback.py").write_text(FAULT)
    return {"PYTHONPATH": str(tmp_path)}


FAULTY = "+callbacks.fault._target_=faulty_callback.Fault"


def mlflow_runs(folder: Path) -> list[Any]:
    """MLflow's runs below a working directory, read by its own client, the first begun first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    return sorted(client.search_runs(experiments), key=lambda run: int(run.info.start_time))


def records(path: Path) -> Iterator[Any]:
    """The records of one of W&B's files, which has the format of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_run(path: Path) -> dict[str, Any]:
    """What one of W&B's files tells of its run."""
    told: dict[str, Any] = {"exit_code": None, "metrics": {}, "config": {}}
    for record in records(path):
        if record.HasField("run"):
            told |= {"id": record.run.run_id, "name": record.run.display_name}
            updates = record.run.config.update
        else:
            updates = record.config.update if record.HasField("config") else ()
        told["config"] |= {item.key: json.loads(item.value_json) for item in updates}
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            told["metrics"][key] = json.loads(item.value_json)
        if record.HasField("exit"):
            told["exit_code"] = record.exit.exit_code
    return told


def wandb_runs(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("runs/**/wandb/offline-run-*/*.wandb"))
    return [wandb_run(path) for path in paths]


def rows(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "csv" / "metrics.csv")


@SLOW
@pytest.mark.filterwarnings("ignore")  # MLflow's own, here as its reader
def test_two_ranks_and_two_jobs_leave_exactly_two_finished_runs_in_each_logger(
    train: Train,
) -> None:
    ended = train("-m", *RANKS, "logger=[tensorboard,csv,mlflow,wandb]", "optimizer.lr=0.001,0.002")
    assert ended.exit_code == 0, ended.stderr
    assert [result["training"]["warnings"] for result in ended.results] == [[], []]
    assert "arning" not in ended.stderr + ended.stdout
    assert "INFO" not in ended.stderr + ended.stdout
    found_mlflow, found_wandb = mlflow_runs(ended.folder), wandb_runs(ended.folder)
    assert [run.info.status for run in found_mlflow] == ["FINISHED", "FINISHED"]
    assert [run["exit_code"] for run in found_wandb] == [0, 0]
    assert (
        len({run["id"] for run in found_wandb}) == len({r.info.run_id for r in found_mlflow}) == 2
    )
    assert len([*ended.folder.glob("runs/**/metrics.csv")]) == 2
    jobs = zip(ended.runs, ended.results, found_mlflow, found_wandb, strict=True)
    for rate, (folder, result, in_mlflow, in_wandb) in zip((0.001, 0.002), jobs, strict=True):
        table = rows(folder)
        hyperparameters = yaml.safe_load((folder / "csv" / "hparams.yaml").read_text())
        assert hyperparameters["Learning rate"] == rate
        assert float(in_mlflow.data.params["Learning rate"]) == rate
        assert in_wandb["config"]["Learning rate"] == rate
        assert hyperparameters["run_folder"] == in_wandb["config"]["run_folder"] == str(folder)
        assert in_mlflow.data.params["run_folder"] == str(folder)
        assert in_mlflow.info.run_name == in_wandb["name"] == result["name"]
        assert {"lr-Adam", "train/loss", "train/images_per_second"} <= {*table.columns}
        (epoch,) = result["history"]
        expected = {
            "val/loss": epoch["val_loss"],
            "train/loss": epoch["train_loss"],
            "test/auroc_macro": result["metrics"]["test"]["auroc_macro"],
            "test/label_accuracy": result["metrics"]["test"]["label_accuracy"],
        }
        for key, value in expected.items():
            assert table[key].dropna().tolist() == [pytest.approx(value, rel=1e-5)]
            assert in_mlflow.data.metrics[key] == pytest.approx(value, rel=1e-5)
            assert in_wandb["metrics"][key] == pytest.approx(value, rel=1e-5)
        shared = {key for key in table.columns if "/" in key}
        assert shared == {key for key in in_mlflow.data.metrics if "/" in key}
        logged = {key for key in in_wandb["metrics"] if "/" in key} - {"trainer/global_step"}
        assert shared == {key for key in logged if not key.startswith("inputs")}
        assert (folder / "csv" / "inputs.png").stat().st_size > 1000
        assert len([*folder.glob("wandb/offline-run-*/files/media/images/inputs*.png")]) == 1
        artifacts = Path(re.sub("^file://", "", in_mlflow.info.artifact_uri))
        assert (artifacts / "inputs.png").stat().st_size > 1000


@SLOW
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_closes_a_run_and_resume_goes_on_with_it(
    small: list[str], train: Train, fault: dict[str, str], tmp_path: Path
) -> None:
    slow = (ALL, FAULTY, "+callbacks.fault.seconds=0.5", "trainer.max_epochs=2", "stages=[fit]")
    job = subprocess.Popen(
        [sys.executable, TRAIN_PY, *small, *slow, "trainer.log_every_n_steps=1"],
        cwd=tmp_path,
        env=environment(**fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "step").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to the loggers' processes too
    assert job.wait(timeout=120) == 130, job.communicate()
    (run,) = Ended(0, "", "", tmp_path).runs
    (in_mlflow,), (in_wandb,) = mlflow_runs(tmp_path), wandb_runs(tmp_path)
    assert in_mlflow.info.status == "KILLED"
    assert in_wandb["exit_code"] == 130
    before = len(rows(run))
    assert before > 0

    keys = ("+callbacks.fault.seconds=0", "stages=[fit,test]", FAULTY)
    ended = train(f"resume={run}", *keys, env=fault, defaults=False)
    assert ended.exit_code == 0, ended.stderr
    (again,), (first, second) = mlflow_runs(tmp_path), wandb_runs(tmp_path)
    assert again.info.run_id == in_mlflow.info.run_id
    assert again.info.status == "FINISHED"
    assert first["id"] == second["id"]  # `wandb sync` puts what has one id into one run
    assert second["exit_code"] == 0
    table = rows(run)
    steps = {*table["step"][table["lr-Adam"].notna()]}
    assert steps == {*range(len(steps))}  # it went on where it had stopped
    assert table["train/loss"].count() == 2
    assert len(table) > before
    (result,) = ended.results
    assert result["training"]["warnings"] == []


@SLOW
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failed_job_of_two_ranks_leaves_one_failed_run(
    rank: int, train: Train, fault: dict[str, str]
) -> None:
    keys = (*RANKS, "logger=[csv,mlflow]", FAULTY, f"+callbacks.fault.rank={rank}")
    ended = train(*keys, env=fault)
    assert ended.exit_code == 1
    assert "the sky has fallen" in ended.error
    (run,) = mlflow_runs(ended.folder)
    assert run.info.status == "FAILED"


@SLOW
@pytest.mark.filterwarnings("ignore")
def test_two_jobs_at_once_make_one_store_with_a_run_of_each(
    small: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, TRAIN_PY, *small, "logger=mlflow", "stages=[fit]"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    jobs = [
        subprocess.Popen([*command, f"name=n{n}"], cwd=tmp_path, env=environment(), **quiet)
        for n in range(2)
    ]
    assert [job.wait(timeout=180) for job in jobs] == [0, 0]
    assert {run.info.run_name for run in mlflow_runs(tmp_path)} == {"n0", "n1"}


@SLOW
def test_a_csv_of_a_run_has_its_metrics_its_choices_and_its_inputs(call: Train) -> None:
    ended = call("logger=csv")
    assert ended.exit_code == 0, ended.stderr
    (result,) = ended.results
    assert result["training"]["warnings"] == []
    (run,) = ended.runs
    scores = rows(run)["test/auroc_macro"].dropna().tolist()
    assert scores == [pytest.approx(result["metrics"]["test"]["auroc_macro"])]
    assert sorted(path.name for path in (run / "csv").iterdir()) == [
        *("hparams.yaml", "inputs.png", "metrics.csv")
    ]
    assert not (run / "tensorboard").exists()


def test_a_resumed_csv_keeps_its_rows_and_takes_new_columns(tmp_path: Path) -> None:
    for resume, metrics in ((False, {"a": 1.0}), (True, {"b": 2.0}), (True, {"a": 3.0})):
        logger = CsvRun(folder=str(tmp_path))
        logger.begin(resume=resume)
        logger.log_metrics(metrics, step=int(resume))
        logger.end("finished")
    assert rows(tmp_path).fillna(-1).to_dict("list") == {
        "a": [1, -1, 3],
        "b": [-1, 2, -1],
        "step": [0, 1, 1],
    }


@pytest.mark.parametrize("kind", [MlflowRun, WandbRun])
def test_a_logger_without_its_package_is_refused_and_says_what_to_install(
    kind: type[RunLogger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name = kind.extra
    with pytest.raises(UserError) as told:
        kind(folder=str(tmp_path))
    assert f"uv sync --extra {name}, or pip install 'xray-lightning[{name}]'" in str(told.value)
    assert told.value.exit_code == EXIT_USER_ERROR


def test_a_csv_that_cannot_be_written_is_told_and_the_run_goes_on(
    call: Train, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    ended = call("logger=csv", f"+logger.csv.save_dir={tmp_path}/file")
    assert ended.exit_code == 0, ended.stderr
    (result,) = ended.results
    (warned,) = result["training"]["warnings"]
    assert warned.endswith("is a file; give a folder. The run goes on without it")


def test_a_logger_that_fails_is_told_of_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger, calls = MlflowRun(folder=str(tmp_path)), []

    def fail() -> None:
        calls.append(1)
        raise OSError("no route to host")

    logger.attempt(fail)
    logger.attempt(fail)
    assert len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "MlflowRun: no route to host. The run goes on without it"
    ]


@SLOW
def test_a_server_that_is_not_there_is_told_of_and_the_run_goes_on(call: Train) -> None:
    ended = call("logger=mlflow", "logger.mlflow.tracking_uri=http://127.0.0.1:9")
    assert ended.exit_code == 0, ended.stderr
    (result,) = ended.results
    (warned,) = result["training"]["warnings"]
    assert warned.startswith("MlflowRun: ")
    assert warned.endswith("The run goes on without it")
