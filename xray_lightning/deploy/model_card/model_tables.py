"""Tables of a model for its card, and what `xray info` prints of it."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.deploy.model_card.info import (
    INTENDED,
    OUT_OF_SCOPE,
    CheckpointInfo,
    ModelInfo,
    Terms,
    limits,
    model_terms,
    training_terms,
    version_terms,
)
from xray_lightning.errors import printable
from xray_lightning.html.page import NOTICE
from xray_lightning.report import wording
from xray_lightning.runs.folder import Run
from xray_lightning.runs.schema import Subgroup, TestMetrics
from xray_lightning.terminal import (
    NONE,
    Column,
    Table,
    count,
    counted,
    decimal,
    interval,
    numbers,
    percent,
    print_table,
    readable,
    signed,
    with_interval,
)


def splits_table(run: Run) -> Table:
    """Images and patients of each split."""
    columns = (Column("Side"), *numbers("Images", "Patients", "Positive labels"))
    rows = [
        (
            split.name,
            count(split.images),
            count(split.patients),
            count(sum(split.positives.values())) if split.positives else NONE,
        )
        for split in run.sides
    ]
    return Table.of("Images by side of the split", columns, rows)


def positives_table(run: Run) -> Table:
    """Images with each finding in each split."""
    columns = (Column("Finding"), *numbers(*(split.name for split in run.sides)))
    rows = [
        (readable(finding), *(count(split.positives.get(finding)) for split in run.sides))
        for finding in run.findings
    ]
    return Table.of("Images with each finding", columns, rows)


def headline_table(test: TestMetrics) -> Table:
    """The figures over all findings, beside what needs no model."""
    columns = (
        Column("Over all findings"),
        *numbers("This model", "95 % interval"),
        Column("Without a model"),
    )
    rows = [
        (
            "AUROC, macro",
            decimal(test.auroc_macro),
            interval(test.auroc_macro_ci95),
            "0.500, chance",
        ),
        (
            "Average precision, macro",
            decimal(test.average_precision_macro),
            interval(test.average_precision_macro_ci95),
            f"{decimal(wording.chance_precision(test))}, mean prevalence",
        ),
        (
            "Label accuracy at 0.5",
            percent(test.label_accuracy),
            interval(test.label_accuracy_ci95, percent),
            f"{percent(test.always_negative_accuracy)}, always negative",
        ),
    ]
    patients = f" of {counted(test.patients, 'patient')}" if test.patients else ""
    notes = [
        f"{counted(test.images, 'test image')}{patients}; macro AUROC over "
        f"{test.auroc_macro_findings} of {counted(len(test.per_finding), 'finding')}. Intervals by "
        "bootstrap over patients.",
    ]
    if test.prevalence_accuracy is not None:
        guessed = percent(test.prevalence_accuracy)
        notes.append(f"Label accuracy of always answering the training prevalence: {guessed}.")
    if test.brier_macro is not None:
        baseline = f"{decimal(test.prevalence_brier_macro)}, train prevalence"
        rows.append(
            (
                "Brier score, macro *",
                decimal(test.brier_macro),
                interval(test.brier_macro_ci95),
                baseline,
            )
        )
        notes.append("* Less is better.")
    return Table.of("Test", columns, rows, notes)


def findings_table(test: TestMetrics, *, wide: bool) -> Table:
    """The figures of each finding; `wide` has more of them, and every interval."""
    figures = ["AUROC (95 % CI)", "From", "Sens.", "Spec."]
    if wide:
        figures = ["AUROC (95 % CI)", "AP (95 % CI)", "From", "Sensitivity", "Specificity"]
    rows = []
    for row in test.finding_rows:
        cells = [readable(row.finding), count(row.positives)]
        cells.append(with_interval(row.auroc, row.auroc_ci95))
        if wide:
            cells.append(with_interval(row.average_precision, row.average_precision_ci95))
        cells.append(decimal(row.threshold))
        cells.append(with_interval(row.sensitivity, row.sensitivity_ci95 if wide else None))
        cells.append(with_interval(row.specificity, row.specificity_ci95 if wide else None))
        rows.append(cells)
    notes = (
        "From: the probability from which a finding is called present. AP: average precision.",
        *wording.undefined(test),
    )
    return Table.of(
        "Each finding", (Column("Finding"), *numbers("Positives", *figures)), rows, notes
    )


def subgroups_table(groups: tuple[Subgroup, ...]) -> Table:
    """The macro AUROC of each group of images."""
    figures = ("Images", "Patients", "Macro AUROC (95 % CI)", "Gap to the others (95 % CI)")
    rows = [
        (
            f"{group.by}: {group.group}",
            count(group.images),
            count(group.patients),
            with_interval(group.auroc_macro, group.auroc_macro_ci95),
            with_interval(group.gap, group.gap_ci95, signed, joint=" to ")
            + (", flagged" if group.flagged else ""),
        )
        for group in groups
    ]
    notes = (wording.multiplicity(groups), *wording.undefined_groups(groups))
    return Table.of("Subgroups", (Column("Group"), *numbers(*figures)), rows, notes)


def fitted_table(checkpoint: CheckpointInfo) -> Table | None:
    """Operating point and calibration of each finding; None of a checkpoint without either."""
    points, calibration = checkpoint.points, checkpoint.calibration
    if points is None and calibration is None:
        return None
    rows = [
        (
            readable(finding),
            decimal(points.cuts[finding] if points else None),
            decimal(calibration.slope[finding] if calibration else None),
            decimal(calibration.intercept[finding] if calibration else None),
        )
        for finding in checkpoint.findings
    ]
    undefined = {} if points is None else points.undefined
    return Table.of(
        "Operating points and calibration",
        (Column("Finding"), *numbers("Present from", "Slope", "Intercept")),
        rows,
        [f"{readable(name)} keeps 0.5: {reason}." for name, reason in undefined.items()],
    )


_STATUS_STYLES = {"finished": "green", "running": "yellow", "skipped": "yellow"}


def print_info(info: ModelInfo, console: Console) -> None:
    """Print what `xray info` shows, as wide as the console."""
    title = Text(printable(info.name), style="bold")
    if info.run is not None:
        title.append(f"  {info.run.status}", style=_STATUS_STYLES.get(info.run.status, "red"))
    console.print(title)
    console.print(Text(NOTICE, style="italic"))
    _print_terms("Model", model_terms(info), console)
    _print_terms("Training", training_terms(info), console)
    if info.test is not None:
        _print_test(info.test, console)
    else:
        _print_sentences("Test", [info.untested or ""], console)
    _print_sentences("Intended use", [INTENDED], console)
    _print_sentences("Out of scope", OUT_OF_SCOPE, console)
    _print_sentences("Limits", limits(info), console)
    _print_terms("Versions", version_terms(info), console)
    _print_sentences("How this is known", [info.link], console)


def _print_test(test: TestMetrics, console: Console) -> None:
    for table in (headline_table(test), findings_table(test, wide=False)):
        console.print()
        print_table(table, console)
    console.print(Text(wording.operating_point(test), style="dim"))
    label = wording.calibrated_label(test)
    if label is not None and test.calibrated is not None:
        text = f"Brier score once {label}: {decimal(test.calibrated.brier_macro)}."
        console.print(Text(text, style="dim"))


def _print_terms(heading: str, terms: Terms, console: Console) -> None:
    if not terms:
        return
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=13)
    grid.add_column(overflow="fold")
    for term, value in terms:
        grid.add_row(Text(term), Text(printable(value)))
    _print_grid(heading, grid, console)


def _print_sentences(heading: str, sentences: Iterable[str], console: Console) -> None:
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for sentence in sentences:
        grid.add_row(Text("-"), Text(printable(sentence)))
    _print_grid(heading, grid, console)


def _print_grid(heading: str, grid: RichTable, console: Console) -> None:
    console.print()
    console.print(Text(heading, style="bold"))
    console.print(grid)
