"""Text for people: numbers as text, tables, and lines on a terminal."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.errors import printable

NONE = "-"  # stands for an unknown number

Number = Callable[[float | None], str]


def count(value: int | None) -> str:
    """1045 as "1,045"."""
    return NONE if value is None else f"{value:,}"


def counted(number: int, noun: str) -> str:
    """ "1 image", "1,045 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def decimal(value: float | None) -> str:
    """0.8126 as "0.813"."""
    return NONE if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """0.0126 as "+0.013"."""
    return NONE if value is None else f"{value:+.3f}"


def percent(value: float | None) -> str:
    """0.8612 as "86.12 %"."""
    return NONE if value is None else f"{value:.2%}".replace("%", " %")


def percentage_points(value: float | None) -> str:
    """0.0126 as "+1.26 %"."""
    return NONE if value is None else f"{100 * value:+.2f} %"


def probability(value: float) -> str:
    """Three decimals; two significant digits of it or of its distance from 1 where that is less."""
    least = min(value, 1 - value)
    if least >= 0.001 or value in (0, 1):
        return f"{value:.3f}"
    magnitude = int(f"{least:.1e}".partition("e")[2])
    return f"{value:.2g}" if value < 0.5 else f"{value:.{1 - magnitude}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: "48.2 s", "12.1 min", "2.5 h"."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def interval(ends: Sequence[float] | None, number: Number = decimal, *, joint: str = "-") -> str:
    """The ends of an interval as "0.812-0.850"; a unit stands once, as in "86.27-88.05 %"."""
    if ends is None:
        return NONE
    low, high = map(number, ends)
    return f"{low.removesuffix(' %')}{joint}{high}"


def with_interval(
    value: float | None,
    ends: Sequence[float] | None,
    number: Number = decimal,
    *,
    joint: str = "-",
) -> str:
    """A figure as "0.831 (0.812-0.850)", or alone where it has no interval."""
    if value is None or ends is None:
        return number(value)
    return f"{number(value)} ({interval(ends, number, joint=joint)})"


def readable(name: str) -> str:
    """A finding as people write it: Pleural_Thickening as "Pleural Thickening"."""
    return name.replace("_", " ")


def said_alike(said: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group pairs (name, words) by their words: the distinct names for each, in their order."""
    names: dict[str, dict[str, None]] = {}  # a dict of dicts keeps order and drops repeats
    for name, words in said:
        names.setdefault(words, {})[name] = None
    return {words: list(together) for words, together in names.items()}


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Names with reasons, one sentence a reason: "Hernia, Mass: no image has the finding."."""
    together = said_alike(reasons)
    return [f"{', '.join(names)}: {reason}." for reason, names in together.items()]


def say(*lines: str, console: Console | None = None, style: str = "") -> None:
    """Print each line unwrapped; Rich markup and control characters in it show as text."""
    console = console or Console()
    for line in lines:
        console.print(Text(printable(line), style=style), soft_wrap=True)


Cell = tuple[str, ...]  # its lines


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds numbers, which are right-aligned."""

    heading: str
    number: bool = False


def texts(*headings: str) -> tuple[Column, ...]:
    """Columns of text."""
    return tuple(map(Column, headings))


def numbers(*headings: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(heading, number=True) for heading in headings)


@dataclass(frozen=True)
class Table:
    """A table of plain text, for the terminal, Markdown and pages.

    Attributes:
        rows: one tuple of cells per row, each cell a tuple of lines.
        notes: sentences that belong under the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        title: str,
        columns: Iterable[Column],
        rows: Iterable[Iterable[str | Cell]],
        notes: Iterable[str] = (),
    ) -> "Table":
        """A table from cells that may be plain strings, each a single line."""
        cells = (tuple((cell,) if isinstance(cell, str) else cell for cell in row) for row in rows)
        return cls(title, tuple(columns), tuple(cells), tuple(notes))


_ANY_WIDTH = 10_000
# Colours of lines in cells, by how the line begins.
_STATE_STYLES = {"run on ": "yellow", "skipped": "yellow", "failed": "red", "interrupted": "red"}


def print_table(table: Table, console: Console) -> None:
    """Print a table, fitted to the console's width, and its notes."""
    rich = _rich_table(table)
    whole = console.measure(rich, options=console.options.update(max_width=_ANY_WIDTH)).maximum
    console.print(rich if whole <= console.width else _rich_table(table, narrow=True))
    for note in table.notes:
        console.print(Text(printable(note), style="dim"))


def _rich_table(table: Table, *, narrow: bool = False) -> RichTable:
    """As a Rich table: text wraps, numbers do not; `narrow` wraps the headings of numbers."""
    rich = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        leading=any(len(cell) > 1 for row in table.rows for cell in row),
    )
    for column in table.columns:
        rich.add_column(
            # "AUROC (95 % CI)" on lines of its own: "AUROC" and "(95 % CI)".
            re.sub(r"(?<=\w) (?=[\w(])", "\n", column.heading)
            if narrow and column.number
            else column.heading,
            justify="right" if column.number else "left",
            overflow="fold",
            no_wrap=column.number,
        )
    for row in table.rows:
        rich.add_row(*(Text("\n").join(_styled(line) for line in cell if line) for cell in row))
    return rich


def _styled(line: str) -> Text:
    styles = (style for start, style in _STATE_STYLES.items() if line.startswith(start))
    return Text(printable(line), style=next(styles, ""))
