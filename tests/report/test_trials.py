"""`xray report` of a sweep: its trials, the best one, what choosing it has added, and its page."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import CONTRASTS, LEAST_CONTRAST
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from page_runs import Page, predictions, sample, untested, write_run
from test_report import flowed, markdown, paper_sample, printed

from xray_lightning.report.trials import read_sweep
from xray_lightning.report.write import build_report, write_report
from xray_lightning.runs.predictions import csv_of
from xray_lightning.runs.sweep import Sweep

SPACE = {"optimizer.lr": "tag(log,interval(1e-4,1e-2))", "augment": "none,light"}
DISTRIBUTIONS = {
    "optimizer.lr": distribution_to_json(FloatDistribution(1e-4, 1e-2, log=True)),
    "augment": distribution_to_json(CategoricalDistribution(["none", "light"])),
}
FIXED = ("data=nih", "name=a b")
TRIALS = 6


def add_trial(sweep: Path, number: int, results: dict[str, Any], *, val: bool = True) -> Path:
    """A run folder of the sweep; the rate rises with the number, and so does the AUROC."""
    folder = write_run(sweep / f"{number}_a", results)
    rate, augment = f"{1e-3 * (number + 1):.6g}", "light" if number % 2 else "none"
    own = [*FIXED, f"optimizer.lr={rate}", f"augment={augment}"]
    given = [*own, "+callbacks.pruning={trial: 1}", "resume=runs/x"]
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(given))
    if val:
        table = predictions(skill=0.5 + 0.2 * number, seed=1).assign(split="val")
        (folder / "predictions_val.csv").write_text(csv_of(table))
    return folder


def result_of(number: int, **changes: Any) -> dict[str, Any]:
    results = sample(name=f"trial{number}", **changes)
    for row in results["history"]:
        row["val_auroc_macro"] = 0.6 + 0.01 * number
    return results


def make_sweep(folder: Path, *, kind: Any = "optuna", val: bool = True) -> Path:
    """Five finished trials, a pruned and a failed one, of eight that were asked for."""
    for number in range(TRIALS):
        add_trial(folder, number, result_of(number), val=val)
    pruned = untested("pruned", "pruned by Optuna's MedianPruner after epoch 1 of 3")
    pruned["history"] = result_of(9)["history"][:1]
    add_trial(folder, 6, pruned, val=False)
    add_trial(folder, 7, untested("failed", "the disk is full"), val=False)
    given = DISTRIBUTIONS if kind == "optuna" else {}
    Sweep(kind, "python train.py -m a", 8, FIXED, SPACE, given).write(folder)
    return folder


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "search")


def test_the_best_is_chosen_by_validation_and_pruned_ones_are_not_chosen(search: Path) -> None:
    text = flowed(printed([search]))
    assert "8 of 8: 6 finished, 1 pruned, 1 failed" in text
    assert "trial 5, 5_a" in text
    assert "0.650" in text
    assert "Trial 6 pruned: by Optuna's MedianPruner after epoch 1 of 3." in text
    assert "Trial 7 failed: the disk is full." in text


def test_its_command_trains_the_best_trial_again_and_can_be_pasted(search: Path) -> None:
    sweep = build_report([search]).sweep
    assert sweep is not None
    assert shlex.split(sweep.command or "") == [
        *("python", "train.py", *FIXED, "optimizer.lr=0.006", "augment=light")
    ]
    assert "'name=a b'" in printed([search])


def test_what_choosing_has_added_is_told_or_why_it_is_not_known(
    search: Path, tmp_path: Path
) -> None:
    sweep = build_report([search]).sweep
    assert sweep is not None
    assert sweep.optimism is not None
    assert sweep.optimism.models == TRIALS
    assert sweep.optimism.corrected is not None
    assert "what choosing" not in flowed(printed([search])).lower()
    bare = flowed(printed([make_sweep(tmp_path / "bare", val=False)]))
    assert "What choosing has added -: 6 finished trials of 6 have no predictions_val.csv" in bare


def test_a_search_shows_the_test_of_the_chosen_trial_alone(search: Path, tmp_path: Path) -> None:
    report = build_report([search])
    assert [table.title for table in report.tables] == [
        *("Sweep", "Trials, the best first", "Importance")
    ]
    page = Page(write_report(report, tmp_path / "out"))
    assert page.sections == ["sweep", "trials", "training", "reproduce"]
    assert page.source.count("0.831") == 1  # the sample's test macro AUROC


def test_a_grid_shows_its_jobs_beside_each_other_too(tmp_path: Path) -> None:
    grid = make_sweep(tmp_path / "grid", kind="grid")
    titles = [table.title for table in build_report([grid]).tables]
    assert titles[:4] == ["Sweep", "Trials, the best first", "Importance", "Runs"]
    page = Page(write_report(build_report([grid])))
    assert page.sections == ["sweep", "trials", "training", "tables", "reproduce"]


def test_the_importance_names_the_parameter_that_matters_or_says_why_there_is_none(
    search: Path, tmp_path: Path
) -> None:
    sweep = build_report([search]).sweep
    assert sweep is not None
    assert next(iter(sweep.importance)) == "optimizer.lr"
    assert sum(sweep.importance.values()) == pytest.approx(1)
    few = tmp_path / "few"
    for number in range(2):
        add_trial(few, number, result_of(number))
    Sweep("optuna", "c", 9, FIXED, SPACE, DISTRIBUTIONS).write(few)
    assert "There is none: it takes at least 5 finished trials." in markdown([few])


def test_the_papers_study_keeps_its_own_tables(tmp_path: Path) -> None:
    for row in (1, 2):
        add_trial(tmp_path, row, paper_sample(row))
    Sweep("grid", "c", 2, (), {"experiment": "glob(paper_*)"}, {}).write(tmp_path)
    report = build_report([tmp_path])
    assert report.sweep is None
    assert report.tables[0].title.startswith("Table 1")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": 3}'])
def test_a_damaged_sweep_file_leaves_the_report_of_its_runs(content: str, tmp_path: Path) -> None:
    add_trial(tmp_path, 0, result_of(0))
    (tmp_path / "sweep.json").write_text(content)
    assert read_sweep(tmp_path, []) is None
    assert build_report([tmp_path]).tables[0].title == "Runs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_its_page_reads_well_in_a_browser(
    width: int, scheme: str, search: Path, tmp_path: Path, opened: Any
) -> None:
    path = write_report(build_report([search]), tmp_path / "out")
    seen = opened(path, width=width, scheme=scheme)
    seen.check()
    contrasts = seen.page.evaluate(CONTRASTS)
    assert min(contrast for contrast, *_ in contrasts) >= LEAST_CONTRAST
