"""Resume: under the same configuration, and of a folder of somebody else's without its calls."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ended, Train

from xray_lightning.errors import EXIT_USER_ERROR, UserError
from xray_lightning.runs.results_json import RunRecord
from xray_lightning.training.resume import refuse_foreign_settings, refuse_other_configuration

CALLS = "shutil.copyfile"


def tree(folder: Path) -> dict[str, bytes | None]:
    """What is below a folder: the content of files, None of the rest."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "train.log"  # which tells of the refusal
    }


@pytest.fixture
def handed_over(tmp_path: Path) -> Path:
    """A run folder without a checkpoint, as its run was killed before the first."""
    folder = tmp_path / "handed_over"
    (folder / ".hydra").mkdir(parents=True)
    RunRecord.start(folder, name="run", command="python train.py", seed=0, config={}).write()
    return folder


def overridden(folder: Path, *overrides: object) -> Path:
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return folder


def refused(call: Train, *arguments: str) -> Ended:
    ended = call(*arguments, defaults=False)
    assert ended.exit_code == EXIT_USER_ERROR, ended.stderr
    return ended


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+callbacks.x={_target_: shutil.copyfile, src: SRC, dst: DST}", "calls shutil.copyfile"),
        ("loss._target_=shutil.copyfile", "loss._target_ calls shutil.copyfile"),
        ("+callbacks.x.deep=[{_target_: shutil.copyfile}]", "callbacks.x.deep._target_ calls"),
        (f"loss={'../' * 20}FOLDER/hostile", "calls shutil.copyfile"),
        ("strategy.mpirun_args=[--mca, plm_rsh_agent, DST]", "would be passed to mpirun"),
        ("strategy.agent=DST", "would be passed to mpirun"),
        ("strategy.hosts=elsewhere:2", "would be passed to mpirun"),
        ("logger.tensorboard.save_dir=/tmp", "outside of the folder"),
        ("logger.tensorboard.name=../../elsewhere", "outside of the folder"),
        ("+logger.mlflow.tracking_uri=http://elsewhere", "would be told of the run"),
        ("+logger.wandb.settings.base_url=http://elsewhere", "would be told of the run"),
        ("callbacks.best.dirpath=elsewhere", "outside of the folder"),
        ("+trainer.default_root_dir=/tmp", "outside of the folder"),
        ("hydra.searchpath=[file://FOLDER]", "sets Hydra itself"),
        ("hydra/job_logging=none", "sets Hydra itself"),
        ("+hydra.callbacks.x={_target_: shutil.copyfile}", "sets Hydra itself"),
    ],
)
def test_fault_20_overrides_of_a_run_folder_call_nothing_and_write_nothing_outside(
    override: str, words: str, handed_over: Path, call: Train, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    source = handed_over / "results.json"
    (tmp_path / "hostile.yaml").write_text(f"_target_: {CALLS}\nsrc: {source}\ndst: {canary}\n")
    for name, path in (("SRC", source), ("DST", canary), ("FOLDER", tmp_path)):
        override = override.replace(name, str(path).lstrip("/") if name == "FOLDER" else str(path))
    strategy = ["strategy=mpi"] if override.startswith("strategy.") else []
    overridden(handed_over, *strategy, override)
    before = tree(tmp_path)
    ended = refused(call, f"resume={handed_over}")
    assert words in ended.error
    assert "if you trust it" in ended.error
    assert tree(tmp_path) == before


def test_fault_20_what_the_command_line_gives_itself_is_called() -> None:
    config = {"callbacks": {"x": {"_target_": CALLS}}, "strategy": {"hosts": "a:2"}}
    folder = Path("runs/a")
    given = {"callbacks.x", "strategy.hosts"}
    refuse_foreign_settings(config, folder=folder, targets=(), given=given)
    refuse_foreign_settings(config, folder=folder, targets=(CALLS,), given={"strategy.hosts"})
    for missing in ("callbacks.x", "strategy.hosts"):
        with pytest.raises(UserError, match=missing):
            refuse_foreign_settings(config, folder=folder, targets=(), given=given - {missing})


@pytest.mark.parametrize(
    "content",
    ["{", "a: b\n", "- 3\n", "- --multirun\n", "\0", b"\xff\xfe\xff", "- ''\n", "[" * 20_000],
    ids=lambda content: repr(content)[:20],
)
def test_damaged_overrides_are_refused_in_one_line(
    content: str | bytes, handed_over: Path, call: Train
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    for name in ("overrides.yaml", "hydra.yaml"):
        (handed_over / ".hydra" / name).write_bytes(raw)
    ended = refused(call, f"resume={handed_over}")
    assert "overrides.yaml" in ended.error


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"config": null}'])
def test_a_damaged_record_is_refused_in_one_line(
    content: str, handed_over: Path, call: Train
) -> None:
    (overridden(handed_over) / "results.json").write_text(content)
    ended = refused(call, f"resume={handed_over}")
    assert "results.json cannot be used" in ended.error
    assert (handed_over / "results.json").read_text() == content


@pytest.mark.parametrize("name", ["checkpoints", "report.html"])
def test_a_link_to_elsewhere_is_refused(
    name: str, handed_over: Path, call: Train, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (overridden(handed_over) / name).symlink_to(tmp_path / "elsewhere")
    ended = refused(call, f"resume={handed_over}")
    assert f"{name} is a link to a place outside" in ended.error
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    "wrong", ["optimizer.lr=0.5", "trainer.max_epochs=0", "data.root=/nosuch", "model=null"]
)
def test_fault_24_a_refused_resume_leaves_the_run_as_it_was(
    wrong: str, first: Ended, call: Train, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(first.runs[0], tmp_path / "earlier"))
    before = tree(folder)
    refused(call, f"resume={folder}", wrong)
    assert tree(folder) == before


def test_a_run_that_another_process_trains_cannot_be_gone_on_with(
    first: Ended, call: Train, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(first.runs[0], tmp_path / "earlier"))
    before = tree(folder)
    with (folder / "train.log").open() as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        ended = refused(call, f"resume={folder}")
    assert "another process trains this run; wait for it, or stop it" in ended.error
    assert tree(folder) == before


def test_a_group_set_anew_leaves_the_keys_of_its_old_option_behind(
    handed_over: Path, call: Train
) -> None:
    overridden(handed_over, "strategy=ddp", "strategy.processes=2", "seed=3")
    choices = {"hydra": {"runtime": {"choices": {"strategy": "ddp"}}}}
    (handed_over / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(choices))
    composed = ("--cfg", "job", f"resume={handed_over}")
    ended = call(*composed, "strategy=single", defaults=False)
    single = yaml.safe_load(ended.stdout)
    assert single["strategy"]["_target_"].endswith("Single")
    assert single["seed"] == 3
    ended = call(*composed, "strategy=ddp", defaults=False)
    same = yaml.safe_load(ended.stdout)
    assert same["strategy"]["processes"] == 2
    assert json.loads((handed_over / "results.json").read_text())["status"] == "running"


CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"arch": "resnet18", "hidden": []},
    "augment": {"_target_": "old.place.Augment", "rotate": 5},
    "data": {"root": "a", "batch_size": 32},
    "trainer": {"max_epochs": 1},
    "strategy": {"name": "single"},
    "loss": {"_target_": "losses.BCE"},
    "growth": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": {"max_epochs": 9}},
        {"strategy": {"name": "ddp", "processes": 2}},
        {"resume": "runs/a", "stages": ["fit"]},
        {"data": {"root": "b", "batch_size": 32}},
        # The class has moved to another module.
        {"augment": {"_target_": "new.Augment", "rotate": 5}},
        # The project has got these since.
        {"data": {"root": "a", "batch_size": 32, "folds": 5}, "mixing": {"_target_": "new.None"}},
    ],
)
def test_a_resumed_run_may_change_how_and_where_it_runs(
    change: dict[str, Any], tmp_path: Path
) -> None:
    refuse_other_configuration(tmp_path, was=CONFIG, now=CONFIG | change)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seed": 1}, r"\(seed: 0 -> 1\)"),
        ({"model": {"arch": "a", "hidden": []}}, r"\(model.arch: resnet18 -> a\)"),
        ({"data": {"root": "a", "batch_size": 8}}, r"\(data.batch_size: 32 -> 8\)"),
        ({"seedling": 1}, r"\(seedling: None -> 1\)"),
        ({"mixing": {"alpha": 1.0}}, r"\(mixing.alpha: None -> 1.0\)"),
        (
            {"loss": {"_target_": "losses.BCE", "smoothing": 0.1}},
            r"\(loss.smoothing: None -> 0.1\)",
        ),
        ({"growth": {"start": 64}}, r"\(growth.start: None -> 64\)"),
        ({"augment": {"_target_": "new.Other", "rotate": 5}}, "old.place.Augment -> new.Other"),
    ],
)
def test_a_resumed_run_may_not_change_what_it_computes(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    given = ("seedling", "mixing", "loss.smoothing")  # keys, a group, and a key of a group
    with pytest.raises(UserError, match=told):
        refuse_other_configuration(tmp_path, was=CONFIG, now=CONFIG | change, given=given)


def test_an_experiment_given_anew_has_no_new_keys(tmp_path: Path) -> None:
    now = CONFIG | {"mixing": {"alpha": 1.0}}
    refuse_other_configuration(tmp_path, was=CONFIG, now=now)
    with pytest.raises(UserError, match=r"mixing\.alpha"):
        refuse_other_configuration(tmp_path, was=CONFIG, now=now, given=("experiment",))
