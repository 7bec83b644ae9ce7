"""The report over runs whose results.json the tests make themselves."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_runs import SAMPLE, Results, sample, untested, write_run
from PIL import Image
from rich.console import Console

from xray_lightning.errors import RunFailedError, UserError
from xray_lightning.evaluation.published_results import (
    OFFICIAL_TEST_IMAGES,
    PAPER_ROWS,
    PUBLISHED_AUROCS,
)
from xray_lightning.html.page import NOTICE
from xray_lightning.report.wording import NO_BETTER
from xray_lightning.report.write import build_report, print_report, write_report, write_run_report
from xray_lightning.terminal import duration, probability

PUBLISHED = "Macro AUROC on the official split"


def paper_sample(row: int, **changes: Any) -> Results:
    results = sample(name=f"paper_{row}", **changes)
    results["config"]["paper_row"] = row
    return results


def printed(paths: list[Path], *, width: int = 120) -> str:
    out = io.StringIO()
    print_report(build_report(paths), Console(file=out, width=width))
    return out.getvalue()


def flowed(text: str) -> str:
    """The text without its line breaks, for sentences that a terminal has folded."""
    return " ".join(text.split())


def markdown(paths: list[Path], out: Path | None = None) -> str:
    """The text of report.md, as `xray report` writes it."""
    page = write_report(build_report(paths), out)
    assert page.name == "report.html"
    return page.with_suffix(".md").read_text(encoding="utf-8")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The paper's five rows as a sweep on a CPU."""
    for row in range(1, 6):
        write_run(tmp_path / "sweep" / f"{row - 1}_paper", paper_sample(row))
    return tmp_path / "sweep"


@pytest.mark.parametrize("width", [80, 120])
def test_both_tables_of_the_paper_show_ours_beside_the_papers(study: Path, width: int) -> None:
    text = printed([study], width=width)
    accuracy, time = text.split("Table 2.")
    assert "Table 1. Test label accuracy by strategy" in accuracy
    for row in PAPER_ROWS:
        assert f"{row.accuracy:.2%}".replace("%", " %") in accuracy
        assert f"{row.minutes:.2f} min" in time
    assert "87.12 %" in accuracy  # ours
    assert "86.54 %" in accuracy  # the always-negative baseline
    assert "0.812-0.850" in accuracy
    assert "2.5 min" in time
    assert "1400 x 3" in time
    assert "32-true" in time
    assert max(map(len, text.splitlines())) <= width


def test_the_images_that_an_epoch_was_limited_to_are_told_and_not_the_splits(
    tmp_path: Path,
) -> None:
    results = paper_sample(1)
    for row, images in zip(results["history"], (64, 64, 32), strict=True):
        row["images"] = images
    write_run(tmp_path, results)
    assert "64 x 2 + 32 x 1" in flowed(printed([tmp_path], width=200))


@pytest.mark.parametrize("width", [80, 120])
def test_rows_of_the_paper_that_ran_on_a_cpu_say_so_in_every_table(study: Path, width: int) -> None:
    for table in printed([study], width=width).split("Table 2."):
        assert table.count("run on CPU") == 4  # the first row is the paper's own CPU row


def test_other_images_than_the_papers_are_said_to_be_not_comparable(study: Path) -> None:
    text = flowed(printed([study]))
    assert "Ours: phantom, split patient_random, 400 test images." in text
    assert "do not compare the accuracies" in text


def test_a_row_of_the_paper_without_a_test_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "0", paper_sample(1))
    skipped = untested("skipped", "needs CUDA", name="paper_2", data=None)
    skipped["config"]["paper_row"] = 2
    skipped["timing"]["fit"] = skipped["environment"]["accelerator"] = None
    write_run(tmp_path / "1", skipped)
    text = printed([tmp_path])
    assert text.count("skipped: needs CUDA") >= 2  # in the table, and beneath it by name
    assert "Row 2 skipped: needs CUDA." in text
    assert "run on" not in text
    assert text.count("not run") == 6  # three rows in each of two tables
    failed = paper_sample(4, status="failed", reason="rank 1 on host a: loss is NaN")
    failed["metrics"]["test"] = None
    write_run(tmp_path / "3", failed)
    assert "Row 4 failed: rank 1 on host a: loss is NaN." in printed([tmp_path])


@pytest.mark.parametrize("accuracy, said", [(0.8654, True), (0.8, True), (0.8655, False)])
def test_label_accuracy_not_above_the_baseline_is_named(
    tmp_path: Path, accuracy: float, said: bool
) -> None:
    results = sample(name="mine")
    results["metrics"]["test"].update(label_accuracy=accuracy, always_negative_accuracy=0.8654)
    write_run(tmp_path, results)
    assert (f"mine: {NO_BETTER}" in flowed(printed([tmp_path]))) is said


