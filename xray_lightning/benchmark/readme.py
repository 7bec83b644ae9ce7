"""benchmarks/README.md and the terminal's table, from the JSON files of measurements.

Any measurement may write such a file, whatever else it holds:

    {"kind": "bench", "machine": {...}, "command": "...", "date": "2026-01-31",
     "table": {"title": "...", "columns": ["..."], "rows": [["..."]], "notes": ["..."]}}

`machine` is what `machine.machine()` gives; `rows` are texts or numbers; `notes` may be empty.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from xray_lightning.atomic import write_atomically
from xray_lightning.benchmark.machine import described
from xray_lightning.errors import UserError

README = "README.md"
LOG_WIDTH = 160  # characters
HEAD = """# Benchmarks

Measured results, each in a JSON file of this folder with every repeat, the machine and the command.
This page is made from them: `xray bench --readme benchmarks`.
"""
KEYS = {"kind", "machine", "command", "date", "table"}


def write_readme(folder: Path) -> Path:
    """Write the page of a folder's JSON files; returns its path.

    Raises:
        UserError: no JSON file, or one that is not of the shape above.
    """
    path = folder / README
    try:
        write_atomically(path, render(folder))
    except OSError as error:
        raise UserError(f"--readme {folder}: cannot be written ({error})") from error
    return path


def render(folder: Path) -> str:
    """The page as Markdown, a section for each file in the order of their names."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"--readme {folder} holds no JSON file; measure with --json first")
    return "\n".join([HEAD, *(_section(path) for path in files)])


def _section(path: Path) -> str:
    content = _read(path)
    table = content["table"]
    lines = [
        f"## {table['title']}",
        "",
        _markdown_row(table["columns"]),
        _markdown_row(["---"] * len(table["columns"])),
        *map(_markdown_row, table["rows"]),
        "",
        *(f"- {note}" for note in table["notes"]),
        f"- Measured {content['date']}: `{content['command']}` ([{path.name}]({path.name})).",
        f"- {described(content['machine'])}",
        "",
    ]
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not complete JSON ({error}); measure again") from error
    missing = KEYS - content.keys() if isinstance(content, Mapping) else KEYS
    if missing:
        raise UserError(f"{path} has no {', '.join(sorted(missing))}: not a measurement")
    return dict(content)


def _markdown_row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """The same table for a terminal, or whole lines for a log."""
    table = content["table"]
    shown = Table(title=table["title"], box=SIMPLE_HEAD)
    for number, column in enumerate(table["columns"]):
        shown.add_column(column, justify="left" if number < 2 else "right")
    for row in table["rows"]:
        shown.add_row(*map(str, row))
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH, file=console.file)
    console.print(shown)
    for note in table["notes"]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
