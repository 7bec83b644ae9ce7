"""Markdown: escaped text, lists, tables, and documents from templates."""

import re
from collections.abc import Iterable
from typing import Any

import jinja2
from markupsafe import Markup

from xray_lightning.errors import printable
from xray_lightning.html import page
from xray_lightning.terminal import Table, counted


def rendered(template: str, **content: Any) -> str:
    """A document as Markdown, with one blank line between its parts.

    Args:
        template: its name in `page.TEMPLATES`.
        content: what the template shows; all text is escaped, markupsafe.Markup is not.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(page.TEMPLATES),
        autoescape=False,  # that is for HTML; `finalize` escapes for Markdown
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        table=lambda table: Markup(pipe_table(table)),
        counted=counted,
        bullets=lambda sentences: Markup(bullets(sentences)),
        terms=lambda pairs: Markup(
            "\n".join(f"- **{escaped(term)}:** {escaped(value)}" for term, value in pairs)
        ),
    )
    text = environment.get_template(template).render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


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


def _pipe_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def bullets(sentences: Iterable[str]) -> str:
    """A bulleted list of the sentences, escaped."""
    return "\n".join(f"- {escaped(sentence)}" for sentence in sentences)


def escaped(text: str) -> str:
    """`text` escaped so that Markdown shows it literally: no link, emphasis, cell or HTML."""
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", printable(text))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
