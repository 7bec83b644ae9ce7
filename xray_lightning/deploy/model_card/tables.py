"""Tables of a model, and what `xray info` shows of it on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.deploy.model_card.info import (
    INTENDED,
    OUT_OF_SCOPE,
    CheckpointFacts,
    Facts,
    Known,
    limits,
    model_facts,
    name_of,
    training_facts,
    version_facts,
)
from xray_lightning.errors import printable
from xray_lightning.html.page import NOTICE, decimal, percent
from xray_lightning.report import wording as words
from xray_lightning.report.tables import NONE, Column, Table, between, count, plain, with_interval
from xray_lightning.report.write import rich_table
from xray_lightning.runs.folder import Run
from xray_lightning.runs.schema import Subgroup, TestMetrics

Row = tuple[tuple[str, ...], ...]


def sides_table(run: Run) -> Table:
    """Images and patients by side of the split."""
    columns = (
        Column("Side"),
        Column("Images", number=True),
        Column("Patients", number=True),
        Column("Positive labels", number=True),
    )
    rows = [
        _row(side.name, count(side.images), count(side.patients), _sum(side.positives))
        for side in run.sides
    ]
    return Table("Images by side of the split", columns, tuple(rows), ())


def positives_table(run: Run) -> Table:
    """Images with each finding by side of the split."""
    columns = (Column("Finding"), *(Column(side.name, number=True) for side in run.sides))
    rows = [
        _row(plain(finding), *(count(side.positives.get(finding)) for side in run.sides))
        for finding in run.findings
    ]
    return Table("Images with each finding", columns, tuple(rows), ())


def headline_table(test: TestMetrics) -> Table:
    """The figures over all findings, beside what needs no model."""
    columns = (
        Column("Over all findings"),
        Column("This model", number=True),
        Column("95 % interval", number=True),
        Column("Without a model"),
    )
    rows = [
        _row("AUROC, macro", decimal(test.auroc), between(test.auroc_ci95), "0.500, chance"),
        _row(
            "Average precision, macro",
            decimal(test.average_precision),
            between(test.average_precision_ci95),
            f"{decimal(words.chance_precision(test))}, mean prevalence",
        ),
        _row(
            "Label accuracy at 0.5",
            percent(test.label_accuracy),
            between(test.label_accuracy_ci95, percentages=True),
            f"{percent(test.always_negative)}, always negative",
        ),
    ]
    if test.brier is not None:
        guessed = decimal(test.prevalence_brier)
        rows.append(
            _row(
                "Brier score, macro *",
                decimal(test.brier),
                between(test.brier_ci95),
                f"{guessed}, train prevalence",
            )
        )
    patients = f" of {words.counted(test.patients, 'patient')}" if test.patients else ""
    notes = [
        f"{words.counted(test.images, 'test image')}{patients}; macro AUROC over "
        f"{test.auroc_findings} of {words.counted(len(test.per_finding), 'finding')}. Intervals by "
        "bootstrap over patients.",
    ]
    if test.prevalence_accuracy is not None:
        guessed = percent(test.prevalence_accuracy)
        notes.append(f"Label accuracy of always answering the training prevalence: {guessed}.")
    if test.brier is not None:
        notes.append("* Less is better.")
    return Table("Test", columns, tuple(rows), tuple(notes))


def findings_table(test: TestMetrics, *, wide: bool) -> Table:
    """The figures of each finding; `wide` has more of them, and every interval."""
    columns = (
        Column("Finding"),
        Column("Positives", number=True),
        Column("AUROC (95 % CI)", number=True),
        *([Column("AP (95 % CI)", number=True)] if wide else []),
        Column("From", number=True),
        Column("Sensitivity" if wide else "Sens.", number=True),
        Column("Specificity" if wide else "Spec.", number=True),
    )
    rows = []
    for row in test.per_finding:
        rates = (row.sensitivity, row.sensitivity_ci95), (row.specificity, row.specificity_ci95)
        cells = [plain(row.finding), count(row.positives), with_interval(row.auroc, row.auroc_ci95)]
        if wide:
            cells.append(with_interval(row.average_precision, row.average_precision_ci95))
        cells.append(decimal(row.threshold))
        cells += [with_interval(*rate) if wide else decimal(rate[0]) for rate in rates]
        rows.append(_row(*cells))
    notes = (
        "From: the probability from which a finding is called present. AP: average precision.",
        *words.undefined(test),
    )
    return Table("Each finding", columns, tuple(rows), notes)


def subgroups_table(groups: tuple[Subgroup, ...]) -> Table:
    """The macro AUROC of each group of images."""
    columns = (
        Column("Group"),
        Column("Images", number=True),
        Column("Patients", number=True),
        Column("Macro AUROC (95 % CI)", number=True),
        Column("Gap to the others (95 % CI)", number=True),
    )
    rows = [
        _row(
            f"{group.by}: {group.group}",
            count(group.images),
            count(group.patients),
            with_interval(group.auroc, group.auroc_ci95),
            with_interval(group.gap, group.gap_ci95, signed=True)
            + (", flagged" if group.flagged else ""),
        )
        for group in groups
    ]
    notes = (words.multiplicity(groups), *words.undefined_groups(groups))
    return Table("Subgroups", columns, tuple(rows), notes)


def fitted_table(facts: CheckpointFacts) -> Table | None:
    """Operating point and calibration of each finding; None of a checkpoint without either."""
    points, calibration = facts.points, facts.calibration
    if points is None and calibration is None:
        return None
    columns = (
        Column("Finding"),
        Column("Present from", number=True),
        Column("Slope", number=True),
        Column("Intercept", number=True),
    )
    rows = [
        _row(
            plain(finding),
            decimal(points.cuts[finding]) if points else NONE,
            decimal(calibration.slope[finding]) if calibration else NONE,
            decimal(calibration.intercept[finding]) if calibration else NONE,
        )
        for finding in facts.findings
    ]
    undefined = {**(points.undefined if points else {})}
    notes = [f"{plain(name)} keeps 0.5: {reason}." for name, reason in undefined.items()]
    return Table("Operating points and calibration", columns, tuple(rows), tuple(notes))


def _row(*cells: str) -> Row:
    return tuple((cell,) for cell in cells)


def _sum(positives: dict[str, int]) -> str:
    return count(sum(positives.values())) if positives else NONE


_STYLES = {"finished": "green", "running": "yellow", "skipped": "yellow"}


def show(known: Known, console: Console) -> None:
    """Print it all, as wide as the console."""
    title = Text(printable(name_of(known)), style="bold")
    if known.run is not None:
        title.append(f"  {known.run.status}", style=_STYLES.get(known.run.status, "red"))
    console.print(title)
    console.print(Text(NOTICE, style="italic"))
    _show_facts("Model", model_facts(known), console)
    _show_facts("Training", training_facts(known), console)
    if known.test is not None:
        _show_test(known.test, console)
    else:
        _show_sentences("Test", [known.untested or ""], console)
    _show_sentences("Intended use", [INTENDED], console)
    _show_sentences("Out of scope", OUT_OF_SCOPE, console)
    _show_sentences("Limits", limits(known), console)
    _show_facts("Versions", version_facts(known), console)
    _show_sentences("How this is known", [known.link], console)


def _show_test(test: TestMetrics, console: Console) -> None:
    for table in (headline_table(test), findings_table(test, wide=False)):
        console.print()
        _show_table(table, console)
    console.print(Text(words.operating_point(test), style="dim"))
    if (calibrated := words.calibrated_label(test)) is not None and test.calibrated is not None:
        text = f"Brier score once {calibrated}: {decimal(test.calibrated.brier_macro)}."
        console.print(Text(text, style="dim"))


def _show_table(table: Table, console: Console) -> None:
    console.print(rich_table(table, room=console.width))
    for note in table.notes:
        console.print(Text(printable(note), style="dim"))


def _show_facts(heading: str, facts: Facts, console: Console) -> None:
    if not facts:
        return
    _show_heading(heading, console)
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=13)
    grid.add_column(overflow="fold")
    for term, value in facts:
        grid.add_row(Text(term), Text(printable(value)))
    console.print(grid)


def _show_sentences(heading: str, sentences: Iterable[str], console: Console) -> None:
    _show_heading(heading, console)
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for sentence in sentences:
        grid.add_row(Text("-"), Text(printable(sentence)))
    console.print(grid)


def _show_heading(heading: str, console: Console) -> None:
    console.print()
    console.print(Text(heading, style="bold"))