def test_the_precision_that_was_asked_for_is_shown_where_another_was_used(tmp_path: Path) -> None:
    results = sample()
    results["environment"].update(precision_asked="16-mixed", precision_used="bf16-mixed")
    write_run(tmp_path, results)
    text = printed([tmp_path])
    assert "bf16-mixed" in text
    assert "asked 16-mixed" in text


def test_a_run_that_is_no_row_of_the_paper_gives_a_summary_alone(tmp_path: Path) -> None:
    write_run(tmp_path, sample())
    text = printed([tmp_path])
    assert "Table 1" not in text
    for part in ("phantom_resnet18", "patient_random", "single", "0.831", "0.412", "n = 400"):
        assert part in text
    assert "neg 86.54 %" in text
    assert "28 img/s" in text


def test_runs_on_different_splits_are_said_to_be_not_comparable(tmp_path: Path) -> None:
    write_run(tmp_path / "a", sample(name="a"))
    assert "split_sha256 differs" not in printed([tmp_path])
    other = sample(name="b")
    other["data"]["split_sha256"] = "cd" * 32
    write_run(tmp_path / "b", other)
    assert "split_sha256 differs" in printed([tmp_path])


def test_a_leak_and_dropped_rows_are_named(tmp_path: Path) -> None:
    results = sample(name="mine")
    results["data"]["patient_overlap"] = {"train-val": {"patients": 11, "images": 23}}
    results["data"]["dropped"] = {"no image file": 320}
    results["metrics"]["test"]["auroc_macro_findings"] = 12
    write_run(tmp_path, results)
    text = flowed(printed([tmp_path]))
    assert "mine: 11 patients are on both sides of train-val" in text
    assert "320 x no image file" in text
    assert "macro AUROC over the 12 of 14 findings that have one" in text


def test_only_a_run_on_nihs_whole_official_test_list_stands_beside_published_figures(
    tmp_path: Path,
) -> None:
    for name, data, images in (
        ("phantom", "phantom", OFFICIAL_TEST_IMAGES),
        ("some", "nih", OFFICIAL_TEST_IMAGES - 1),
        ("all", "nih", OFFICIAL_TEST_IMAGES),
    ):
        results = sample(name=name)
        results["data"].update(name=data, split="official")
        results["metrics"]["test"]["images"] = images
        write_run(tmp_path / name, results)
    assert PUBLISHED not in printed([tmp_path / "phantom", tmp_path / "some"])
    text = printed([tmp_path]).split(PUBLISHED)[1]
    assert "ours: all" in text
    assert "ours: some" not in text
    assert "ours: phantom" not in text
    assert all(figure.system in text for figure in PUBLISHED_AUROCS)


def test_the_research_notice_stands_once(study: Path, tmp_path: Path) -> None:
    assert printed([study]).count(NOTICE) == 1
    assert markdown([study], tmp_path / "out").count(NOTICE) == 1


def test_a_study_is_written_as_markdown_with_a_figure_for_each_run_and_one_for_all(
    study: Path, tmp_path: Path
) -> None:
    text = markdown([study], tmp_path / "out")
    assert "| 3 | ResNet18, CUDA + MPI | 86.29 % | 87.12 %, run on CPU | 86.54 % |" in text
    figures = sorted((tmp_path / "out" / "figures").iterdir())
    assert len(figures) == 6
    for figure in figures:
        assert f"(figures/{figure.name})" in text
        with Image.open(figure) as image:
            assert image.format == "PNG"
            assert len(image.convert("L").getcolors(256) or []) > 10  # something is drawn
            colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
        assert colours >= {(0x33, 0x33, 0x33), (0xDD, 0xDD, 0xDD)}  # INK and GRID


def test_a_single_run_is_reported_into_its_own_folder_and_several_above_them(study: Path) -> None:
    run = study / "0_paper"
    assert write_report(build_report([run])) == run / "report.html"
    assert (run / "report.md").is_file()
    assert (run / "figures" / "loss.png").is_file()
    assert write_report(build_report([study])) == study / "report" / "report.html"


def test_a_run_without_losses_has_no_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sample(history=[]))
    assert "Loss curves" not in markdown([run])
    assert list((run / "figures").iterdir()) == []


def test_runs_are_found_at_any_depth_each_once_and_in_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_run(tmp_path / "a" / "sweep" / f"{number}_job", sample(name=f"job {number}"))
    (tmp_path / "a" / "sweep" / "loop").symlink_to(tmp_path)
    report = build_report([tmp_path, tmp_path / "a", tmp_path / "a/sweep/2_job/results.json"])
    assert [run.name for run in report.runs] == ["job 1", "job 2", "job 10"]


