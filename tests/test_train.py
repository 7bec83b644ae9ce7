"""`python train.py` as a person runs it: what it leaves, how it goes on, and how it refuses."""

import json
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TRAIN_PY, Canary, Ended, Train, environment
from jsonschema import Draft202012Validator
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest
from tensorboard.plugins.hparams.backend_context import Context as HParamsContext
from tensorboard.plugins.hparams.get_experiment import Handler as GetExperiment

import train as script
from xray_lightning.errors import EXIT_USER_ERROR
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint

SCHEMA = json.loads((REPOSITORY / "docs" / "results_schema.json").read_text())


@pytest.fixture
def earlier(first: Ended, tmp_path: Path) -> Path:
    """That run's folder, copied to where this test may change it."""
    return Path(shutil.copytree(first.runs[0], tmp_path / "earlier"))


def checkpoint(first: Ended) -> Path:
    return first.runs[0] / "checkpoints" / "best.ckpt"


def assert_valid(result: dict[str, Any]) -> None:
    Draft202012Validator(SCHEMA).validate(result)


def succeeded(ended: Ended, *, jobs: int = 1) -> list[dict[str, Any]]:
    """The valid records of a command that has done what it was asked for."""
    assert ended.exit_code == 0, ended.stderr
    assert len(ended.results) == jobs
    for result in ended.results:
        assert_valid(result)
    return ended.results


# -- what a run leaves ---------------------------------------------------------------------------


def test_a_run_leaves_its_folder_and_says_where_it_is(first: Ended) -> None:
    succeeded(first)
    (run,) = first.runs
    assert run.parent == first.folder / "runs"
    assert run.name.endswith("_phantom_resnet18")
    for name in (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "predictions_val.csv",
        "predictions_test.csv",
        "model_card.md",
        "train.log",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("tensorboard/events.out.tfevents.*"))
    assert not list(run.rglob(".*.ckpt*")), "a partial checkpoint"
    assert f"results: {run / 'results.json'}" in first.stdout
    assert f"tensorboard --logdir {run / 'tensorboard'}" in first.stdout
    assert "AUROC" in first.stdout
    assert "for always answering no finding" in first.stdout
    assert first.stderr == ""


def test_its_record_keeps_the_schema_and_is_finished(first: Ended) -> None:
    (result,) = succeeded(first)
    assert (result["status"], result["reason"]) == ("finished", None)
    assert result["command"].startswith("python ")
    assert result["config"]["model"]["arch"] == "resnet18"
    assert result["environment"]["accelerator"] == "cpu"
    assert result["environment"]["world_size"] == 1
    assert result["environment"]["mpi"] is None
    assert result["environment"]["precision_used"] == "32-true"
    assert [row["epoch"] for row in result["history"]] == [0]
    timing = result["timing"]
    for key in ("startup", "fit", "test", "total", "fit_images_per_second"):
        assert timing[key] > 0
    assert timing["steady_images_per_second"] is None  # so few steps are all warm-up
    assert timing["fit"] + timing["test"] < timing["total"]
    assert timing["peak_memory_bytes"]["host"] > 1e8


def test_its_predictions_are_of_exactly_the_splits_images(first: Ended, phantoms: Path) -> None:
    (run,), (result,) = first.runs, first.results
    columns = ["image", "patient_id", "split"]
    columns += [f"prob_{name}" for name in FINDINGS] + [f"label_{name}" for name in FINDINGS]
    columns += ["age", "sex", "view", "follow_up"]
    listed = {
        "test": (phantoms / "test_list.txt").read_text().split(),
        "val": (phantoms / "train_val_list.txt").read_text().split(),
    }
    for side in ("val", "test"):
        table = pd.read_csv(run / f"predictions_{side}.csv")
        assert list(table) == columns
        assert table["image"].is_unique
        assert len(table) == result["data"]["images"][side]
        assert set(table["image"]) <= set(listed[side])
        assert set(table["split"]) == {side}
        assert table.filter(like="prob_").stack().between(0, 1).all()
        positives = table.filter(like="label_").sum().rename(lambda name: name[len("label_") :])
        assert positives.to_dict() == result["data"]["positives"][side]
    assert result["data"]["images"]["test"] == len(listed["test"])


