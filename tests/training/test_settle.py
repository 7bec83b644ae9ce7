"""How a run ends: one line, one exit code, told once."""

import json
from pathlib import Path
from threading import Barrier, Thread

import pytest

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    InterruptedRunError,
    RunFailedError,
    UserError,
    one_line,
)
from xray_lightning.runs.record import RunRecord
from xray_lightning.training.launch import Failure, interrupted
from xray_lightning.training.strategies import World

ALONE = World("none")
SECOND = World("mpi", 1, 2)


def test_a_message_of_many_lines_is_folded_to_one() -> None:
    assert one_line(ValueError("one\n  two\r\n\tthree ")) == "one two three"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "error, world, expected",
    [
        (UserError("a\nb"), ALONE, Failure("a b", 2)),
        (UserError("wrong"), SECOND, Failure("wrong", 2)),
        (RunFailedError("disk full"), ALONE, Failure("disk full", 1)),
        (ValueError("x"), ALONE, Failure("ValueError: x", 1)),
        (KeyboardInterrupt(), ALONE, Failure("interrupted by Ctrl-C", 130)),
        (interrupted(EXIT_TERMINATED), SECOND, Failure("interrupted by SIGTERM", 143)),
    ],
)
def test_an_error_has_one_line_and_one_exit_code(
    error: BaseException, world: World, expected: Failure
) -> None:
    assert Failure.of(error, world) == expected


def test_a_failed_rank_names_itself_and_its_host() -> None:
    reason = Failure.of(MemoryError("lost"), SECOND).reason
    assert reason.startswith("rank 1 on ")
    assert reason.endswith(": MemoryError: lost")


def test_of_many_ranks_that_fail_at_once_only_one_tells(tmp_path: Path) -> None:
    start, told = Barrier(8), []

    def fail(rank: int) -> None:
        failure = Failure(f"rank {rank}", 1)
        start.wait()
        if failure.claim(tmp_path):
            told.append(failure)

    threads = [Thread(target=fail, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    assert Failure.read(tmp_path) == told[0]


def test_a_failure_is_told_even_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert Failure("x", 1).claim(tmp_path / "absent")


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
