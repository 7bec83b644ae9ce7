"""Verdict of a run: whether it can be trusted, for whom and at which threshold, in a few lines."""

from xray_lightning.html.page import signed_in_print
from xray_lightning.report import wording
from xray_lightning.runs.schema import FindingRow, TestMetrics
from xray_lightning.terminal import (
    Cell,
    Column,
    Table,
    decimal,
    interval,
    numbers,
    readable,
)


def in_short(test: TestMetrics) -> list[tuple[str, str]]:
    """Sentences that sum a run up, each with the section that says more.

    Sentences that the page shows as alerts above them are left out.
    """
    said = [
        (wording.metadata(test) if wording.beats_metadata(test) else "", "metadata"),
        (_shown_to_add(test), "metadata"),
        (_groups(test), "subgroups"),
        (_at_thresholds(test), "confusion"),
        (_probabilities(test), "calibration"),
    ]
    return [(sentence, section) for sentence, section in said if sentence]


def _shown_to_add(test: TestMetrics) -> str:
    known = [row for row in test.finding_rows if row.gain_over_metadata_ci95 is not None]
    if not known:
        return ""
    shown = [readable(row.finding) for row in known if (row.gain_over_metadata_ci95 or (0,))[0] > 0]
    found = f": {', '.join(shown)}" if shown else ""
    return (
        "Finding by finding, that the images add to metadata can be shown for "
        f"{len(shown)} of {len(known)}{found}."
    )


def _groups(test: TestMetrics) -> str:
    if not test.subgroups:
        return "How it does by sex, age, view or visit was not asked for, or is not known."
    flagged = wording.flagged_groups(test.subgroups)
    if not flagged:
        said = "No group has been shown to stand apart from the others"
        sizes = [group.smallest_gap for group in test.subgroups if group.smallest_gap is not None]
        if not sizes:
            return f"{said}."
        least, most = decimal(min(sizes)), decimal(max(sizes))
        return f"{said}; a gap in AUROC of {least} to {most}, by the group's size, would have been."
    return f"Groups that stand apart from the others: {', '.join(flagged)}."


def _at_thresholds(test: TestMetrics) -> str:
    spans = []
    for name, values in (
        ("sensitivity", [row.sensitivity for row in test.finding_rows]),
        ("specificity", [row.specificity for row in test.finding_rows]),
    ):
        known = [value for value in values if value is not None]
        if not known:
            return ""
        spans.append(f"{name} from {min(known):.0%} to {max(known):.0%}".replace("%", " %"))
    return f"At its thresholds, across findings: {' and '.join(spans)}."


def _probabilities(test: TestMetrics) -> str:
    """Whether its probabilities are any better than a constant, where that is known."""
    brier, constant = test.brier_macro, test.prevalence_brier_macro
    if brier is None or constant is None:
        return ""
    better = "better" if brier < constant else "no better"
    said = (
        f"Its raw probabilities are {better} than always giving the training prevalence: Brier "
        f"score {decimal(brier)} against {decimal(constant)}"
    )
    after = test.calibrated
    return f"{said}{f', and {decimal(after.brier_macro)} once calibrated' if after else ''}."


def gains_table(test: TestMetrics) -> Table | None:
    """AUROC of the model, metadata and both by finding; None without a metadata baseline."""
    rows = [
        (
            readable(row.finding),
            _with(row, "auroc"),
            _with(row, "metadata_auroc"),
            _with(row, "gain_over_metadata", sign=True),
            _with(row, "gain_of_combined", sign=True),
            _with(row, "auroc_within_view"),
        )
        for row in test.finding_rows
        if row.metadata_auroc is not None
    ]
    if not rows:
        return None
    figures = numbers(
        "Model",
        "Metadata alone",
        "Gain of the model",
        "Gain of both together",
        "Model within a view",
    )
    notes = (
        "AUROC with 95 % intervals, gains paired. An interval of a gain that holds 0 has not shown "
        "that the images add anything; of many findings, one in twenty leaves 0 out by chance.",
    )
    return Table.of("AUROC beside metadata", (Column("Finding"), *figures), rows, notes)


def _with(row: FindingRow, name: str, *, sign: bool = False) -> Cell:
    """The figure, and its interval below it."""
    value, ends = getattr(row, name), getattr(row, f"{name}_ci95")
    number = signed_in_print if sign else decimal
    return number(value), "" if ends is None else interval(ends, number, joint=" to ")
