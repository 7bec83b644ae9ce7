"""What several commands do with what they have found."""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from xray_lightning.atomic import check_writable, write_atomically
from xray_lightning.errors import UserError

STDOUT = "-"  # in the place of a file


def command_line() -> str:
    """This command as a shell takes it."""
    return shlex.join(["xray", *sys.argv[1:]])


def check_json(path: Path | None) -> None:
    """Refuse, before the work, a --json FILE that could not be written.

    Raises:
        UserError: it is a folder, or its folder is missing or read-only.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; give a file")
    if not path.parent.exists():
        raise UserError(f"--json {path}: there is no folder {path.parent}")
    check_writable(path.parent, key="--json")


def print_json(content: dict[str, object]) -> None:
    """Write what a command has found to stdout, for a program to read."""
    from json import dump

    dump(content, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def write_json(path: Path | None, content: dict[str, object], console: Console) -> None:
    """Write what a command has found where it was told to, if it was."""
    if path is None:
        return
    from json import dumps

    from xray_lightning.training.results import finite

    try:
        write_atomically(path, dumps(finite(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from error
    console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
