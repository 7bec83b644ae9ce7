"""A share of the kills that `python -m kills` counts by the thousand."""

import os
import sys

import pytest
from conftest import REPOSITORY, Ended
from kills.operations import OPERATIONS

PATHS = [str(REPOSITORY), f"{REPOSITORY}/tests"]


@pytest.mark.slow
@pytest.mark.parametrize("operation", sorted(OPERATIONS.keys() - {"report", "sweep"}))  # slow
def test_whatever_is_killed_leaves_whole_files_and_nothing_else_once_it_is_done_again(
    operation: str,
) -> None:
    command = [sys.executable, "-m", "kills", "--only", operation, "--kills", "12"]
    ended = Ended.of(command, REPOSITORY, timeout=900, PYTHONPATH=os.pathsep.join(PATHS))
    assert ended.exit_code == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "12 kills"
