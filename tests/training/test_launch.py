"""How a run ends: one line, one exit code, told once."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    InterruptedRunError,
    RunFailedError,
    UserError,
)
from xray_lightning.runs.results_json import RunRecord
from xray_lightning.training.launch import Failure, interrupted
from xray_lightning.training.strategies import World

ALONE = World("none")
HOST = socket.gethostname()
SECOND = World("mpi", 1, 2)


@pytest.mark.parametrize(
    "error, world, expected",
    [
        (UserError("one\n  two\r\n\tthree "), ALONE, Failure("one two three", 2)),
        (RunFailedError(), ALONE, Failure("RunFailedError", 1)),
        (UserError("wrong"), SECOND, Failure("wrong", 2)),
        (RunFailedError("disk full"), ALONE, Failure("disk full", 1)),
        (ValueError("x"), ALONE, Failure("ValueError: x", 1)),
        (MemoryError("lost"), SECOND, Failure(f"rank 1 on {HOST}: MemoryError: lost", 1)),
        (KeyboardInterrupt(), ALONE, Failure("interrupted by Ctrl-C", 130)),
        (interrupted(EXIT_TERMINATED), SECOND, Failure("interrupted by SIGTERM", 143)),
    ],
)
def test_an_error_has_one_line_and_one_exit_code(
    error: BaseException, world: World, expected: Failure
) -> None:
    assert Failure.of(error, world) == expected


def test_of_many_ranks_that_fail_at_once_only_one_tells(tmp_path: Path) -> None:
    start, told = Barrier(8), []

    def fail(rank: int) -> None:
        failure = Failure(f"rank {rank}", 1)
        start.wait()
        if failure.claim(tmp_path):
            told.append(failure)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(8)))
    assert len(told) == 1
    assert Failure.read(tmp_path) == told[0]


def test_a_failure_is_told_even_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert Failure("x", 1).claim(tmp_path / "absent")


@pytest.mark.parametrize("links", [True, False])
def test_a_failure_gets_its_name_once_it_is_whole(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.link, []

    def link(own: str, path: Path) -> None:
        seen.append((json.loads(Path(own).read_text()), path.exists()))
        if not links:
            raise PermissionError
        real(own, path)

    monkeypatch.setattr(os, "link", link)
    assert Failure("why", 1).claim(tmp_path)
    assert not Failure("late", 1).claim(tmp_path)
    assert seen[0] == ({"reason": "why", "exit_code": 1}, False)
    assert Failure.read(tmp_path) == Failure("why", 1)
    assert os.listdir(tmp_path) == [Failure.FILE_NAME]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"reason": "x"}', '{"other": 1}'])
def test_a_failure_half_written_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / Failure.FILE_NAME).write_text(content)
    assert Failure.read(tmp_path) is None


def test_the_launcher_raises_what_the_rank_met(tmp_path: Path) -> None:
    for error in (UserError("a"), RunFailedError("b"), interrupted(EXIT_INTERRUPTED)):
        again = Failure.of(error, ALONE).error()
        assert type(again) is type(error)
        assert (str(again), again.exit_code) == (str(error), error.exit_code)


@pytest.mark.parametrize(
    "error, status",
    [(UserError("no"), "failed"), (InterruptedRunError("stop", exit_code=143), "interrupted")],
)
def test_a_failure_ends_a_running_record_and_no_other(
    error: Exception, status: str, tmp_path: Path
) -> None:
    record = RunRecord.start(tmp_path, name="n", command="c", seed=0, config={})
    record.write()
    Failure.of(error, ALONE).record(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["status"], content["reason"]) == (status, str(error))
    Failure("later", 1).record(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == content
