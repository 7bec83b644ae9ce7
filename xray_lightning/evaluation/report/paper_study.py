"""The paper's Tables 1 and 2, with ours beside."""

from collections.abc import Sequence

from xray_lightning.evaluation.published import (
    PAPER_ALWAYS_NEGATIVE,
    PAPER_CONDITIONS,
    PAPER_ROWS,
    PaperRow,
)
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.notes import baseline_note, data_notes, state, state_notes
from xray_lightning.evaluation.report.table import (
    NONE,
    Column,
    Table,
    auroc_cell,
    duration,
    precision_cell,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.page.frame import percent


def of_paper(run: Run) -> bool:
    """Whether the run is a row of the paper's study."""
    of_its_findings = set(run.findings) in (set(), set(FINDINGS))  # none known: not read yet
    return run.paper_row in {row.row for row in PAPER_ROWS} and of_its_findings


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """The paper's Tables 1 and 2 with ours beside; each run is a row of its study."""
    return [_accuracy_table(runs), _time_table(runs)]


def _accuracy_table(runs: Sequence[Run]) -> Table:
    columns = (
        Column("#", number=True),
        Column("Model, strategy"),
        Column("Paper", number=True),
        Column("Ours", number=True),
        Column("Always negative", number=True),
        Column("AUROC\n(95 % CI)", number=True),
    )
    rows = []
    for paper, run in _beside(runs):
        test = run.test if run else None
        rows.append(
            (
                *_paper_cells(paper),
                (percent(paper.accuracy),),
                _ours(paper, run, percent(test.label_accuracy) if test else NONE),
                (percent(test.always_negative) if test else NONE,),
                auroc_cell(test),
            )
        )
    notes = [
        f"Paper: {PAPER_CONDITIONS}; always answering 'no finding' scores "
        f"{percent(PAPER_ALWAYS_NEGATIVE)} on its test set.",
        *data_notes(runs),
        *baseline_note(runs),
        *state_notes(runs),
    ]
    title = "Table 1. Test label accuracy by strategy"
    return Table(title, columns, tuple(rows), tuple(notes))


def _time_table(runs: Sequence[Run]) -> Table:
    columns = (
        Column("#", number=True),
        Column("Model, strategy"),
        Column("Paper", number=True),
        Column("Ours", number=True),
        Column("Our machine"),
        Column("Images x epochs", number=True),
        Column("Precision"),
    )
    rows = []
    for paper, run in _beside(runs):
        rows.append(
            (
                *_paper_cells(paper),
                (f"{paper.minutes:.2f} min",),
                _ours(paper, run, duration(run.timing.fit) if run else NONE),
                (_machine(run),),
                (_trained(run),),
                precision_cell(run),
            )
        )
    notes = (
        f"Paper: {PAPER_CONDITIONS}. Ours: fit, with validation. Images x epochs: training images "
        "an epoch, epochs done.",
        "The times were measured on different machines and data: they do not give a speed-up.",
    )
    return Table("Table 2. Training time by strategy", columns, tuple(rows), notes)


def _beside(runs: Sequence[Run]) -> list[tuple[PaperRow, Run | None]]:
    """Every row of the paper with each run of it, or with None where there is none."""
    pairs: list[tuple[PaperRow, Run | None]] = []
    for paper in PAPER_ROWS:
        ours = [run for run in runs if run.paper_row == paper.row]
        pairs += [(paper, run) for run in ours] or [(paper, None)]
    return pairs


def _paper_cells(paper: PaperRow) -> tuple[tuple[str, ...], ...]:
    return (str(paper.row),), (paper.model, paper.strategy)


def _ours(paper: PaperRow, run: Run | None, value: str) -> tuple[str, ...]:
    """Our value, and beneath it what keeps it from being the paper's row."""
    if run is None:
        return ("not run",)
    if run.status == "skipped":
        return (state(run),)
    lines = [value] if run.status == "finished" else [value, state(run)]
    if value == NONE:
        lines = lines[1:] or lines
    if run.accelerator and run.accelerator != paper.accelerator:
        lines.append(f"run on {run.accelerator.upper()}")
    return tuple(lines)


def _machine(run: Run | None) -> str:
    if run is None or run.status == "skipped":
        return NONE
    ranks = "" if run.world_size in (None, 1) else f" x {run.world_size} ranks"
    return f"{run.device or run.accelerator or NONE}{ranks}"


def _trained(run: Run | None) -> str:
    if run is None or not run.history:
        return NONE
    return f"{run.images.get('train', 0)} x {len(run.history)}"