def test_without_a_run_the_newest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run in runs/"):
        build_report([])
    for age, name in enumerate(("sweep/1", "single", "sweep/0")):
        folder = write_run(tmp_path / "runs" / name, sample(name=name))
        os.utime(folder / "results.json", (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "empty").mkdir()
    assert [run.name for run in build_report([]).runs] == ["sweep/0", "sweep/1"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"schema_version": 1, "na',
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**SAMPLE, "schema_version": 9}).encode(),
        json.dumps({**SAMPLE, "status": "done"}).encode(),
        json.dumps({k: v for k, v in SAMPLE.items() if k != "timing"}).encode(),
        json.dumps({**SAMPLE, "history": [{"epoch": 0}]}).encode(),
        json.dumps({**SAMPLE, "history": 3}).encode(),
        json.dumps({**SAMPLE, "data": {"positives": {"train": {"x" * 100_000: -1}}}}).encode(),
        json.dumps(SAMPLE).replace("0.61", "NaN").encode(),
        json.dumps(SAMPLE).replace("0.61", "1e999").encode(),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_results_file_is_named_and_the_others_are_reported(
    tmp_path: Path, content: bytes
) -> None:
    damaged = write_run(tmp_path / "damaged", sample()) / "results.json"
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged/results\.json") as caught:
        build_report([tmp_path])
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    write_run(tmp_path / "whole", sample())
    report = build_report([tmp_path])
    assert len(report.runs) == 1
    assert f"Left out 1 damaged results.json: {damaged}" in flowed(printed([tmp_path], width=400))
    assert "damaged/results.json" in markdown([tmp_path], tmp_path / "out")


def test_a_named_pipe_in_place_of_results_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match="not a file"):
        build_report([tmp_path])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        build_report([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"no results\.json in"):
        build_report([tmp_path])
    with pytest.raises(UserError, match="no such run"):
        build_report([tmp_path / ("x" * 300)])


HOSTILE = [
    "[bold]x[/bold] [/]",
    "<script>alert(1)</script>",
    "a|b\n| c |",
    "$\\frac{1$",
    "_",
    "\x1b[31mred",
    "../../etc",
    pytest.param("é" * 300, id="long"),
    "胸部",
    "‮reversed",
    "![x](http://x)",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_shown_as_it_is_written(tmp_path: Path, name: str) -> None:
    results = sample(name=name, status="failed", reason=name)
    results["data"].update(name=name, dropped={name: 1})
    write_run(tmp_path / "runs" / "a", results)
    write_run(tmp_path / "runs" / "b", sample(name="b"))
    text = printed([tmp_path], width=400)
    page = markdown([tmp_path], tmp_path / "out")
    for shown in (text, page):
        assert "\x1b" not in shown
        assert "‮" not in shown
        assert "\n| c" not in shown
    assert "<script>" not in page
    assert "![x](http" not in page
    if "bold" in name:
        assert name in text
    written = {path for path in tmp_path.rglob("*") if path.suffix in (".md", ".png")}
    assert len(written) == 4
    assert all(path.is_relative_to(tmp_path / "out") for path in written)


def test_runs_of_one_name_are_told_apart_by_their_folders_utf8_or_not(tmp_path: Path) -> None:
    for folder in (b"0_job", b"\xff1"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), folder)))
        write_run(path, sample(name="same"))
    assert [run.name for run in build_report([tmp_path]).runs] == ["\udcff1", "0_job"]
    assert "\\udcff1" in printed([tmp_path])
    assert "\\udcff1" in markdown([tmp_path], tmp_path / "out")


def test_names_that_make_one_file_name_get_figures_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "1", sample(name="a b"))
    write_run(tmp_path / "2", sample(name="a/b"))
    write_report(build_report([tmp_path]), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == ["loss_a_b.png", "loss_a_b_2.png", "overview.png"]


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", sample())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the report .* --out"):
        write_report(build_report([run]), tmp_path / "file")


@pytest.mark.parametrize("write", [write_run_report, lambda run: write_report(build_report([run]))])
def test_a_disk_that_is_full_leaves_the_former_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    run = write_run(tmp_path / "run", sample())
    page = write(run)
    before = page.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFailedError, match="No space left"):
        write(run)
    assert page.read_text() == before
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize(
    "seconds, shown",
    [(None, "-"), (0.04, "0.0 s"), (48.21, "48.2 s"), (725, "12.1 min"), (9023, "2.5 h")],
)
def test_a_duration_is_given_in_the_unit_that_reads_best(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    "value, shown",
    [
        *((0, "0.000"), (1, "1.000"), (0.25, "0.250"), (0.999, "0.999"), (0.9995, "0.99950")),
        *((0.99901, "0.99901"), (0.99999, "0.999990"), (0.0009, "0.0009"), (3e-7, "3e-07")),
    ],
)
def test_a_probability_next_to_0_or_1_is_not_shown_as_0_or_1(value: float, shown: str) -> None:
    assert probability(value) == shown
