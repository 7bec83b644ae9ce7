"""What is known of a model, as a person reads it on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.deploy.about.facts import (
    Facts,
    model_facts,
    name_of,
    training_facts,
    version_facts,
)
from xray_lightning.deploy.about.known import Known
from xray_lightning.deploy.about.tables import findings_table, headline_table
from xray_lightning.deploy.about.use import INTENDED, OUT_OF_SCOPE, limits
from xray_lightning.errors import printable
from xray_lightning.evaluation.record import TestMetrics
from xray_lightning.evaluation.report.page import words
from xray_lightning.evaluation.report.table import Table
from xray_lightning.evaluation.report.terminal import rich_table
from xray_lightning.page.frame import NOTICE, decimal

_STYLES = {"finished": "green", "running": "yellow", "skipped": "yellow"}


def show(known: Known, console: Console) -> None:
    """Print it all, as wide as the console."""
    title = Text(printable(name_of(known)), style="bold")
    if known.run is not None:
        title.append(f"  {known.run.status}", style=_STYLES.get(known.run.status, "red"))
    console.print(title)
    console.print(Text(NOTICE, style="italic"))
    _show_facts("Model", model_facts(known), console)
    _show_facts("Training", training_facts(known), console)
    if known.test is not None:
        _show_test(known.test, console)
    else:
        _show_sentences("Test", [known.untested or ""], console)
    _show_sentences("Intended use", [INTENDED], console)
    _show_sentences("Out of scope", OUT_OF_SCOPE, console)
    _show_sentences("Limits", limits(known), console)
    _show_facts("Versions", version_facts(known), console)
    _show_sentences("How this is known", [known.link], console)


def _show_test(test: TestMetrics, console: Console) -> None:
    for table in (headline_table(test), findings_table(test, wide=False)):
        console.print()
        _show_table(table, console)
    console.print(Text(words.operating_point(test), style="dim"))
    if (calibrated := words.calibrated_label(test)) is not None and test.calibrated is not None:
        text = f"Brier score once {calibrated}: {decimal(test.calibrated.brier_macro)}."
        console.print(Text(text, style="dim"))


def _show_table(table: Table, console: Console) -> None:
    console.print(rich_table(table, room=console.width))
    for note in table.notes:
        console.print(Text(printable(note), style="dim"))


def _show_facts(heading: str, facts: Facts, console: Console) -> None:
    if not facts:
        return
    _show_heading(heading, console)
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=13)
    grid.add_column(overflow="fold")
    for term, value in facts:
        grid.add_row(Text(term), Text(printable(value)))
    console.print(grid)


def _show_sentences(heading: str, sentences: Iterable[str], console: Console) -> None:
    _show_heading(heading, console)
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for sentence in sentences:
        grid.add_row(Text("-"), Text(printable(sentence)))
    console.print(grid)


def _show_heading(heading: str, console: Console) -> None:
    console.print()
    console.print(Text(heading, style="bold"))