def test_its_tensorboard_holds_curves_inputs_and_hyper_parameters(first: Ended) -> None:
    (run,), (result,) = first.runs, first.results
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "val/loss",
        "val/auroc_macro",
        "train/images_per_second",
        "lr-Adam",
        "test/auroc_macro",
        "test/label_accuracy",
    } <= scalars
    assert {f"val/auroc/{name}" for name in FINDINGS} & scalars
    assert not any("val/auroc/" in tag and tag[10:] not in FINDINGS for tag in scalars)
    assert len(events.Images("inputs")) == 1
    assert any(tag.startswith("_hparams_") for tag in events.summary_metadata)
    (epoch,) = result["history"]
    for tag, key in (("train/loss", "train_loss"), ("val/auroc_macro", "val_auroc_macro")):
        assert events.Scalars(tag)[-1].value == pytest.approx(epoch[key], rel=1e-4)
    final = events.Scalars("test/auroc_macro")[-1].value
    assert final == pytest.approx(result["metrics"]["test"]["auroc_macro"], rel=1e-4)


def test_tensorboards_hparams_tab_shows_the_choices_that_matter_most_at_first(
    first: Ended,
) -> None:
    folder = str(first.runs[0] / "tensorboard")
    multiplexer = EventMultiplexer().AddRunsFromDirectory(folder).Reload()
    provider = MultiplexerDataProvider(multiplexer, folder)
    backend = HParamsContext(TBContext(data_provider=provider, logdir=folder))
    experiment = GetExperiment(RequestContext(), backend, "", GetExperimentRequest()).run()
    # The tab's page shows no more than five until it is asked.
    shown = [column.name for column in experiment.hparam_infos][:5]
    assert shown == ["Learning rate", "Model", "Precision", "Scheduler", "Strategy"]


def test_its_checkpoint_says_how_to_build_the_model_again(first: Ended) -> None:
    described = read_checkpoint(checkpoint(first))["xray"]
    assert described["model"] == {"arch": "resnet18", "hidden": [], "dropout": 0.0}
    assert (described["normalize"], described["image_size"]) == ("per_image", 32)
    assert described["split_sha256"] == first.results[0]["data"]["split_sha256"]


def test_a_run_of_fewer_batches_records_the_images_that_it_was_trained_on(call: Train) -> None:
    ended = call("+trainer.limit_train_batches=2", "scheduler=cosine", "stages=[fit]")
    (result,) = succeeded(ended)
    (epoch,) = result["history"]
    assert epoch["images"] == 2 * 16 < result["data"]["images"]["train"]
    assert epoch["lr"] == pytest.approx(0, abs=1e-6)  # the schedule is as long as the run


