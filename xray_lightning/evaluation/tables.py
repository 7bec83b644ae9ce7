"""The report's tables: the paper's Tables 1 and 2 with ours beside, and a summary of other runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from xray_lightning.evaluation.published import (
    OFFICIAL_TEST_IMAGES,
    PAPER_ALWAYS_NEGATIVE,
    PAPER_CONDITIONS,
    PAPER_ROWS,
    PUBLISHED_AUROCS,
    PaperRow,
)
from xray_lightning.evaluation.runs import Run, TestMetrics
from xray_lightning.findings import FINDINGS

NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds numbers, which stand to the right."""

    heading: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table of plain text, to be rendered for the terminal and as Markdown.

    Attributes:
        rows: one tuple of cells per row, each cell a tuple of lines.
        notes: sentences that belong under the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...]


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """The tables that `runs` give: the paper's two if any is a row of it, then the others."""
    rows = {row.row for row in PAPER_ROWS}
    paper = sorted((r for r in runs if r.paper_row in rows), key=lambda r: r.paper_row or 0)
    others = [r for r in runs if r.paper_row not in rows]
    tables = []
    if paper:
        tables += [_accuracy_table(paper), _time_table(paper)]
    if others:
        tables.append(_summary_table(others))
    if official := [r for r in runs if (r.data, r.split) == ("nih", "official") and r.test]:
        tables.append(_published_table(official))
    return tables


def label_of(run: Run) -> str:
    """How notes and figures call a run: its row of the paper, or its name."""
    return f"Row {run.paper_row}" if run.paper_row else run.name


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
                _auroc(test),
            )
        )
    notes = [
        f"Paper: {PAPER_CONDITIONS}; always answering 'no finding' scores "
        f"{percent(PAPER_ALWAYS_NEGATIVE)} on its test set.",
        *_data_notes(runs),
        *_baseline_note(runs),
        *_state_notes(runs),
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
                _ours(paper, run, duration(run.fit_seconds) if run else NONE),
                (_machine(run),),
                (_trained(run),),
                _precision(run),
            )
        )
    notes = (
        f"Paper: {PAPER_CONDITIONS}. Ours: fit, with validation. Images x epochs: training images "
        "an epoch, epochs done.",
        "The times were measured on different machines and data: they do not give a speed-up.",
    )
    return Table("Table 2. Training time by strategy", columns, tuple(rows), notes)


def _summary_table(runs: Sequence[Run]) -> Table:
    columns = (
        Column("Run"),
        Column("Data"),
        Column("Model"),
        Column("AUROC\n(95 % CI)", number=True),
        Column("Label accuracy", number=True),
        Column("Fit", number=True),
    )
    rows = [
        (
            (run.name, *([] if run.status == "finished" else [_state(run)])),
            (run.data or NONE, run.split, (run.split_sha256 or "")[:7]),
            (run.model or NONE, run.strategy or NONE, *_precision(run)),
            (*_auroc(run.test), *_precision_and_images(run.test)),
            _accuracy_and_baseline(run.test),
            (
                duration(run.fit_seconds),
                f"{run.images_per_second:.0f} img/s" if run.images_per_second else "",
                f"on {(run.accelerator or NONE).upper()}" if run.fit_seconds else "",
            ),
        )
        for run in runs
    ]
    notes = ["AUROC and AP (average precision) are macro. n: test images. neg: always negative."]
    notes += [*_data_notes(runs, beside_paper=False), *_baseline_note(runs), *_state_notes(runs)]
    return Table("Runs", columns, tuple(rows), tuple(notes))


def _published_table(runs: Sequence[Run]) -> Table:
    columns = (
        Column("System"),
        Column("Macro AUROC", number=True),
        Column("Test images", number=True),
        Column("Seen in"),
    )
    rows: list[tuple[tuple[str, ...], ...]] = [
        ((p.system,), (decimal(p.auroc),), (f"{OFFICIAL_TEST_IMAGES}",), (p.source,))
        for p in PUBLISHED_AUROCS
        if p.split == "official"
    ]
    rows += [
        ((f"ours: {r.name}",), (decimal(r.test.auroc),), (str(r.test.images),), ("this report",))
        for r in runs
        if r.test
    ]
    notes = []
    if any(r.test and r.test.images != OFFICIAL_TEST_IMAGES for r in runs):
        notes.append("Ours on fewer test images is another test: the figures are not comparable.")
    return Table("Macro AUROC on the official split", columns, tuple(rows), tuple(notes))


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
        return (_state(run),)
    lines = [value] if run.status == "finished" else [value, _state(run)]
    if value == NONE:
        lines = lines[1:] or lines
    if run.accelerator and run.accelerator != paper.accelerator:
        lines.append(f"run on {run.accelerator.upper()}")
    return tuple(lines)


