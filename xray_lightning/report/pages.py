"""Pages of the report: report.html of one run and of several."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.published import PAPER
from xray_lightning.html import page
from xray_lightning.report import plots, sections, wording
from xray_lightning.report.plots import FEWEST
from xray_lightning.report.sections import (
    MOST_PER_FINDING,
    Mistake,
    Panel,
    line_of,
    most_confident,
    with_pictures,
)
from xray_lightning.report.tables import of_paper, paper_tables, published_table
from xray_lightning.report.wording import label_of, on_published_split
from xray_lightning.report.write import Report, damaged_line
from xray_lightning.runs.folder import Run
from xray_lightning.runs.predictions import PROBABILITY, read_predictions
from xray_lightning.runs.record import predictions_name
from xray_lightning.runs.schema import Epoch, Interval, TestMetrics
from xray_lightning.terminal import Table, counted, decimal, duration, interval, percent


def rendered(template: str, **content: Any) -> str:
    """A page from its template."""
    return page.rendered(
        template,
        filters={
            "duration": duration,
            "interval": _interval,
            "times": _times,
            "setting": _setting,
        },
        **content,
    )


def _interval(value: Interval | None, form: str = "decimal") -> str:
    """An interval as "0.812 to 0.850", as percentages or with signs; nothing for none."""
    if value is None:
        return ""
    number = {"decimal": decimal, "percent": percent, "signed": page.printed_signed}[form]
    return interval(value, number, joint=" to ")


def _setting(value: Any) -> str:
    """A value of the configuration as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _times(value: float) -> str:
    """1.234 as "1.2", 12345.6 as "12,346"."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


PREDICTIONS = predictions_name("test")


@dataclass(frozen=True)
class Curves:
    """What is drawn from the single predictions; without any, `missing` says why."""

    missing: str | None
    roc: list[sections.Panel]
    precision_recall: list[sections.Panel]
    alarms: list[Mistake]
    missed: list[Mistake]


def run_page(run: Run) -> str:
    """The page of one run, with whatever its folder holds, as HTML."""
    test = run.test
    predictions, missing = _predictions(run)
    shares = sections.time_shares(run.timing)
    return rendered(
        "run.html.jinja",
        title=run.name,
        run=run,
        settings=_settings(run),
        test=test,
        wording=wording,
        findings=run.findings,
        findings_plot=sections.findings_panel(test) if test else None,
        curves=_curves(run, predictions, missing),
        most_per_finding=MOST_PER_FINDING,
        fewest=FEWEST,
        calibration=sections.calibration_panels(test) if test else [],
        subgroups_plot=sections.subgroup_panel(test) if test else None,
        grouped=sections.grouped(test.subgroups or ()) if test else [],
        training=sections.training_panels(run),
        best_epoch=run.best_epoch,
        shares=shares,
        time_plot=sections.time_panel(shares),
        paper=PAPER,
        paper_tables=paper_tables([run]) if of_paper(run) else [],
        published=published_table([run]) if on_published_split(run) else None,
    )


def _settings(run: Run) -> dict[str, Any]:
    """The configuration, with RUN for the run's folder: where that lay is nobody's business."""
    folder = str(run.settings.get("logger.tensorboard.save_dir") or run.folder.absolute())
    return {
        key: value.replace(folder, "RUN") if isinstance(value, str) else value
        for key, value in run.settings.items()
    }


def _predictions(run: Run) -> tuple[pd.DataFrame | None, str | None]:
    """The test predictions of the run's folder, or why they cannot be used."""
    if run.test is None:
        return None, wording.no_test(run)
    path = run.folder / PREDICTIONS
    if not path.is_file():
        return None, f"{PREDICTIONS} is not in the run's folder."
    try:
        predictions = read_predictions(path)
    except UserError as error:
        return None, f"{PREDICTIONS} cannot be used: {error}"
    if len(predictions) != run.test.images:
        return None, (
            f"{PREDICTIONS} is of {counted(len(predictions), 'image')}, results.json of "
            f"{run.test.images:,}: they are not of the same test."
        )
    return predictions, None


def _curves(run: Run, predictions: pd.DataFrame | None, missing: str | None) -> Curves:
    if run.test is None or predictions is None:
        return Curves(missing, [], [], [], [])
    roc, precision_recall = sections.curve_panels(run.test, predictions)
    return Curves(
        None,
        roc,
        precision_recall,
        alarms=_mistakes(run, run.test, predictions, missed=False),
        missed=_mistakes(run, run.test, predictions, missed=True),
    )


def _mistakes(
    run: Run, test: TestMetrics, predictions: pd.DataFrame, *, missed: bool
) -> list[Mistake]:
    cuts = {
        row.finding: row.threshold
        for row in test.finding_rows
        if row.threshold is not None and f"{PROBABILITY}{row.finding}" in predictions
    }
    mistakes = most_confident(predictions, cuts, missed=missed)
    root = run.settings.get("data.images") or run.root
    return with_pictures(mistakes, root=root, run_folder=run.folder)


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
    own = run.folder / PAGE
    if not own.is_file():
        return Entry(run, None)
    path = os.path.relpath(own.resolve(), out.resolve())
    return Entry(run, quote(os.fsencode(path)))


def _panels(runs: Sequence[Run]) -> list[Panel]:
    """Training loss, validation loss and validation AUROC of all runs."""
    panels: list[Panel] = []
    values: dict[str, Callable[[Epoch], float | None]] = {
        "Training loss": lambda epoch: epoch.train_loss,
        "Validation loss": lambda epoch: epoch.val_loss,
        "Validation macro AUROC": lambda epoch: epoch.val_auroc_macro,
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
