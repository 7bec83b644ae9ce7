"""Output of the commands: JSON and text, to a file or to stdout."""

import shlex
import sys
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from xray_lightning.files import check_file, told_if_unwritable, write_atomically
from xray_lightning.terminal import say

STDOUT = "-"  # as the name of a file


class FilesOrStdout(TyperCommand):
    """A command whose options --json and --card mean stdout if given without a file."""

    BARE = ("--json", "--card")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = [
            place
            for place, word in enumerate(args)
            if word in self.BARE and (place + 1 == len(args) or args[place + 1].startswith("--"))
        ]
        for place in reversed(bare):
            args = [*args[: place + 1], STDOUT, *args[place + 1 :]]
        return super().parse_args(ctx, args)


def command_line(*program: str) -> str:
    """This process's command line, quoted for a shell; the program is `xray` by default."""
    return shlex.join([*(program or ["xray"]), *sys.argv[1:]])


def check_json(path: Path | None, *, option: str = "--json") -> None:
    """Refuse, before the work, a FILE of this option that could not be written; stdout is fine.

    Raises:
        UserError: it is a folder, or its folder is missing or read-only.
    """
    if path is not None and str(path) != STDOUT:
        check_file(path, key=option)


def print_json(content: dict[str, object]) -> None:
    """Print a command's results to stdout as JSON."""
    from json import dump

    dump(content, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def write_json(path: Path | None, content: dict[str, object]) -> None:
    """Write a command's results to a file as JSON; nothing if `path` is None."""
    if path is None:
        return
    from json import dumps

    from xray_lightning.runs.results_json import finite

    write_text(path, dumps(finite(content), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str, *, option: str = "--json") -> None:
    """Write a file atomically, and print its path."""
    with told_if_unwritable(f"{option} {path} cannot be written", advice="give another file"):
        write_atomically(path, text)
    say(f"Written: {path}")
