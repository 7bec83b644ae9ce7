"""`xray`: everything that is not training."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.errors import XrayError, one_line
from xray_lightning.progress import display

# Each command imports what it needs itself: `xray --help` should not wait for torch.

app = typer.Typer(
    name="xray",
    help="Chest X-ray diagnosis, besides training. Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Prepare the images that training reads.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Run folders, or folders above them (a sweep)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; by default the run's folder, or report/ above several."),
    ] = None,
) -> None:
    """Show what runs have reached, beside the paper's tables, and draw their loss curves.

    Without RUN, the newest run or sweep under runs/ is shown.

    Example: [bold]xray report runs/2026-01-31_12-00-00_study --out report[/bold]
    """
    from xray_lightning.evaluation.report import build_report, print_report, write_report

    console = Console()
    built = build_report(runs or [])
    print_report(built, console)
    page = write_report(built, out)
    console.print(f"Written: {page}", markup=False, highlight=False, soft_wrap=True)


@data.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    images: Annotated[int, typer.Option(help="How many images to draw.")] = 2000,
    size: Annotated[int, typer.Option(help="Their width and height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed draws other patients.")] = 0,
) -> None:
    """Draw chest X-ray phantoms in the layout of NIH ChestX-ray14: images, table, lists, boxes.

    Example: [bold]xray data phantom data/phantom --images 2000 --size 256[/bold]
    """
    from xray_lightning.data.phantom import PhantomSpec, ensure_phantoms

    spec = PhantomSpec(images=images, size=size, seed=seed)
    with display("drawing phantoms", images) as advance:
        drawn = ensure_phantoms(folder, spec, progress=advance)
    state = "Drawn" if drawn else "Already there"
    text = f"{state}: {images} phantoms of {size} x {size} pixels in {folder}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The console entry: errors that a user can cause are one line, with their exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not valid UTF-8 must not end a command halfway.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        app()
    except XrayError as error:
        if os.environ.get("XRAY_DEBUG") == "1":
            raise
        sys.stderr.write(f"xray: error: {one_line(error)}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
