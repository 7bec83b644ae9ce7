"""The tables of a model's figures, for the terminal and for the card."""

from xray_lightning.deploy.about.checkpoint import CheckpointFacts
from xray_lightning.evaluation.record import Interval, Run, Subgroup, TestMetrics
from xray_lightning.evaluation.report.page import words
from xray_lightning.evaluation.report.table import NONE, Column, Table
from xray_lightning.page.frame import decimal, percent

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


def plain(finding: str) -> str:
    """Pleural_Thickening as it is written."""
    return finding.replace("_", " ")


def count(value: int | None) -> str:
    """1045 as "1,045"."""
    return NONE if value is None else f"{value:,}"


def between(interval: Interval | None, *, percentages: bool = False) -> str:
    """An interval as "0.812-0.850"."""
    if interval is None:
        return NONE
    if percentages:
        return "-".join(percent(end).removesuffix(" %") for end in interval) + " %"
    return "-".join(map(decimal, interval))


def with_interval(value: float | None, interval: Interval | None, *, signed: bool = False) -> str:
    """A figure as "0.831 (0.812-0.850)"."""
    if value is None:
        return NONE
    shown = f"{value:+.3f}" if signed else decimal(value)
    if interval is None:
        return shown
    ends = " to ".join(f"{end:+.3f}" for end in interval) if signed else between(interval)
    return f"{shown} ({ends})"


def _row(*cells: str) -> Row:
    return tuple((cell,) for cell in cells)


def _sum(positives: dict[str, int]) -> str:
    return count(sum(positives.values())) if positives else NONE