def test_fault_26_a_run_whose_curves_cannot_be_written_warns_and_goes_on(
    call: Train, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    ended = call(f"logger.tensorboard.save_dir={tmp_path}/file")
    (result,) = succeeded(ended)
    (warned,) = result["training"]["warnings"]
    assert warned.endswith("/file is a file; give a folder. The run goes on without it")
    assert ended.stdout.count("The run goes on without it") == 1
    assert "--logdir" not in ended.stdout


def shell(rest: str) -> tuple[str, ...]:
    """What stands before a command, for a shell to run it with a `rest` behind it."""
    return ("bash", "-c", f'set -o pipefail; "$@" {rest}', "bash")


@pytest.mark.parametrize("rest", ["| head -1", "> /dev/full"])
@pytest.mark.parametrize(
    "ranks",
    [(), pytest.param(("strategy=mpi", "strategy.processes=2"), marks=pytest.mark.slow)],
    ids=["single", "mpi"],
)
def test_fault_61_a_run_goes_on_without_a_standard_output_that_takes_no_more(
    rest: str, ranks: tuple[str, ...], train: Train
) -> None:
    ended = train(*ranks, before=shell(rest))
    (result,) = succeeded(ended)
    assert result["status"] == "finished"
    assert ended.stdout.count("\n") == rest.count("head")
    lines = (ended.runs[0] / "train.log").read_text().splitlines()
    assert any("<stdout> takes no more" in line for line in lines)
    assert "card:" in lines[-1]
    assert "Error" not in ended.stderr


def test_help_that_is_cut_off_says_nothing_of_it(train: Train) -> None:
    for _ in range(3):  # how much is still to be written differs
        ended = train("--help", defaults=False, before=shell("| head -1"))
        assert (ended.stdout, ended.stderr) == ("train is powered by Hydra.\n", "")


# -- going on ------------------------------------------------------------------------------------


def test_testing_a_checkpoint_gives_the_metrics_of_its_own_run(first: Ended, call: Train) -> None:
    (result,) = succeeded(call("stages=[test]", f"ckpt_path={checkpoint(first)}"))
    assert result["history"] == []
    assert result["timing"]["fit"] is None
    assert result["metrics"] == first.results[0]["metrics"]


def test_testing_a_checkpoint_says_which_of_this_runs_wishes_its_own_points_overrule(
    first: Ended, call: Train
) -> None:
    rule = ("evaluation.operating_point.rule=sensitivity", "evaluation.operating_point.target=0.9")
    wishes = ("evaluation.calibration=null", *rule)
    ended = call("stages=[test]", f"ckpt_path={checkpoint(first)}", *wishes)
    test, own = (succeeded(one)[0]["metrics"]["test"] for one in (ended, first))
    assert test["calibrated"] is None
    assert test["operating_point"] == own["operating_point"]
    assert "keeps its own operating points (rule youden" in ended.stdout + ended.stderr


def test_a_resumed_run_goes_on_in_its_folder(
    earlier: Path, first: Ended, phantoms: Path, call: Train
) -> None:
    record = earlier / "results.json"  # as of a release with its modules in other places
    old = re.sub(
        r'(?<="_target_": ")xray_lightning[\w.]*\.', "xray_lightning.x.", record.read_text()
    )
    record.write_text(old)
    ended = call(f"resume={earlier}", "trainer.max_epochs=2")
    assert ended.exit_code == 0, ended.stderr
    assert not (ended.folder / "runs").exists()
    result = json.loads((earlier / "results.json").read_text())
    assert_valid(result)
    assert result["status"] == "finished"
    assert [row["epoch"] for row in result["history"]] == [0, 1]
    assert result["history"][0] == first.results[0]["history"][0]
    assert read_checkpoint(earlier / "checkpoints" / "last.ckpt")["epoch"] == 1


def test_fault_24_resuming_with_another_configuration_is_refused_with_the_difference(
    earlier: Path, first: Ended, call: Train
) -> None:
    ended = call(f"resume={earlier}", "optimizer.lr=0.5", "data.image_size=64", defaults=False)
    assert ended.exit_code == EXIT_USER_ERROR
    assert "data.image_size: 32 -> 64; optimizer.lr: 0.001 -> 0.5" in ended.error
    assert (earlier / "results.json").read_text() == (first.runs[0] / "results.json").read_text()


# -- several jobs --------------------------------------------------------------------------------


def test_a_multirun_leaves_a_run_folder_a_job_and_mixed_precision_says_what_it_ran_as(
    call: Train,
) -> None:
    ended = call("-m", "scheduler=none,cosine", "precision=16-mixed", "stages=[fit]")
    results = succeeded(ended, jobs=2)
    assert [run.name for run in ended.runs] == ["0_phantom_resnet18", "1_phantom_resnet18"]
    assert len(list((ended.folder / "runs").iterdir())) == 1
    for run, result, scheduler in zip(ended.runs, results, (False, True), strict=True):
        assert result["status"] == "finished"
        assert ("scheduler" in result["config"]["scheduler"]) == scheduler
        assert (run / ".hydra" / "overrides.yaml").is_file()
        used = result["environment"]
        assert (used["precision_asked"], used["precision_used"]) == ("16-mixed", "bf16-mixed")
    assert ended.stdout.count("on this CPU it runs as bf16-mixed") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there: nothing to skip")
def test_a_sweep_skips_what_needs_cuda_by_name_and_goes_on(call: Train) -> None:
    ended = call("-m", "accelerator=cuda,cpu", "stages=[fit]")
    found = [(result["status"], result["reason"]) for result in succeeded(ended, jobs=2)]
    assert found == [("skipped", "needs CUDA"), ("finished", None)]
    assert "skipped: needs CUDA" in ended.stdout


def test_a_failed_job_does_not_stop_the_others_and_the_exit_code_is_its(call: Train) -> None:
    ended = call("-m", "data.normalize=zscore,imagenet", "stages=[fit]")
    assert ended.exit_code == EXIT_USER_ERROR
    assert "data.normalize=zscore" in ended.error
    assert [result["status"] for result in ended.results] == ["failed", "finished"]


def test_fault_28_runs_started_at_once_get_a_folder_each(tmp_path: Path) -> None:
    command = [sys.executable, TRAIN_PY, "trainer.max_epochs=0"]  # ends once it has its folder
    quiet = subprocess.DEVNULL
    started = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=quiet, stderr=quiet)
        for _ in range(4)
    ]
    for process in started:
        assert process.wait(timeout=120) == EXIT_USER_ERROR
    assert len(list(tmp_path.glob("runs/*/results.json"))) == 4


