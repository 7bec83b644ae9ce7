"""The runs that a report is of, read from their folders, and the tables that they give."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.table import Table
from xray_lightning.evaluation.report.tables import tables_of
from xray_lightning.evaluation.runs import (
    DamagedResultsError,
    find_run_folders,
    newest_run,
    read_run,
)
from xray_lightning.training.results import FILE_NAME as RESULTS

_NAMED = 5  # as many damaged files are named; the rest are counted


@dataclass(frozen=True)
class Report:
    """What is shown of a set of runs.

    Attributes:
        damaged: for each results.json that cannot be used, one line that names it and says why.
    """

    runs: tuple[Run, ...]
    tables: tuple[Table, ...]
    damaged: tuple[str, ...]


def build_report(paths: Sequence[Path]) -> Report:
    """Read every run at or below `paths`, or the newest one under runs/ when there are no paths.

    Raises:
        UserError: no run is there, or none whose results.json can be read.
    """
    runs, damaged = [], []
    for folder in find_run_folders(paths or [newest_run(Path("runs"))]):
        try:
            runs.append(read_run(folder))
        except DamagedResultsError as error:
            damaged.append(printable(f"{folder / RESULTS}: {error}"))
    if not runs:
        raise UserError(f"no results left to report: {'; '.join(_first(damaged))}")
    runs = _told_apart(runs)
    return Report(tuple(runs), tuple(tables_of(runs)), tuple(damaged))


def damaged_line(report: Report) -> str:
    """What was left out, in one line; nothing where nothing was."""
    if not report.damaged:
        return ""
    return f"Left out {len(report.damaged)} damaged {RESULTS}: {'; '.join(_first(report.damaged))}"


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"and {more} more"] if more > 0 else [])]


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs with names of their own: that of its folder where several share a name."""
    shared = Counter(run.name for run in runs)
    names = [run.name if shared[run.name] == 1 else run.folder.resolve().name for run in runs]
    return [replace(run, name=name) for run, name in zip(runs, unique(names), strict=True)]


def unique(names: Sequence[str]) -> list[str]:
    """Number the repeats: a, a_2, b."""
    taken: set[str] = set()
    numbered = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        numbered.append(candidate)
    return numbered
