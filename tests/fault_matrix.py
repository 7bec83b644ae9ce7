"""The fault matrix: what can go wrong, what is expected, and the tests that hold it.

    python tests/fault_matrix.py

runs every test of a fault, the slow ones too, and writes docs/faults.md. A test holds the faults
whose numbers its name begins with: `test_fault_13_...`, `test_fault_17_19_21_...`,
`test_fault_40_to_42_...`.
"""

import ast
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"

# By number: the fault, and what a careful user expects of it.
FAULTS = {
    1: ("a rank, its launcher or train.py is killed", "exit 1, the rank named, no process left"),
    2: ("SIGTERM to one rank", "all stop at the same step, with a checkpoint; 143"),
    3: ("SIGTERM to the job", "a checkpoint, status interrupted, 143"),
    4: ("Ctrl-C, then again", "130 with a checkpoint; the second time at once"),
    5: ("a rank hangs", "exit 1 at the configured timeout"),
    6: ("an exception on one rank", "exit 1, with that message"),
    7: ("a worker process is killed", "exit 1, and memory is named"),
    8: ("the port is in use", "another is taken, or exit 2"),
    9: ("a host name that cannot be resolved", "exit 2"),
    10: ("no mpirun, no MPI library", "exit 2 with what to install; other strategies run"),
    11: ("a world of another size than configured", "exit 2 before data are read"),
    12: ("CUDA asked for where there is none", "exit 2, never a silent run on the CPU"),
    13: ("killed during a save", "the old checkpoint or the new one loads"),
    14: ("the disk is full", "exit 1, what was there is intact"),
    15: ("a limit on file sizes", "exit 1, nothing partial under a final name"),
    16: ("a folder that cannot be written", "exit 2 before the first step"),
    17: ("a truncated checkpoint", "exit 2, never random weights"),
    18: ("a checkpoint of other findings", "exit 2, both are shown"),
    19: ("a checkpoint that holds code", "exit 2, the code has not run"),
    20: ("a configuration that calls code", "it is not called"),
    21: ("objects in a checkpoint", "plain values alone are stored and read"),
    22: ("resumed in the middle of an epoch", "the samples and weights of an uninterrupted run"),
    23: ("resumed with another number of ranks", "the same global order of samples"),
    24: ("resumed with another configuration", "exit 2 with the difference, the run untouched"),
    25: ("killed while results.json is written", "the old one or the new one"),
    26: ("TensorBoard's folder cannot be written", "one warning, in the record too; trains on"),
    27: ("the clock is set back", "durations stay right, no run is overwritten"),
    28: ("two runs in one second", "a folder each"),
    29: ("a truncated or changed image", "exit 2, named; left out only when asked, and counted"),
    30: ("an empty file, or HTML named .png", "as a damaged image"),
    31: ("16-bit PNG", "scaled over its full range"),
    32: ("RGBA, LA, palette, CMYK, 1-bit", "within one gray level of gray"),
    33: ("images of 1x1 or 1x10000 pixels", "finite output or exit 2"),
    34: ("a few bytes that claim to be a huge image", "refused before they are decoded"),
    35: ("a compressed text chunk without end", "refused or left packed"),
    36: ("links that loop or dangle, named pipes", "no image, and nothing waits for them"),
    37: ("hostile file names", "handled everywhere, in reports too"),
    38: ("byte order mark, CRLF", "the same table"),
    39: ("a missing column", "exit 2, expected beside found"),
    40: ("rows that are there twice", "counted if equal, exit 2 if not"),
    41: ("an unknown label; No Finding with another", "exit 2 with the line"),
    42: ("huge tables, NUL bytes, endless lines", "exit 2, bounded memory"),
    43: ("rows without files, files without rows", "counted, and the first named"),
    44: ("a patient in two splits", "exit 2, unless allowed and then marked"),
    45: ("a truncated or changed cache", "named and built again, never served"),
    46: ("a cache of changed images", "built again"),
    47: ("two builders of one cache; a killed one", "one builds; nothing partial is used"),
    48: ("two data sets with equal names", "two caches"),
    49: ("a connection that drops; Range ignored", "gone on with, or started again"),
    50: ("a download with a wrong MD5", "exit 1, not used"),
    51: ("404, 500, a server that stalls", "a bounded number of tries, exit 1"),
    52: ("an archive with paths, links or sizes that lead out", "refused, nothing outside"),
    53: ("a loss that is NaN or infinite", "exit 1 at that step, checkpoints untouched"),
    54: ("fp16 overflows", "steps left out and counted; a long run of them ends it"),
    55: ("predictions that are NaN", "exit 1, never a score"),
    56: ("a finding without positives", "null with the reason, left out of the macro average"),
    57: ("images that the ranks cannot share evenly", "the figures of one process"),
    58: ("DICOM without pixels or codec, cut, or nested", "a line with the reason"),
    59: ("MONOCHROME1, signed, multi-frame DICOM", "equal to its twin; frames refused"),
    60: ("names of patients, HTML or formulas in names and tags", "absent or escaped in outputs"),
    61: ("a standard output that takes no more", "told in train.log; the run goes on"),
}