def test_fault_27_a_clock_set_back_overwrites_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(script, "datetime", Stopped)
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        folders.append(script.run_folder("a"))
        assert script.run_folder("a") == folders[-1]  # one folder a process
        script._folders.clear()
    stamp = "runs/2026-01-02_03-04-05_a"
    assert folders == [stamp, f"{stamp}-2", f"{stamp}-3"]


# -- what a user gets wrong ----------------------------------------------------------------------


def assert_refused(ended: Ended, *told: str) -> None:
    """One line on stderr that holds all of this, exit code 2, and the same reason on record."""
    assert ended.exit_code == EXIT_USER_ERROR, ended.stderr
    assert ended.stderr.splitlines() == [ended.error]
    for part in told:
        assert part in ended.error
    for result in ended.results:
        assert_valid(result)
        assert result["status"] == "failed"
        assert ended.error == f"xray: error: {result['reason']}"


def test_fault_16_a_run_folder_that_cannot_be_made_is_told(call: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = call(f"hydra.run.dir={tmp_path}/file/run")
    assert ended.exit_code == EXIT_USER_ERROR
    assert str(tmp_path / "file") in ended.error


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["model=nosuch"], ["model/nosuch", "resnet18"]),
        (["experiment=nosuch"], ["experiment/nosuch", "paper_1_resnet18_cpu"]),
        (["nosuch=1"], ["nosuch"]),
        (["-m", "hydra/launcher=joblib"], ["=joblib needs", "install hydra-joblib-launcher"]),
        (["-m", "hydra/launcher=submitit_slurm"], ["install hydra-submitit-launcher"]),
        (["hydra/sweeper=nevergrad"], ["=nevergrad needs", "install hydra-nevergrad-sweeper"]),
        (["hydra/launcher=nosuch"], ["hydra/launcher/nosuch", "basic"]),
        (["trainer.max_epoch=3"], ["trainer.max_epoch"]),
        (["trainer.max_epochs=-5"], ["trainer.max_epochs=-5", "at least 1"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs=0"]),
        (["trainer.max_epochs=1.5"], ["trainer.max_epochs=1.5"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1"]),
        (["optimizer.lr=abc"], ["optimizer.lr=abc"]),
        (["seed=-1"], ["seed=-1"]),
        (["seed=abc"], ["seed=abc"]),
        (["name=a/b"], ["name=a/b"]),
        (["resume=nosuch"], ["resume=nosuch is no run folder"]),
        (["strategy=ddp", "strategy.processes=0"], ["strategy.processes=0"]),
        (["strategy=mpi", "strategy.processes=two"], ["strategy.processes=two"]),
        (["data.batch_size=0"], ["data.batch_size=0"]),
        (["data.batch_size=abc"], ["data.batch_size=abc"]),
        (["data.image_size=3"], ["data.image_size=3", "at least 32"]),
        (["data.normalize=zscore"], ["data.normalize=zscore", "per_image"]),
        (["data.split=nosuch"], ["data.split='nosuch'", "official"]),
        (["data.split_seed=abc"], ["data.split_seed=abc"]),
        (["data.root=/nowhere"], ["data.root=/nowhere does not exist"]),
        (["data.cache_dir=/dev/null/cache"], ["data.cache_dir=/dev/null/cache"]),
        (["stages=[predict]"], ["stages=[predict]", "fit, test"]),
        (["stages=predict"], ["stages=[predict]"]),
        (["stages=[test]"], ["stages=[test] needs ckpt_path"]),
        (["stages=[test]", "ckpt_path=nosuch.ckpt"], ["nosuch.ckpt does not exist"]),
        (["stages=[test]", "ckpt_path=a.safetensors"], ["takes a .ckpt; score this file with"]),
        (["trainer.precision=int8"], ["precision=int8 is unknown", "16-mixed"]),
        (["trainer.accelerator=tpu"], ["accelerator=tpu is unknown"]),
        (["optimizer=sgd", "optimizer.momentum=-1"], ["optimizer: ", "momentum"]),
        (["report=maybe"], ["report=maybe", "true or false"]),
        (["report=null"], ["report=None", "true or false"]),
        (["model.pretrained=abc"], ["model.pretrained=abc", "true or false"]),
        (["strategy=mpi", "strategy.sync_batchnorm=on_gpu"], ["strategy.sync_batchnorm=on_gpu"]),
        (["evaluation=null"], ["evaluation=null"]),
        (["evaluation.seed=-1"], ["evaluation.seed=-1"]),
        (["evaluation.resamples=many"], ["evaluation.resamples=many"]),
        (["evaluation.operating_point=null"], ["evaluation.operating_point=null", "a rule"]),
        (["evaluation.operating_point.rule=xyz"], ["operating_point.rule=xyz", "youden"]),
        (["evaluation.operating_point.rule=cost"], ["target=None must be more than 0"]),
        (["evaluation.prevalence=2"], ["evaluation.prevalence=2 must be a number between 0 and 1"]),
        (["evaluation.prevalence={Mas:0.1}"], ["evaluation.prevalence names Mas"]),
        (["evaluation.calibration.method=abc"], ["calibration.method=abc", "platt"]),
        (["evaluation.calibration=platt"], ["evaluation.calibration.method=platt"]),
        (["evaluation.shuffled=2"], ["evaluation.shuffled=2", "true or false"]),
        (["evaluation.shuffled=true", "stages=[fit]"], ["it needs stages=[fit,test]"]),
        (["evaluation.operating_point=f1"], ["evaluation.operating_point.rule=youden"]),
        pytest.param(
            *(["accelerator=cuda"], ["accelerator=cuda", "no CUDA device"]),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there"),
            id="fault 12: never a silent CPU run",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_a_wrong_option_is_one_line(overrides: list[str], told: list[str], call: Train) -> None:
    assert_refused(call(*overrides), *told)


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_fault_29_an_unreadable_image_is_named_in_one_line(
    cache: str, call: Train, phantoms: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(phantoms, tmp_path / "damaged"))
    name = (root / "train_val_list.txt").read_text().split()[0]
    image = root / "images" / name
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    assert_refused(call(f"data.root={root}", f"data.cache={cache}"), name)


@pytest.mark.parametrize("how", ["truncated", "hostile", "other order", "other model"])
def test_a_checkpoint_that_does_not_do_is_one_line_and_never_random_weights(
    how: str, first: Ended, call: Train, tmp_path: Path
) -> None:
    bad, evil = tmp_path / "bad.ckpt", Canary(tmp_path / "canary")
    whole = checkpoint(first).read_bytes()
    content = read_checkpoint(checkpoint(first))
    further, told = [], ["bad.ckpt"]
    if how == "truncated":
        bad.write_bytes(whole[: len(whole) * 6 // 10])
    elif how == "hostile":
        torch.save(content | {"callbacks": evil}, bad)
    elif how == "other order":
        content["xray"]["findings"] = list(FINDINGS[::-1])
        torch.save(content, bad)
        told += ["Hernia, Pleural_Thickening", "Atelectasis, Cardiomegaly"]
    else:
        bad.write_bytes(whole)
        further = ["model=resnet50", "data.normalize=imagenet"]
        told += ["model.arch: resnet18 -> resnet50; normalize: per_image -> imagenet"]
    assert_refused(call("stages=[test]", f"ckpt_path={bad}", *further), *told)
    assert not evil.path.exists()


def test_fault_17_resuming_from_a_truncated_checkpoint_is_one_line(
    earlier: Path, call: Train
) -> None:
    last = earlier / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    ended = call(f"resume={earlier}", "trainer.max_epochs=2")
    assert ended.exit_code == EXIT_USER_ERROR
    assert str(last) in ended.error


def test_a_traceback_is_shown_when_asked_for(call: Train) -> None:
    ended = call("trainer.max_epochs=0", XRAY_DEBUG="1")
    assert ended.exit_code == EXIT_USER_ERROR
    assert "Traceback" in ended.stderr