def _state(run: Run) -> str:
    """ "skipped: needs CUDA" in full, as it is short; of others the status, with a note below."""
    return _state_and_reason(run) if run.status == "skipped" else run.status


def _state_and_reason(run: Run) -> str:
    reason = (run.reason or "").removeprefix(f"{run.status}: ").rstrip(".")
    return f"{run.status}: {reason}" if reason else run.status


def _state_notes(runs: Sequence[Run]) -> list[str]:
    said = [(run, f" {_state_and_reason(run)}.") for run in runs if run.status != "finished"]
    return _grouped(said)


def _baseline_note(runs: Sequence[Run]) -> list[str]:
    """The sentence for runs whose label accuracy says nothing, or no sentence."""
    said = ": label accuracy is no better than that of a model that always answers 'no finding'."
    return _grouped([(run, said) for run in runs if run.test and not _beats_baseline(run.test)])


def _beats_baseline(test: TestMetrics) -> bool:
    if test.label_accuracy is None or test.always_negative is None:
        return True  # nothing to say
    return test.label_accuracy > test.always_negative


def _data_notes(runs: Sequence[Run], *, beside_paper: bool = True) -> list[str]:
    """What to know of the data before comparing: another source, several splits, leaks, drops."""
    notes = _source_notes(runs) if beside_paper else []
    if len({r.split_sha256 for r in runs if r.split_sha256}) > 1:
        notes.append(
            "These runs do not share one split (split_sha256 differs): compare only within a split."
        )
    said = []
    for run in runs:
        for pair, patients in run.overlap.items():
            leak = f": {patients} patients are on both sides of {pair}, which flatters the figures."
            said.append((run, leak))
        if run.dropped:
            counts = ", ".join(f"{count} x {reason}" for reason, count in run.dropped.items())
            said.append((run, f": counted while reading: {counts}."))
        if run.test and run.test.auroc_findings < len(FINDINGS):
            count = f"{run.test.auroc_findings} of {len(FINDINGS)}"
            said.append((run, f": macro AUROC over the {count} findings that have one."))
    return notes + _grouped(said)


def _source_notes(runs: Sequence[Run]) -> list[str]:
    sources = sorted({f"{run.data}, split {run.split}" for run in runs if run.data})
    images = sorted({run.test.images for run in runs if run.test})
    tested = f", {' / '.join(map(str, images))} test images" if images else ""
    notes = [f"Ours: {'; '.join(sources)}{tested}."] if sources else []
    if any(run.data not in ("ai4m", "") for run in runs):
        notes.append("Ours are other images than the paper's: do not compare the accuracies.")
    return notes


def _grouped(said: Sequence[tuple[Run, str]]) -> list[str]:
    """One sentence for all runs of which the same is said: "Row 2 and Row 3 skipped: ..."."""
    labels: dict[str, dict[str, None]] = {}  # a dict of dicts keeps order and drops repeats
    for run, sentence in said:
        labels.setdefault(sentence, {})[label_of(run)] = None
    return [_listed(list(names)) + sentence for sentence, names in labels.items()]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _machine(run: Run | None) -> str:
    if run is None or run.status == "skipped":
        return NONE
    ranks = "" if run.world_size in (None, 1) else f" x {run.world_size} ranks"
    return f"{run.device or run.accelerator or NONE}{ranks}"


def _trained(run: Run | None) -> str:
    if run is None or not run.history:
        return NONE
    return f"{run.images.get('train', 0)} x {len(run.history)}"


def _precision(run: Run | None) -> tuple[str, ...]:
    if run is None or run.precision_used is None:
        return (NONE,)
    if run.precision_asked in (None, run.precision_used):
        return (run.precision_used,)
    return (run.precision_used, f"asked {run.precision_asked}")


def _auroc(test: TestMetrics | None) -> tuple[str, ...]:
    if test is None or test.auroc is None:
        return (NONE,)
    if test.auroc_ci95 is None:
        return (decimal(test.auroc), "no interval")
    low, high = test.auroc_ci95
    return (decimal(test.auroc), f"{decimal(low)}-{decimal(high)}")


def _precision_and_images(test: TestMetrics | None) -> tuple[str, ...]:
    return (f"AP {decimal(test.average_precision)}", f"n = {test.images}") if test else ()


def _accuracy_and_baseline(test: TestMetrics | None) -> tuple[str, ...]:
    if test is None:
        return (NONE,)
    return (percent(test.label_accuracy), f"neg {percent(test.always_negative)}")


def percent(value: float | None) -> str:
    """0.8612 as "86.12 %"."""
    return NONE if value is None else f"{value:.2%}".replace("%", " %")


def decimal(value: float | None) -> str:
    """0.8126 as "0.813"."""
    return NONE if value is None else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: "48.2 s", "12.1 min", "2.5 h"."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
