"""report.html of one run: one file that needs nothing else."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.prediction_file import read_predictions
from xray_lightning.evaluation.published import PAPER
from xray_lightning.evaluation.record import Run, TestMetrics
from xray_lightning.evaluation.report.page import panels, words
from xray_lightning.evaluation.report.page.mistakes import (
    MOST_PER_FINDING,
    Mistake,
    most_confident,
    with_pictures,
)
from xray_lightning.evaluation.report.page.plots import FEWEST
from xray_lightning.evaluation.report.page.rendering import rendered
from xray_lightning.evaluation.report.paper_study import of_paper, paper_tables
from xray_lightning.evaluation.report.tables import on_published_split, published_table
from xray_lightning.evaluation.scored_images import PROBABILITY
from xray_lightning.training.results import predictions_name

PREDICTIONS = predictions_name("test")


@dataclass(frozen=True)
class Curves:
    """What is drawn from the single predictions; without any, `missing` says why."""

    missing: str | None
    roc: list[panels.Panel]
    precision_recall: list[panels.Panel]
    alarms: list[Mistake]
    missed: list[Mistake]


def run_page(run: Run) -> str:
    """The page of one run, with whatever its folder holds, as HTML."""
    test = run.test
    predictions, missing = _predictions(run)
    shares = panels.time_shares(run.timing)
    return rendered(
        "run.html.jinja",
        title=run.name,
        run=run,
        settings=_settings(run),
        test=test,
        words=words,
        findings=run.findings,
        findings_plot=panels.findings_panel(test) if test else None,
        curves=_curves(run, predictions, missing),
        most_per_finding=MOST_PER_FINDING,
        fewest=FEWEST,
        calibration=panels.calibration_panels(test) if test else [],
        subgroups_plot=panels.subgroup_panel(test) if test else None,
        grouped=panels.grouped(test.subgroups or ()) if test else [],
        training=panels.training_panels(run),
        best_epoch=run.best_epoch,
        shares=shares,
        time_plot=panels.time_panel(shares),
        paper=PAPER,
        paper_tables=paper_tables([run]) if of_paper(run) else [],
        published=published_table([run]) if on_published_split(run) else None,
        plain=panels.plain,
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
        return None, words.no_test(run)
    path = run.folder / PREDICTIONS
    if not path.is_file():
        return None, f"{PREDICTIONS} is not in the run's folder."
    try:
        predictions = read_predictions(path)
    except UserError as error:
        return None, f"{PREDICTIONS} cannot be used: {error}"
    if len(predictions) != run.test.images:
        return None, (
            f"{PREDICTIONS} is of {words.counted(len(predictions), 'image')}, results.json of "
            f"{run.test.images:,}: they are not of the same test."
        )
    return predictions, None


def _curves(run: Run, predictions: pd.DataFrame | None, missing: str | None) -> Curves:
    if run.test is None or predictions is None:
        return Curves(missing, [], [], [], [])
    roc, precision_recall = panels.curve_panels(run.test, predictions)
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
        for row in test.per_finding
        if row.threshold is not None and f"{PROBABILITY}{row.finding}" in predictions
    }
    mistakes = most_confident(predictions, cuts, missed=missed)
    root = run.settings.get("data.images") or run.root
    return with_pictures(mistakes, root=root, run_folder=run.folder)
