"""Paths without the folders that say who the user is and how a machine is laid out."""

import re
import shlex

# An absolute path within a word of a command line, up to what ends it in an override.
_ABSOLUTE = re.compile(r"(?:(?<=[=,\[{('\":])|^)(?:~[^/\\]*|[A-Za-z]:)?[/\\][^,\]})'\"]*")


def without_folders(command: str) -> str:
    """A command line whose absolute paths keep their last part alone: `data.root=.../nih`."""
    try:
        return shlex.join(map(last_parts, shlex.split(command)))
    except ValueError:  # an open quotation mark
        return "not shown: it cannot be split"


def last_parts(word: str) -> str:
    """A word of a command line with the last part of each absolute path in it."""
    return _ABSOLUTE.sub(_last_part, word)


def _last_part(path: re.Match[str]) -> str:
    return ".../" + re.split(r"[/\\]", path[0].rstrip("/\\"))[-1]