_NAME = re.compile(r"test_fault_((?:\d\d_)+)(?:to_(\d\d)_)?")


@dataclass(frozen=True)
class FaultTest:
    """A test function of some faults.

    Attributes:
        node: as pytest names it, from the repository's root, without parameters.
        words: its name as a sentence.
        faults: the numbers that it begins with.
    """

    node: str
    words: str
    faults: tuple[int, ...]


def fault_tests() -> list[FaultTest]:
    """Every test function whose name says that it holds a fault."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.FunctionDef) and (match := _NAME.match(part.name)):
                numbers = [int(number) for number in match[1].split("_") if number]
                if match[2]:
                    numbers = [*numbers[:-1], *range(numbers[-1], int(match[2]) + 1)]
                words = part.name[match.end() :].replace("_", " ")
                node = f"{path.relative_to(TESTS.parent).as_posix()}::{part.name}"
                found.append(FaultTest(node, words, tuple(numbers)))
    return found


class Outcomes:
    """A pytest plugin that counts the outcomes of each test function, over its parameters."""

    def __init__(self) -> None:
        self.by_node: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.when == "call" or report.outcome != "passed":
            self.by_node[report.nodeid.partition("[")[0]][report.outcome] += 1


def page(outcomes: Mapping[str, Mapping[str, int]], *, seconds: float) -> str:
    """docs/faults.md: each fault, what is expected, its tests and how they ended."""
    tests = fault_tests()
    lines = [
        "# Faults",
        "",
        "What can go wrong, what to expect of it, and the tests that hold it. Exit codes: 2,",
        "the caller can mend it (configuration, data, environment); 1, the run failed (storage,",
        "numbers, a lost rank); 130 and 143, Ctrl-C and SIGTERM. Each ends in one line, without",
        "a traceback.",
        "",
        "Made by `uv run python tests/fault_matrix.py`, which runs every test below; the last time",
        f"it took {seconds / 60:.0f} minutes. A number in brackets counts the cases of a test. A",
        "test is skipped where its machine lacks what it needs.",
        "",
        "| # | fault | expected | tests | result |",
        "|---|---|---|---|---|",
    ]
    for number, (fault, expected) in FAULTS.items():
        own = [test for test in tests if number in test.faults]
        counted = Counter[str]()
        named = []
        for test in own:
            ended = Counter(outcomes.get(test.node, {}))
            counted += ended
            cases = f" ({ended.total()})" if ended.total() > 1 else ""
            named.append(f"{test.words}{cases}")
        result = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counted.items()))
        joined = "; ".join(named)
        lines.append(f"| {number} | {fault} | {expected} | {joined} | {result or 'not run'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the tests of all faults and write the page; returns pytest's exit code."""
    import pytest

    outcomes = Outcomes()
    nodes = [test.node for test in fault_tests()]
    start = time.monotonic()
    code = pytest.main(["-m", "slow or not slow", *nodes], plugins=[outcomes])
    text = page(outcomes.by_node, seconds=time.monotonic() - start)
    PAGE.write_text(text, encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
