"""A data set's health as a person reads it on a terminal of 80 columns."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.data.check.health import Health
from xray_lightning.data.check.remarks import Remark
from xray_lightning.errors import printable

NAMES = 5  # named of each remark; --json has them all


def show_health(health: Health, console: Console) -> None:
    """Print what the set is, its figures, and every problem and note with what to do."""
    source = health.source
    console.print(Text(source.release, style="bold"))
    console.print(_text(f"told by {'; '.join(source.told_by)}"), style="dim")
    console.print()
    console.print(_figures(health))
    console.print()
    if health.splits:
        console.print(_splits(health))
        console.print()
    for title, style, remarks in (
        ("Problems", "bold red", health.problems),
        ("Notes", "bold yellow", health.notes),
    ):
        if remarks:
            console.print(Text(title, style=style))
            for one in remarks:
                _show(one, console)
            console.print()
    console.print(_verdict(health))


def _figures(health: Health) -> Table:
    counts = health.counts
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    listed = f"{counts['rows']:,} rows, {counts['images']:,} images"
    patients = counts["patients"]
    table.add_row("table", f"{listed}, {f'{patients:,}' if patients else 'no known'} patients")
    decoded = counts["decoded"]
    looked = "not looked into" if decoded is None else f"{decoded:,} decoded"
    found = f"{counts['image_files']:,} image files, {counts['found']:,} of them listed"
    table.add_row("files", f"{found}, {looked}")
    for title, values in (("modes", health.modes), ("sizes", health.sizes)):
        if values:
            table.add_row(title, _text(_listed(values)))
    if counts["boxes"]:
        table.add_row("boxes", f"{counts['boxes']:,}")
    return table


def _listed(values: Mapping[str, int]) -> str:
    first = [f"{name} {count:,}" for name, count in list(values.items())[:NAMES]]
    more = len(values) - len(first)
    return ", ".join(first) + (f" and {more:,} more kinds" if more else "")


def _splits(health: Health) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Split", overflow="fold")
    table.add_column("Side", no_wrap=True)
    for title in ("Images", "Patients"):
        table.add_column(title, justify="right", no_wrap=True)
    for split in health.splits:
        name = split.name
        for side, images in split.sides.items():
            table.add_row(_text(name), _text(side), f"{len(images):,}", f"{split.patients[side]:,}")
            name = ""
    return table


def _show(one: Remark, console: Console) -> None:
    mark = Text("x " if one.problem else "- ", style="red" if one.problem else "yellow")
    text = one.text[:1].upper() + one.text[1:]
    _indented(mark + _text(text) + Text(f": {one.count:,}", style="bold"), console, by=2)
    if one.names != (one.text,):
        _indented(_text(_named(one), style="dim"), console, by=6)
    if one.advice:
        _indented(Text(f"-> {one.advice}"), console, by=6)


def _indented(text: Text, console: Console, *, by: int) -> None:
    """Print a text in lines that all begin there, and end where their last word does."""
    for line in text.wrap(console, console.width - by):
        line.rstrip()
        console.print(Text(" " * by) + line)


def _named(one: Remark) -> str:
    first = [_with_detail(name, one.details.get(name, "")) for name in one.names[:NAMES]]
    more = len(one.names) - len(first)
    separator = "; " if any(one.details.values()) else ", "
    return separator.join(first) + (f" and {more:,} more" if more else "")


def _with_detail(name: str, detail: str) -> str:
    name = name if len(name) <= 80 else f"{name[:77]}..."
    return f"{name} ({detail})" if detail else name


def _verdict(health: Health) -> Text:
    if health.problems:
        kinds = _of(len(health.problems), "kind")
        return Text(f"Not sound: {kinds} of problem.", style="bold red")
    notes = f", with {_of(len(health.notes), 'note')}" if health.notes else ""
    return Text(f"Sound{notes}.", style="bold green")


def _of(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _text(text: str, *, style: str = "") -> Text:
    """Names from disks and tables on one line, with what is invisible spelled out."""
    return Text(printable(text), overflow="fold", style=style)
