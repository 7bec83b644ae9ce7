"""Writer of the report (`xray report`): runs beside the paper, as pages, Markdown and tables."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from rich.console import Console
from rich.text import Text

from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.published_results import PAPER
from xray_lightning.files import told_if_unwritable, write_atomically
from xray_lightning.html.markdown import bullets, escaped, pipe_table
from xray_lightning.html.page import NOTICE
from xray_lightning.report.tables import of_paper, tables_of
from xray_lightning.report.trials import SweepReport, read_sweep
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.run_folder import (
    DamagedResultsError,
    Run,
    find_run_folders,
    newest_run,
    read_run,
)
from xray_lightning.terminal import Table, print_table, say

_NAMED = 5  # as many damaged files are named; the rest are counted


@dataclass(frozen=True)
class Report:
    """What is shown of a set of runs.

    Attributes:
        damaged: for each results.json that cannot be used, one line that names it and says why.
        sweep: the sweep whose trials the runs are; None unless one sweep folder was given.
    """

    runs: tuple[Run, ...]
    tables: tuple[Table, ...]
    damaged: tuple[str, ...]
    sweep: SweepReport | None = None


def build_report(paths: Sequence[Path]) -> Report:
    """Read every run at or below `paths`, or the newest one under runs/ when there are no paths.

    Raises:
        UserError: no run is there, or none whose results.json can be read.
    """
    runs, damaged = [], []
    paths = paths or [newest_run(Path("runs"))]
    for folder in find_run_folders(paths):
        try:
            runs.append(read_run(folder))
        except DamagedResultsError as error:
            damaged.append(printable(f"{folder / RESULTS}: {error}"))
    if not runs:
        raise UserError(f"no results left to report: {'; '.join(_first(damaged))}")
    # Runs that share a name are called by their folders.
    shared = Counter(run.name for run in runs)
    names = [run.name if shared[run.name] == 1 else run.folder.resolve().name for run in runs]
    runs = [replace(run, name=name) for run, name in zip(runs, unique(names), strict=True)]
    sweep = read_sweep(paths[0], runs) if len(paths) == 1 else None
    # In a search only the chosen trial's test may be shown; the tables of runs have all tests.
    tables = [] if sweep is not None and sweep.is_search else tables_of(runs)
    return Report(tuple(runs), (*(sweep.tables if sweep else ()), *tables), tuple(damaged), sweep)


def damaged_line(report: Report) -> str:
    """One line on damaged results.json that were left out; empty if there are none."""
    if not report.damaged:
        return ""
    return f"Left out {len(report.damaged)} damaged {RESULTS}: {'; '.join(_first(report.damaged))}"


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def unique(names: Sequence[str]) -> list[str]:
    """Number the repeats: a, a_2, b."""
    numbered: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        numbered.append(next(one for one in candidates if one not in numbered))
    return numbered


def markdown(
    report: Report, *, figures: Sequence[tuple[str, str]], further: Sequence[Table] = ()
) -> str:
    """The whole report as Markdown.

    Args:
        figures: caption and file name of each, under figures/.
        further: tables that follow those of the report.
    """
    paper = f"The paper: {PAPER}." if any(map(of_paper, report.runs)) else ""
    parts = ["# Report", NOTICE, paper]
    for table in [*report.tables, *further]:
        shown = pipe_table(table) if table.rows else ""
        parts += [f"## {table.title}", shown, bullets(table.notes)]
    if report.sweep is not None and report.sweep.command:
        parts += ["## The best trial again", f"```sh\n{printable(report.sweep.command)}\n```"]
    parts.append(escaped(damaged_line(report)))
    if figures:
        parts.append("## Loss curves")
        parts += [f"![{escaped(caption)}](figures/{name})" for caption, name in figures]
    return "\n\n".join(part for part in parts if part) + "\n"


PAGE = "report.html"


def write_run_report(folder: Path) -> Path:
    """Write report.html of one run into its folder.

    Raises:
        UserError: there is no results.json that can be read, or the page cannot be written.
        RunFailedError: the disk is full or fails.
    """
    from xray_lightning.report.pages import run_page

    try:
        run = read_run(folder)
    except DamagedResultsError as error:
        raise UserError(printable(f"{folder / RESULTS}: {error}")) from error
    page = folder / PAGE
    with _told(folder):
        write_atomically(page, run_page(run))
    return page


def write_report(report: Report, out: Path | None = None) -> Path:
    """Write report.html, report.md and its figures/, each file atomically.

    Args:
        out: the folder; by default the run's own, or `report` in the folder above several.

    Returns:
        The path of report.html.

    Raises:
        UserError: the folder cannot be written to.
        RunFailedError: the disk is full or fails.
    """
    # matplotlib takes most of a second to import, which printing alone should not cost.
    from xray_lightning.report.pages import run_page, runs_page, sweep_page
    from xray_lightning.report.tables import paired_tables

    above = (
        report.sweep.folder
        if report.sweep is not None
        else os.path.commonpath([run.folder.resolve() for run in report.runs])
    )
    one = len(report.runs) == 1 and report.sweep is None
    out = out or (report.runs[0].folder if one else Path(above) / "report")
    search = report.sweep is not None and report.sweep.is_search
    paired = [] if search else paired_tables(report.runs)
    with _told(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        text = markdown(report, figures=_write_figures(report, out / "figures"), further=paired)
        write_atomically(out / "report.md", text)
        if one and not report.damaged:
            html = run_page(report.runs[0])
        elif report.sweep is not None:
            html = sweep_page(report, report.sweep, paired=paired, out=out)
        else:
            html = runs_page(report, paired=paired, out=out)
        write_atomically(out / PAGE, html)
    return out / PAGE


def _write_figures(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Draw the loss curves; returns the caption and file name of each."""
    from xray_lightning.report.plots import has_losses, loss_curve, loss_overview

    drawn = [run for run in report.runs if has_losses(run)]
    labels = [
        printable(f"Row {run.paper_row}: {run.name}" if run.paper_row else run.name)
        for run in drawn
    ]
    names = ["loss"] if len(drawn) == 1 else unique([f"loss_{_slug(label)}" for label in labels])
    figures = []
    if len(drawn) > 1:
        figures.append(("Loss of all runs", "overview.png"))
        write_atomically(folder / "overview.png", loss_overview(drawn, labels=labels))
    for run, label, name in zip(drawn, labels, names, strict=True):
        figures.append((f"Loss by epoch: {label}", f"{name}.png"))
        curve = loss_curve(run, title=f"Loss by epoch: {label}")
        write_atomically(folder / f"{name}.png", curve)
    return figures


def _told(out: Path) -> AbstractContextManager[None]:
    """Turn an OSError in the block, from writing to a folder, into a one-line error."""
    return told_if_unwritable(
        f"cannot write the report to {out}", advice="give another folder with --out"
    )


def _slug(label: str) -> str:
    """A short file name of plain letters, whatever the label holds."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_").lower()[:60] or "run"


def print_report(report: Report, console: Console) -> None:
    """Print the tables and their notes, as wide as the console."""
    for table in report.tables:
        print_table(table, console)
        console.print()
    if report.sweep is not None and report.sweep.command:
        say("The best trial again:", console=console, style="bold")
        say(report.sweep.command, "", console=console)
    if line := damaged_line(report):
        console.print(Text(line, style="red"))
    console.print(Text(NOTICE, style="italic"))
