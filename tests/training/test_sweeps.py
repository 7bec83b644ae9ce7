"""Sweeps: Optuna's and grids, gone on with after a kill, by several workers, and under ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from conftest import TRAIN_PY, Ended, Train, environment, flags_first

from xray_lightning.errors import EXIT_RUN_FAILED, EXIT_USER_ERROR, UserError
from xray_lightning.runs.sweep import JOURNAL, Sweep, Trial, read_trials
from xray_lightning.training.optuna_study import open_storage

SEARCH = ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "augment=none,light")
SAVED = "+callbacks.last.most_time=1"  # after every epoch
SECONDS = 900.0  # against a hang alone


def optuna_sweep(folder: Path, *, trials: int) -> list[str]:
    return [
        *("-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={folder}"),
        f"hydra.sweeper.n_trials={trials}",
    ]


def study_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(str(folder / JOURNAL))
    return optuna.load_study(study_name=folder.name, storage=storage).get_trials()


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, TRAIN_PY, *flags_first(arguments)]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)


def killed(arguments: Sequence[str], folder: Path, *, when: Callable[[], bool]) -> None:
    """Kill the command by SIGKILL at a moment; none of its processes may stay."""
    process = start(arguments, folder)
    deadline = time.monotonic() + SECONDS
    try:
        while not when():
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.002)
        below = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(below, timeout=60)
    assert not left


def ended(arguments: Sequence[str], folder: Path) -> int:
    with start(arguments, folder) as process:
        try:
            return process.wait(timeout=SECONDS)
        finally:
            process.kill()


def finished(sweep: Path) -> int:
    return sum(trial.outcome.status == "finished" for trial in read_trials(sweep))


def in_the_middle(trial: Trial) -> bool:
    """Whether its run has done an epoch, but not its last one."""
    saved = (trial.folder / "checkpoints" / "last.ckpt").is_file()
    history = json.loads((trial.folder / "results.json").read_text())["history"]
    return trial.outcome.status == "running" and saved and len(history) == 1


def in_mid_trial(sweep: Path, *, after: int) -> bool:
    return finished(sweep) >= after and any(map(in_the_middle, recorded(sweep)))


def recorded(sweep: Path) -> list[Trial]:
    return [one for one in read_trials(sweep) if one.outcome.status != "absent"]


def before_its_record(sweep: Path, *, after: int) -> bool:
    """Whether so many are done, and the next one has its folder and no results.json.

    That lasts for hundredths of a second, so a look has to be cheap. One trial runs at a time: the
    folder of a later one says that the earlier ones are done.
    """
    later = (one for one in sweep.glob("[0-9]*_*") if int(one.name.partition("_")[0]) >= after)
    return any(not (folder / "results.json").exists() for folder in later)


def assert_whole(sweep: Path, *, trials: int) -> None:
    """Each trial once: in the study, as a folder, with the parameters that were asked for."""
    runs, study = read_trials(sweep), study_of(sweep)
    assert [run.number for run in runs] == [one.number for one in study] == list(range(trials))
    assert len(list(sweep.glob("[0-9]*_*"))) == trials
    for run, one in zip(runs, study, strict=True):
        assert run.outcome.status == "finished"
        assert one.state == optuna.trial.TrialState.COMPLETE
        assert one.value == run.outcome.value
        assert float(run.overrides["optimizer.lr"]) == pytest.approx(
            one.params["optimizer.lr"], rel=1e-5
        )
        assert run.overrides["augment"] == one.params["augment"]
        history = json.loads((run.folder / "results.json").read_text())["history"]
        assert [row["epoch"] for row in history] == list(range(len(history)))
    assert len({run.overrides["optimizer.lr"] for run in runs}) == trials


# -- Optuna --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, trials",
    [("single", 12), pytest.param("mpi", int(os.environ.get("XRAY_SWEEP_TRIALS", "4")))],
)
def test_a_search_killed_twice_ends_with_every_trial_once_and_one_report(
    strategy: str, trials: int, small: list[str], tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "search"
    arguments = [
        *(*small, *optuna_sweep(sweep, trials=trials), *SEARCH, SAVED),
        *("trainer.max_epochs=2", f"strategy={strategy}", "evaluation.calibration=null"),
    ]
    killed(arguments, tmp_path, when=lambda: in_mid_trial(sweep, after=1))
    (cut,) = (run for run in read_trials(sweep) if run.outcome.status == "running")
    first_epoch = json.loads((cut.folder / "results.json").read_text())["history"]
    killed(arguments, tmp_path, when=lambda: before_its_record(sweep, after=trials // 2))
    assert ended(arguments, tmp_path) == 0, (tmp_path / "log").read_text()[-2000:]
    assert_whole(sweep, trials=trials)
    went_on = json.loads((cut.folder / "results.json").read_text())["history"]
    assert went_on[0] == first_epoch[0]  # from its checkpoint, not from the start
    before = {path: path.read_bytes() for path in sweep.rglob("*.json")}
    assert ended(arguments, tmp_path) == 0  # there is nothing left to do
    assert {path: path.read_bytes() for path in sweep.rglob("*.json")} == before
    report = Ended.of(
        [sys.executable, "-m", "xray_lightning.cli.main", "report", str(sweep)],
        tmp_path,
        timeout=SECONDS,
    )
    assert report.exit_code == 0, report.stderr
    assert f"{trials} of {trials}: {trials} finished" in report.stdout
    assert len(list(tmp_path.rglob("report.md"))) == 1


@pytest.mark.slow
def test_two_workers_share_a_search_and_do_no_more_than_was_asked_for(
    small: list[str], tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "search"
    arguments = [*small, *optuna_sweep(sweep, trials=5), *SEARCH, "stages=[fit]"]
    workers = [start(arguments, tmp_path) for _ in range(2)]
    assert [worker.wait(timeout=SECONDS) for worker in workers] == [0, 0]
    assert_whole(sweep, trials=5)
    told = re.findall(r"trial (\d+): complete", (tmp_path / "log").read_text())
    assert sorted(map(int, told)) == list(range(5))


@pytest.mark.slow
def test_two_workers_in_folders_of_their_own_share_a_database(
    small: list[str], tmp_path: Path
) -> None:
    storage = f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db"
    shared = [*small, *SEARCH, storage, "hydra.sweeper.study_name=shared", "stages=[fit]"]
    sweeps = [tmp_path / name for name in ("one", "other")]
    workers = [start([*shared, *optuna_sweep(one, trials=4)], tmp_path) for one in sweeps]
    assert [worker.wait(timeout=SECONDS) for worker in workers] == [0, 0]
    storage = open_storage(storage.partition("=")[2])
    study = optuna.load_study(study_name="shared", storage=storage).get_trials()
    assert [one.state for one in study[:4]] == [optuna.trial.TrialState.COMPLETE] * 4
    done = sorted(run.number for one in sweeps for run in read_trials(one))
    assert done == list(range(4))


ALWAYS = "hydra.sweeper.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 2.0}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_pruned_trial_stops_on_all_ranks_after_its_epoch_and_is_no_failure(
    strategy: str, call: Train, tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "search"
    options = (ALWAYS, "trainer.max_epochs=3", f"strategy={strategy}")
    done = call(*optuna_sweep(sweep, trials=1), *SEARCH, *options)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    (result,) = done.results
    assert result["status"] == "pruned"
    assert "by Optuna's ThresholdPruner after epoch 1 of 3" in result["reason"]
    assert [row["epoch"] for row in result["history"]] == [0]
    assert result["metrics"]["test"] is None
    assert result["environment"]["world_size"] == (1 if strategy == "single" else 2)
    (trial,) = study_of(sweep)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {0: result["history"][0]["val_auroc_macro"]}
    # By hand it goes on to its end, on its own.
    resumed = call(f"resume={done.runs[0]}", "stages=[fit]", defaults=False)
    assert resumed.exit_code == 0, resumed.stderr
    (result,) = resumed.results
    assert [row["epoch"] for row in result["history"]] == [0, 1, 2]
    assert study_of(sweep)[0].intermediate_values == trial.intermediate_values


def test_a_failing_trial_is_told_with_its_reason_and_the_others_go_on(
    call: Train, tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "search"
    options = ("hydra/sweeper/sampler=grid", "data.normalize=zscore,imagenet", "stages=[fit]")
    done = call(*optuna_sweep(sweep, trials=9), *options)  # the grid has two
    assert done.exit_code == EXIT_USER_ERROR
    *_, last = done.stderr.splitlines()
    assert "1 of 2 trials failed" in last
    states = {one.params["data.normalize"]: one for one in study_of(sweep)}
    failed = states["zscore"]
    assert failed.state == optuna.trial.TrialState.FAIL
    assert "data.normalize=zscore" in failed.user_attrs["reason"]
    assert states["imagenet"].state == optuna.trial.TrialState.COMPLETE


def test_a_trial_without_an_auroc_is_told_with_that_reason(call: Train, tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "search"
    search = ("evaluation.seed=range(0,3)", "+trainer.limit_val_batches=0", "stages=[fit]")
    done = call(*optuna_sweep(sweep, trials=1), *search, "callbacks.best=null")
    assert done.exit_code == EXIT_RUN_FAILED, done.stdout + done.stderr
    (trial,) = study_of(sweep)
    assert trial.state == optuna.trial.TrialState.FAIL
    assert "no epoch has a validation AUROC" in trial.user_attrs["reason"]


@pytest.mark.parametrize(
    "overrides, told",
    [
        ([], ["nothing to search", "optimizer.lr=tag(log"]),
        (["optimizer.lr=tag(log,interval(0,1))"], ["optimizer.lr=tag(log,interval(0,1))"]),
        (["optimizer.lr=interval(2,1)"], ["optimizer.lr=interval(2,1) is no search space"]),
        (["optimizer.lr=interval(0,b)"], ["optimizer.lr"]),
        (["optimizer.nosuch=interval(0,1)"], ["optimizer.nosuch"]),
        (["augment=choice(none,nosuch)"], ["augment/nosuch"]),
        ([SEARCH[0], "hydra/sweeper/sampler=nosuch"], ["hydra/sweeper/sampler/nosuch"]),
        ([SEARCH[0], "hydra/sweeper/sampler=grid"], ["sampler=grid: optimizer.lr has no steps"]),
        ([SEARCH[0], "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0"]),
        ([SEARCH[0], "hydra.sweeper.direction=minimize"], ["direction=minimize"]),
        ([SEARCH[0], "hydra.sweeper.storage=nosuch://x"], ["hydra.sweeper.storage: nosuch"]),
        ([SEARCH[0], "+hydra.sweeper.sampler.nosuch=1"], ["hydra.sweeper.sampler: ", "nosuch"]),
    ],
    ids=lambda value: value[-1] if value and "=" in value[-1] else "",
)
def test_a_wrong_search_is_one_line(
    overrides: list[str], told: list[str], call: Train, tmp_path: Path
) -> None:
    done = call("-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={tmp_path}/search", *overrides)
    assert done.exit_code == EXIT_USER_ERROR, done.stdout + done.stderr
    for part in told:
        assert part in done.error
    assert done.results == []


def test_without_optuna_one_line_says_what_to_install(call: Train, tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError('none here')")
    program = (
        f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r});"
        f"sys.argv = ['train.py', '-m', 'hydra/sweeper=optuna', 'augment=none,light'];"
        f"runpy.run_path({TRAIN_PY!r}, run_name='__main__')"
    )
    done = Ended.of([sys.executable, "-c", program], tmp_path)
    assert done.exit_code == EXIT_USER_ERROR
    assert "uv pip install 'optuna>=5'" in done.error


def test_another_search_in_the_same_folder_is_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    space = {"optimizer.lr": "interval(0,1)"}
    sweep = Sweep("optuna", "c", 5, ("model=resnet18", "data.root=a"), space, {})
    sweep.write(tmp_path)
    same = Sweep("optuna", "d", 9, ("data.root=b", "model=resnet18", "report=false"), space, {})
    same.refuse_another(tmp_path)  # more trials, and others places
    for other, told in (
        (Sweep("optuna", "c", 5, ("model=resnet50",), space, {}), "resnet18 -> resnet50"),
        (Sweep("optuna", "c", 5, sweep.fixed, {"optimizer.lr": "1,2"}, {}), "-> 1,2"),
        (Sweep("grid", "c", 5, sweep.fixed, space, {}), "kind: optuna -> grid"),
    ):
        with pytest.raises(UserError, match=told):
            other.refuse_another(tmp_path)


def test_a_line_cut_by_a_kill_spoils_no_journal(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    study = optuna.create_study(storage=open_storage(str(path)), study_name="a")
    study.tell(study.ask(), 1.0)
    with path.open("ab") as stream:
        stream.write(b'{"op_code":4,"worker')
    again = optuna.load_study(storage=open_storage(str(path)), study_name="a")
    again.tell(again.ask(), 2.0)
    found = optuna.load_study(storage=open_storage(str(path)), study_name="a").trials
    assert [one.value for one in found] == [1.0, 2.0]


# -- grids ---------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_grid_killed_in_mid_job_goes_on_and_leaves_what_has_finished_as_it_was(
    small: list[str], tmp_path: Path
) -> None:
    sweep = tmp_path / "runs" / "grid"
    arguments = [
        *(*small, "-m", f"hydra.sweep.dir={sweep}", "optimizer.lr=0.001,0.01", "seed=0,1,2"),
        *(SAVED, "trainer.max_epochs=2", "stages=[fit]"),
    ]
    killed(arguments, tmp_path, when=lambda: in_mid_trial(sweep, after=2))
    done = [run for run in read_trials(sweep) if run.outcome.status == "finished"]
    before = {run.number: content(run.folder) for run in done}
    assert ended(arguments, tmp_path) == 0, (tmp_path / "log").read_text()[-2000:]
    runs = read_trials(sweep)
    assert [run.number for run in runs] == list(range(6))
    assert {run.outcome.status for run in runs} == {"finished"}
    pairs = {(run.overrides["optimizer.lr"], run.overrides["seed"]) for run in runs}
    assert len(pairs) == 6
    for run in done:
        assert content(run.folder) == before[run.number]


@pytest.mark.parametrize("options", [(), ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=1")])
def test_a_pattern_sweeps_the_options_of_a_group(
    options: tuple[str, ...], call: Train, tmp_path: Path
) -> None:
    sweep = ("-m", f"hydra.sweep.dir={tmp_path}/runs/sweep", *options)
    done = call(*sweep, "augment=glob(l*)", "stages=[fit]")
    assert done.exit_code == 0, done.stdout + done.stderr
    (run,) = read_trials(tmp_path / "runs" / "sweep")
    assert (run.overrides["augment"], run.outcome.status) == ("light", "finished")


@pytest.mark.slow
def test_a_grid_that_grows_keeps_its_jobs_by_their_overrides(call: Train, tmp_path: Path) -> None:
    sweep = ("-m", f"hydra.sweep.dir={tmp_path}/runs/grid", "stages=[fit]")
    first = call(*sweep, "seed=0,2")
    assert first.exit_code == 0, first.stderr
    before = {run.name: content(run) for run in first.runs}
    second = call(*sweep, "seed=0,1,2")
    assert second.exit_code == 0, second.stderr
    assert "2 of 3 jobs have finished" in second.stdout
    seeds = {run.number: run.overrides["seed"] for run in read_trials(tmp_path / "runs" / "grid")}
    assert seeds == {0: "0", 1: "2", 2: "1"}
    for name, files in before.items():
        assert content(tmp_path / "runs" / "grid" / name) == files


@pytest.mark.slow
def test_a_second_worker_of_a_grid_is_refused_in_one_line(
    small: list[str], tmp_path: Path, call: Train
) -> None:
    sweep = tmp_path / "runs" / "grid"
    arguments = [*small, "-m", f"hydra.sweep.dir={sweep}", "seed=0,1", "stages=[fit]"]
    first = start(arguments, tmp_path)
    deadline = time.monotonic() + SECONDS
    while not (sweep / "sweep.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    refused = call(*arguments, defaults=False)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert refused.exit_code == EXIT_USER_ERROR
    assert "another train.py works on the sweep" in refused.error
