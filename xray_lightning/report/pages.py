"""Pages of the report: report.html of one run and of several."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.published_results import PAPER
from xray_lightning.html.page import rendered
from xray_lightning.report import (
    claim_checklist,
    clinical_wording,
    plots,
    sections,
    verdict,
    wording,
)
from xray_lightning.report.plots import FEWEST
from xray_lightning.report.sections import (
    MOST_PER_FINDING,
    Panel,
    line_of,
    most_confident,
    with_pictures,
)
from xray_lightning.report.tables import of_paper, paper_tables, published_table
from xray_lightning.report.trials import SweepReport
from xray_lightning.report.wording import label_of, on_published_split
from xray_lightning.report.write import PAGE, Report, damaged_line
from xray_lightning.runs.predictions import PROBABILITY, read_predictions
from xray_lightning.runs.results_json import predictions_name
from xray_lightning.runs.run_folder import Run
from xray_lightning.terminal import Table, counted

PREDICTIONS = predictions_name("test")


# The sections of a run's page in the order of a reader's questions: can it be trusted, for whom, at
# which threshold, and then how it came about. Each is a template, and a link of the navigation.
SECTIONS = {
    "result": "Result",
    "notes": "Notes",
    "metadata": "Metadata",
    "findings": "Findings",
    "curves": "Curves",
    "subgroups": "Subgroups",
    "confusion": "Thresholds",
    "calibration": "Calibration",
    "decisions": "Decision curves",
    "abstention": "Abstention",
    "mistakes": "Mistakes",
    "training": "Training",
    "time": "Time",
    "paper": "The paper",
    "published": "Published figures",
    "claim": "CLAIM",
    "reproduce": "Reproduce",
}


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
        clinical=clinical_wording,
        findings=run.findings,
        findings_plot=sections.findings_panel(test) if test else None,
        curves=_curves(run, predictions, missing),
        most_per_finding=MOST_PER_FINDING,
        fewest=FEWEST,
        calibration=sections.calibration_panels(test) if test else [],
        decisions=sections.decision_panels(test) if test else [],
        subgroups_plot=sections.subgroup_panel(test) if test else None,
        grouped=sections.grouped(test.subgroups) if test else [],
        training=sections.training_panels(run),
        best_epoch=run.best_epoch,
        shares=shares,
        time_plot=sections.time_panel(shares),
        paper=PAPER,
        paper_tables=paper_tables([run]) if of_paper(run) else [],
        published=published_table([run]) if on_published_split(run) else None,
        sections=SECTIONS,
        in_short=verdict.in_short(test) if test else [],
        gains=verdict.gains_table(test) if test else None,
        claim=claim_checklist,
        claim_items=claim_checklist.items(run),
    )


def _settings(run: Run) -> dict[str, Any]:
    """The configuration, with RUN in place of the run folder's path, which may be private."""
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


def _curves(run: Run, predictions: pd.DataFrame | None, missing: str | None) -> dict[str, Any]:
    """Panels drawn from the predictions of single images; without any, why, as `missing`."""
    if run.test is None or predictions is None:
        return {"missing": missing}
    cuts = {
        row.finding: row.threshold
        for row in run.test.finding_rows
        if row.threshold is not None and f"{PROBABILITY}{row.finding}" in predictions
    }
    root = run.settings.get("data.images") or run.root
    alarms, missed = (
        with_pictures(
            most_confident(predictions, cuts, missed=kind), root=root, run_folder=run.folder
        )
        for kind in (False, True)
    )
    roc, precision_recall = sections.curve_panels(run.test, predictions)
    return {
        "missing": None,
        "roc": roc,
        "precision_recall": precision_recall,
        "alarms": alarms,
        "missed": missed,
    }


MOST_LINES = 24  # runs that colour, style and marker can tell apart


def runs_page(report: Report, *, paired: Sequence[Table], out: Path) -> str:
    """The page of several runs as HTML, to be written into the folder `out`."""
    drawn = [run for run in report.runs if run.history][:MOST_LINES]
    return rendered(
        "runs.html.jinja",
        title=counted(len(report.runs), "run"),
        tables=report.tables,
        paired=paired,
        entries=[(run, _link(run, out)) for run in report.runs],
        panels=_panels(drawn),
        drawn=[label_of(run) for run in drawn],
        left_out=sum(bool(run.history) for run in report.runs) - len(drawn),
        damaged=damaged_line(report),
        paper=PAPER if any(map(of_paper, report.runs)) else None,
        published=any(map(on_published_split, report.runs)),
    )


def sweep_page(report: Report, sweep: SweepReport, *, paired: Sequence[Table], out: Path) -> str:
    """The page of a sweep as HTML, to be written into the folder `out`."""
    ranked = sorted(report.runs, key=lambda run: -_best_auroc(run))
    drawn = [run for run in ranked if run.history][:MOST_LINES]
    own = {table.title for table in sweep.tables}
    return rendered(
        "sweep.html.jinja",
        title=f"Sweep {sweep.folder.resolve().name}",
        sweep=sweep,
        summary=sweep.tables[0],
        trials=sweep.tables[1:],
        tables=[table for table in report.tables if table.title not in own],
        paired=paired,
        link=sweep.selected and _link(sweep.selected, out),
        panels=_panels(drawn),
        drawn=[label_of(run) for run in drawn],
        left_out=sum(bool(run.history) for run in report.runs) - len(drawn),
        damaged=damaged_line(report),
    )


def _best_auroc(run: Run) -> float:
    return max((epoch.val_auroc_macro or 0.0 for epoch in run.history), default=0.0)


def _link(run: Run, out: Path) -> str | None:
    """URL of the run's own page relative to `out`; None if it has no page."""
    own = run.folder / PAGE
    link = os.path.relpath(own.resolve(), out.resolve()) if own.is_file() else None
    return link and quote(os.fsencode(link))


def _panels(runs: Sequence[Run]) -> list[Panel]:
    """Training loss, validation loss and validation AUROC of all runs."""
    panels: list[Panel] = []
    for title, key in (
        ("Training loss", "train_loss"),
        ("Validation loss", "val_loss"),
        ("Validation macro AUROC", "val_auroc_macro"),
    ):
        lines = [line_of(run, key, number=number) for number, run in enumerate(runs)]
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
