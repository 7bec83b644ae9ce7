"""The report's tables on a terminal, as wide as it is."""

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.errors import printable
from xray_lightning.evaluation.report.collected import Report, damaged_line
from xray_lightning.evaluation.report.table import Table
from xray_lightning.page.frame import NOTICE

_WIDEST_NUMBER = len("0.812-0.850")
_WIDEST_WORD = len("patient_random")
_GAP = 2  # blanks between columns
_STATE_STYLES = {"run on ": "yellow", "skipped": "yellow", "failed": "red", "interrupted": "red"}


def print_report(report: Report, console: Console) -> None:
    """Print the tables and their notes, as wide as the console."""
    for table in report.tables:
        console.print(rich_table(table, room=console.width))
        for note in table.notes:
            console.print(Text(printable(note), style="dim"))
        console.print()
    if line := damaged_line(report):
        console.print(Text(line, style="red"))
    console.print(Text(NOTICE, style="italic"))


def rich_table(table: Table, *, room: int) -> RichTable:
    """A table for a terminal of `room` columns."""
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
    for column, width in zip(table.columns, _widths(table, room=room), strict=True):
        justify: JustifyMethod = "right" if column.number else "left"
        rich.add_column(column.heading, justify=justify, overflow="fold", width=width)
    for row in table.rows:
        rich.add_row(*(Text("\n").join(_line(x) for x in cell if x) for cell in row))
    return rich


def _line(text: str) -> Text:
    """A line of a cell as literal text, so that a name cannot carry markup."""
    styles = (style for start, style in _STATE_STYLES.items() if text.startswith(start))
    return Text(printable(text), style=next(styles, ""))


def _widths(table: Table, *, room: int) -> list[int] | list[None]:
    """Column widths that fold text between words and numbers not at all, if `room` allows."""
    least, most = [], []
    for index, column in enumerate(table.columns):
        cells = [printable(line) for row in table.rows for line in row[index]]
        words = [*column.heading.split(), *(word for cell in cells for word in cell.split())]
        whole = min(max(map(cell_len, cells), default=0), _WIDEST_NUMBER) if column.number else 0
        least.append(max(whole, min(max(map(cell_len, words)), _WIDEST_WORD)))
        most.append(max(map(cell_len, [*column.heading.split("\n"), *cells])))
    spare = room - sum(least) - _GAP * (len(least) - 1)
    if spare < 0:
        return [None] * len(least)  # too narrow a terminal: folded as Rich sees fit
    for _ in range(spare):
        short = max(range(len(least)), key=lambda index: most[index] - least[index])
        least[short] += least[short] < most[short]
    return least
