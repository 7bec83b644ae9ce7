"""The report as Markdown: its tables, their notes, and the figures beside it."""

import re
from collections.abc import Iterable, Sequence

from xray_lightning.errors import printable
from xray_lightning.evaluation.published import PAPER
from xray_lightning.evaluation.report.collected import Report, damaged_line
from xray_lightning.evaluation.report.paper_study import of_paper
from xray_lightning.evaluation.report.table import Table
from xray_lightning.page.frame import NOTICE


def markdown(
    report: Report, *, figures: Sequence[tuple[str, str]], further: Sequence[Table] = ()
) -> str:
    """The whole text.

    Args:
        figures: caption and file name of each, under figures/.
        further: tables that follow those of the report.
    """
    paper = f"The paper: {PAPER}." if any(map(of_paper, report.runs)) else ""
    parts = ["# Report", NOTICE, paper]
    for table in [*report.tables, *further]:
        parts += [f"## {table.title}", pipe_table(table), bullets(table.notes)]
    parts.append(escaped(damaged_line(report)))
    if figures:
        parts.append("## Loss curves")
        parts += [f"![{escaped(caption)}](figures/{name})" for caption, name in figures]
    return "\n\n".join(part for part in parts if part) + "\n"


def pipe_table(table: Table) -> str:
    """The columns and rows of a table, without its title and notes."""
    lines = [
        _pipe_row(column.heading.replace("\n", " ") for column in table.columns),
        _pipe_row("---:" if column.number else "---" for column in table.columns),
    ]
    lines += [
        _pipe_row(", ".join(escaped(line) for line in cell if line) for cell in row)
        for row in table.rows
    ]
    return "\n".join(lines)


def bullets(sentences: Iterable[str]) -> str:
    """A list, each sentence as it is."""
    return "\n".join(f"- {escaped(sentence)}" for sentence in sentences)


def _pipe_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """`text` so that Markdown shows it as it is: no link, emphasis, table cell or HTML."""
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", printable(text))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
