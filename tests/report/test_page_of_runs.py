"""report.html of several runs: results, links, paired differences, seeds, and their curves."""

from pathlib import Path
from urllib.parse import unquote

import pytest
from page_runs import Page, predictions, sample, untested, write_run

from xray_lightning.errors import printable
from xray_lightning.html.page import NOTICE
from xray_lightning.report.write import build_report, write_report, write_run_report

SECTIONS = ["runs", "tables", "paired", "training"]
OTHER_SPLIT = "cd" * 32


def page_of(folder: Path, out: Path) -> Page:
    return Page(write_report(build_report([folder]), out))


def add_run(folder: Path, *, name: str, seed: int = 0, skill: float = 1.5, **data: str) -> Path:
    """A scored run; another seed of the model judges the same images."""
    table = predictions(skill=skill)
    results = sample(table, name=name, seed=seed)
    results["config"] |= {"name": name, "seed": seed}
    results["data"] |= data
    return write_run(folder / name, results, table)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """Two seeds on one split, one of them with a page, a run on another split, a failed one."""
    folder = tmp_path_factory.mktemp("several")
    write_run_report(add_run(folder / "runs", name="first"))
    add_run(folder / "runs", name="second", seed=1, skill=3.0)
    add_run(folder / "runs", name="third", split_sha256=OTHER_SPLIT)
    failed = untested("failed", "the disk is full", name="failed")
    write_run(folder / "runs" / "failed", failed)
    return folder, page_of(folder / "runs", folder / "out")


def test_every_section_is_there_and_the_notice_once(several: tuple[Path, Page]) -> None:
    _, page = several
    assert page.sections == SECTIONS
    assert page.source.count(NOTICE) == 1
    assert "4 runs" in page.text("run")


def test_each_run_is_listed_with_its_result_and_a_link_to_its_page(
    several: tuple[Path, Page],
) -> None:
    folder, page = several
    assert [a["href"] for a in page.of("a")] == ["../runs/first/report.html"]
    assert (folder / "out" / page.of("a")[0]["href"]).is_file()
    text = page.text("runs")
    assert text.count("macro AUROC 0.") == 3
    assert text.count("always “no finding”") == 3
    assert "failed" in text


def test_runs_on_one_split_are_compared_and_others_named(several: tuple[Path, Page]) -> None:
    _, page = several
    text = page.text("paired")
    assert "second first +0." in text  # the better one, minus the first
    assert "yes" in text
    assert "third: on a split of its own, and so not comparable." in text
    assert "third first" not in text


def test_seeds_are_summarised_as_mean_and_spread(several: tuple[Path, Page]) -> None:
    _, page = several
    assert "2: 0, 1" in page.text("tables")
    assert " ± 0." in page.text("tables")


def test_curves_are_laid_over_each_other_and_named(several: tuple[Path, Page]) -> None:
    _, page = several
    plots = page.of("svg")
    assert len(plots) == 3
    for name in ("first", "second", "third"):
        assert all(name in plot["aria-label"] for plot in plots)
        assert name in page.text("training")
    assert "failed" not in page.text("training")


def test_the_page_stands_alone_and_does_not_change(several: tuple[Path, Page]) -> None:
    folder, page = several
    assert "http" not in page.source.replace("http-equiv", "")
    assert page_of(folder / "runs", folder / "out").source == page.source


def test_runs_without_predictions_are_not_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, sample(name=name))
    page = page_of(tmp_path / "runs", tmp_path / "out")
    assert "none are compared" in page.text("paired")


@pytest.mark.parametrize("name", ["javascript:alert(1)", '"><img src=x onerror=alert(1)>', "é #?%"])
def test_a_folder_of_any_name_is_linked_and_nothing_more(tmp_path: Path, name: str) -> None:
    folder = name.replace("/", "_")
    for part in (folder, "other"):
        run = write_run(tmp_path / part, sample(name=part, history=[]))
        (run / "report.html").write_text("")
    page = page_of(tmp_path, tmp_path)
    links = [a["href"] for a in page.of("a")]
    assert {unquote(link) for link in links} == {f"{folder}/report.html", "other/report.html"}
    assert ":" not in "".join(links)
    assert page.of("img") == page.of("script") == []
    assert printable(folder) in page.text("runs")


def test_damaged_results_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", sample())
    (write_run(tmp_path / "damaged", sample()) / "results.json").write_text("{")
    page = page_of(tmp_path, tmp_path / "out")
    assert "Left out 1 damaged results.json" in page.text("run")
    assert "1 run" in page.text("run")


def test_one_run_alone_has_the_page_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sample())
    assert "reproduce" in Page(write_report(build_report([run]))).sections
    assert "reproduce" in page_of(run, tmp_path / "out").sections
