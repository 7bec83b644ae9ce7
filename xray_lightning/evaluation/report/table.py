"""A table of plain text, and how figures stand in it."""

from dataclasses import dataclass

from xray_lightning.evaluation.record import Run, TestMetrics
from xray_lightning.page.frame import decimal

NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds numbers, which stand to the right."""

    heading: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table of plain text, to be rendered for the terminal and as Markdown.

    Attributes:
        rows: one tuple of cells per row, each cell a tuple of lines.
        notes: sentences that belong under the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...]


def auroc_cell(test: TestMetrics | None) -> tuple[str, ...]:
    if test is None or test.auroc is None:
        return (NONE,)
    if test.auroc_ci95 is None:
        return (decimal(test.auroc), "no interval")
    low, high = test.auroc_ci95
    return (decimal(test.auroc), f"{decimal(low)}-{decimal(high)}")


def precision_cell(run: Run | None) -> tuple[str, ...]:
    if run is None or run.precision_used is None:
        return (NONE,)
    if run.precision_asked in (None, run.precision_used):
        return (run.precision_used,)
    return (run.precision_used, f"asked {run.precision_asked}")


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: "48.2 s", "12.1 min", "2.5 h"."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
