"""report.html of several runs: their tables, their curves over each other, links to their pages."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from xray_lightning.evaluation.published import PAPER
from xray_lightning.evaluation.record import Epoch, Run
from xray_lightning.evaluation.report.collected import Report, damaged_line
from xray_lightning.evaluation.report.notes import label_of
from xray_lightning.evaluation.report.page import plots
from xray_lightning.evaluation.report.page.panels import Panel, line_of
from xray_lightning.evaluation.report.page.rendering import rendered
from xray_lightning.evaluation.report.page.words import counted
from xray_lightning.evaluation.report.paper_study import of_paper
from xray_lightning.evaluation.report.table import Table
from xray_lightning.evaluation.report.tables import on_published_split

PAGE = "report.html"
MOST_LINES = 24  # as many are told apart by colour, style and marker


@dataclass(frozen=True)
class Entry:
    """One run in the list of the page; `link` leads to its own page, if there is one."""

    run: Run
    link: str | None


def runs_page(report: Report, *, paired: Sequence[Table], out: Path) -> str:
    """The page of several runs as HTML, to be written into the folder `out`."""
    drawn = [run for run in report.runs if run.history][:MOST_LINES]
    return rendered(
        "runs.html.jinja",
        title=counted(len(report.runs), "run"),
        tables=report.tables,
        paired=paired,
        entries=[_entry(run, out) for run in report.runs],
        panels=_panels(drawn),
        drawn=[label_of(run) for run in drawn],
        left_out=sum(bool(run.history) for run in report.runs) - len(drawn),
        damaged=damaged_line(report),
        paper=PAPER if any(map(of_paper, report.runs)) else None,
        published=any(map(on_published_split, report.runs)),
    )


def _entry(run: Run, out: Path) -> Entry:
    page = run.folder / PAGE
    if not page.is_file():
        return Entry(run, None)
    path = os.path.relpath(page.resolve(), out.resolve())
    return Entry(run, quote(os.fsencode(path)))


def _panels(runs: Sequence[Run]) -> list[Panel]:
    """Training loss, validation loss and validation AUROC of all runs."""
    panels: list[Panel] = []
    values: dict[str, Callable[[Epoch], float | None]] = {
        "Training loss": lambda epoch: epoch.train_loss,
        "Validation loss": lambda epoch: epoch.val_loss,
        "Validation macro AUROC": lambda epoch: epoch.val_auroc,
    }
    for title, value in values.items():
        lines = [line_of(run, value, number=number) for number, run in enumerate(runs)]
        if not any(line.values for line in lines):
            continue
        ends = [
            f"{label_of(run)} {line.values[-1]:.4g}"
            for run, line in zip(runs, lines, strict=True)
            if line.values
        ]
        text = f"{title} by epoch; at the end: {', '.join(ends)}"
        svg = plots.epoch_plot(lines, best=None, name=f"overlay-{len(panels)}", text=text)
        panels.append(Panel(title, "", svg))
    return panels
