"""`xray report`: what runs have reached, beside the paper, as pages and Markdown."""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from xray_lightning.atomic import told_if_unwritable, write_atomically
from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.collected import Report, unique
from xray_lightning.evaluation.report.markdown import markdown
from xray_lightning.evaluation.runs import DamagedResultsError, read_run
from xray_lightning.training.results import FILE_NAME as RESULTS

PAGE = "report.html"


def write_run_report(folder: Path) -> Path:
    """Write report.html of one run into its folder.

    Raises:
        UserError: there is no results.json that can be read, or the page cannot be written.
        RunFailedError: the disk is full or fails.
    """
    from xray_lightning.evaluation.report.page.run_page import run_page

    try:
        run = read_run(folder)
    except DamagedResultsError as error:
        raise UserError(printable(f"{folder / RESULTS}: {error}")) from error
    page = folder / PAGE
    with _told(folder):
        write_atomically(page, run_page(run))
    return page


def write_report(report: Report, out: Path | None = None) -> Path:
    """Write report.html, report.md and its figures/, each beside its place and renamed.

    Args:
        out: the folder; by default the run's own, or `report` above several runs.

    Returns:
        The path of report.html.

    Raises:
        UserError: the folder cannot be written to.
        RunFailedError: the disk is full or fails.
    """
    # matplotlib takes most of a second to import, which printing alone should not cost.
    from xray_lightning.evaluation.report.page.run_page import run_page
    from xray_lightning.evaluation.report.page.runs_page import runs_page
    from xray_lightning.evaluation.report.paired import paired_tables

    out = out or _default_folder(report.runs)
    paired = paired_tables(report.runs)
    with _told(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        text = markdown(report, figures=_write_figures(report, out / "figures"), further=paired)
        write_atomically(out / "report.md", text)
        one = len(report.runs) == 1 and not report.damaged
        html = run_page(report.runs[0]) if one else runs_page(report, paired=paired, out=out)
        write_atomically(out / PAGE, html)
    return out / PAGE


def _write_figures(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Draw the loss curves; returns the caption and file name of each."""
    from xray_lightning.evaluation.report.figures import has_losses, loss_curve, loss_overview

    drawn = [run for run in report.runs if has_losses(run)]
    labels = [_figure_label(run) for run in drawn]
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
    """Tell in one line that a folder cannot be written to."""
    return told_if_unwritable(
        f"cannot write the report to {out}", advice="give another folder with --out"
    )


def _default_folder(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.resolve() for run in runs])) / "report"


def _figure_label(run: Run) -> str:
    return printable(f"Row {run.paper_row}: {run.name}" if run.paper_row else run.name)


def _slug(label: str) -> str:
    """A short file name of plain letters, whatever the label holds."""
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_").lower()[:60] or "run"
