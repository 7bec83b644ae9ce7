"""Runs against the first of their split: the differences of their test scores, paired by image."""

from collections.abc import Callable, Sequence

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.comparison import Comparison, Difference, compare
from xray_lightning.evaluation.prediction_file import read_predictions
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.notes import grouped
from xray_lightning.evaluation.report.table import NONE, Column, Table
from xray_lightning.training.results import predictions_name

PREDICTIONS = predictions_name("test")
Row = tuple[tuple[str, ...], ...]

_NOTE = (
    "Differences of macro figures on the same test images, from the same resamples of patients. An "
    "interval that holds 0 shows no difference; it does not show that there is none."
)
_COLUMNS = (
    Column("Run"),
    Column("Against"),
    Column("AUROC\n(95 % CI)", number=True),
    Column("AP\n(95 % CI)", number=True),
    Column("Label accuracy\n(95 % CI)", number=True),
    Column("AUROC differs"),
)


def paired_tables(runs: Sequence[Run]) -> list[Table]:
    """Each run minus the first one on its split, as a table; none where there is no such pair.

    Runs that cannot be compared are named in the notes, with the reason.
    """
    splits: dict[str, list[Run]] = {}
    for run in runs:
        if run.test and run.split_sha256:
            splits.setdefault(run.split_sha256, []).append(run)
    rows: list[Row] = []
    left_out: list[tuple[Run, str]] = []
    for group in splits.values():
        if len(group) == 1:
            left_out.append((group[0], ": on a split of its own, and so not comparable."))
            continue
        found, not_compared = _against_first(group)
        rows += found
        left_out += not_compared
    if not rows:
        return []
    notes = (_NOTE, *grouped(left_out))
    return [Table("Paired differences", _COLUMNS, tuple(rows), notes)]


def _against_first(runs: Sequence[Run]) -> tuple[list[Row], list[tuple[Run, str]]]:
    """The rows of runs on one split against the first that has predictions, and who has none."""
    rows: list[Row] = []
    left_out = []
    first: tuple[Run, pd.DataFrame] | None = None
    for run in runs:
        path = run.folder / PREDICTIONS
        if not path.is_file():
            left_out.append((run, f": not compared, for want of {PREDICTIONS}."))
            continue
        try:
            predictions = read_predictions(path)
            if first is not None:
                rows.append(_row(run, first[0], compare(first[1], predictions)))
        except UserError as error:
            left_out.append((run, f": not compared: {error}."))
            continue
        first = first or (run, predictions)
    return rows, left_out


def _row(run: Run, first: Run, compared: Comparison) -> Row:
    return (
        (run.name,),
        (first.name,),
        _difference(compared.auroc_macro, _signed),
        _difference(compared.average_precision_macro, _signed),
        _difference(compared.label_accuracy, _points),
        ("yes" if compared.auroc_macro.excludes_zero else "not shown",),
    )


def _difference(difference: Difference, shown: Callable[[float], str]) -> tuple[str, ...]:
    if difference.value is None:
        return NONE, difference.reason or ""
    if difference.ci95 is None:
        return shown(difference.value), "no interval"
    low, high = difference.ci95
    return shown(difference.value), f"{shown(low).removesuffix(' %')} to {shown(high)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} %"
