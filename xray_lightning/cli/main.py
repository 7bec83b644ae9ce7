"""`xray`: everything that is not training."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from xray_lightning.cli import data
from xray_lightning.cli.deploy import export, info, predict
from xray_lightning.cli.evaluate import compare, evaluate, recalibrate, report
from xray_lightning.cli.explain import explain
from xray_lightning.cli.output import FilesOrStdout
from xray_lightning.errors import EXIT_TERMINATED, InterruptedRunError, XrayError, one_line

app = typer.Typer(
    name="xray",
    help="Chest X-ray diagnosis, besides training. Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (predict, export, report, evaluate, recalibrate, compare):
    app.command()(command)
app.command(cls=FilesOrStdout)(explain)
app.command(cls=FilesOrStdout)(info)
app.add_typer(data.app, name="data")


def main() -> None:
    """The console entry."""
    run(app)


def run(app: typer.Typer) -> None:
    """Run an app's command line; print an expected error as one line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not valid UTF-8 must not end a command halfway.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except (XrayError, InterruptedRunError) as error:
        if os.environ.get("XRAY_DEBUG") == "1":
            raise
        sys.stderr.write(f"xray: error: {one_line(error)}\n")
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.stderr.write("xray: error: interrupted by SIGTERM\n")
    sys.exit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
