"""Tables of the report: the paper's two beside ours, runs, seeds, published, paired differences."""

from collections.abc import Sequence
from itertools import groupby

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import Estimate
from xray_lightning.evaluation.compare import SeedSummary, Spread, compare, summarise_seeds
from xray_lightning.evaluation.published_results import (
    OFFICIAL_TEST_IMAGES,
    PAPER_ALWAYS_NEGATIVE,
    PAPER_CONDITIONS,
    PAPER_ROWS,
    PUBLISHED_AUROCS,
    PaperRow,
)
from xray_lightning.findings import FINDINGS
from xray_lightning.report.wording import (
    baseline_note,
    data_notes,
    grouped,
    metadata_note,
    on_published_split,
    precision_cell,
    source_notes,
    state,
    state_notes,
)
from xray_lightning.runs.predictions import read_predictions
from xray_lightning.runs.results_json import predictions_name
from xray_lightning.runs.run_folder import Run
from xray_lightning.runs.schema import Interval, TestMetrics
from xray_lightning.terminal import (
    NONE,
    Cell,
    Number,
    Table,
    decimal,
    duration,
    interval,
    numbers,
    percent,
    percentage_points,
    signed,
    texts,
)


def _auroc(test: TestMetrics | None) -> Cell:
    return _estimate(test.auroc_macro, test.auroc_macro_ci95) if test else (NONE,)


def _estimate(
    value: float | None, ends: Interval | None, number: Number = decimal, *, joint: str = "-"
) -> Cell:
    """A figure and beneath it its interval."""
    if value is None:
        return (NONE,)
    return number(value), "no interval" if ends is None else interval(ends, number, joint=joint)


def of_paper(run: Run) -> bool:
    """Whether the run is a row of the paper's study."""
    of_its_findings = set(run.findings) in (set(), set(FINDINGS))  # empty: data not yet read
    return run.paper_row in {row.row for row in PAPER_ROWS} and of_its_findings


_PAPER_COLUMNS = (*numbers("#"), *texts("Model, strategy"))


def paper_tables(runs: Sequence[Run]) -> list[Table]:
    """The paper's Tables 1 and 2 with ours beside; each run is a row of its study."""
    return [_accuracy_table(runs), _time_table(runs)]


def _accuracy_table(runs: Sequence[Run]) -> Table:
    figures = numbers("Paper", "Ours", "Always negative", "AUROC\n(95 % CI)")
    rows = [
        (
            str(paper.row),
            (paper.model, paper.strategy),
            percent(paper.accuracy),
            _ours(paper, run, percent(test.label_accuracy) if test else NONE),
            percent(test.always_negative_accuracy) if test else NONE,
            _auroc(test),
        )
        for paper, run in _beside(runs)
        for test in [run.test if run else None]
    ]
    notes = [
        f"Paper: {PAPER_CONDITIONS}; always answering 'no finding' scores "
        f"{percent(PAPER_ALWAYS_NEGATIVE)} on its test set.",
        *source_notes(runs),
        *data_notes(runs),
        *baseline_note(runs),
        *metadata_note(runs),
        *state_notes(runs),
    ]
    title = "Table 1. Test label accuracy by strategy"
    return Table.of(title, (*_PAPER_COLUMNS, *figures), rows, notes)


def _time_table(runs: Sequence[Run]) -> Table:
    figures = (*numbers("Paper", "Ours"), *texts("Our machine"), *numbers("Images x epochs"))
    rows = [
        (
            str(paper.row),
            (paper.model, paper.strategy),
            f"{paper.minutes:.2f} min",
            _ours(paper, run, duration(run.timing.fit) if run else NONE),
            _machine(run),
            _trained(run),
            precision_cell(run),
        )
        for paper, run in _beside(runs)
    ]
    notes = (
        f"Paper: {PAPER_CONDITIONS}. Ours: fit, with validation. Images x epochs: those trained on "
        "in an epoch, epochs done.",
        "The times were measured on different machines and data: they do not give a speed-up.",
    )
    columns = (*_PAPER_COLUMNS, *figures, *texts("Precision"))
    return Table.of("Table 2. Training time by strategy", columns, rows, notes)


def _beside(runs: Sequence[Run]) -> list[tuple[PaperRow, Run | None]]:
    """Every row of the paper with each run of it, or with None where there is none."""
    pairs: list[tuple[PaperRow, Run | None]] = []
    for paper in PAPER_ROWS:
        ours = [run for run in runs if run.paper_row == paper.row]
        pairs += [(paper, run) for run in ours] or [(paper, None)]
    return pairs


def _ours(paper: PaperRow, run: Run | None, value: str) -> Cell:
    """Our value, and below it what differs from the paper's row: status, accelerator."""
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
    whole = run.images.get("train", 0)  # where an epoch's own count is not recorded
    trained = [whole if epoch.images is None else epoch.images for epoch in run.history]
    return " + ".join(f"{images} x {len([*same])}" for images, same in groupby(trained))


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """The tables that `runs` give: the paper's two if any is a row of it, then the others."""
    paper = sorted(filter(of_paper, runs), key=lambda run: run.paper_row or 0)
    others = [run for run in runs if not of_paper(run)]
    tables = paper_tables(paper) if paper else []
    if others:
        tables.append(_summary_table(others))
    if several := [s for s in summarise_seeds(runs) if len(set(s.seeds)) > 1]:
        tables.append(_seeds_table(several))
    if official := [run for run in runs if on_published_split(run)]:
        tables.append(published_table(official))
    return tables


def _summary_table(runs: Sequence[Run]) -> Table:
    columns = (
        *texts("Run", "Data", "Model"),
        *numbers("AUROC\n(95 % CI)", "Label accuracy", "Fit"),
    )
    rows = [
        (
            (run.name, *([] if run.status == "finished" else [state(run)])),
            (run.data or NONE, run.split, (run.split_sha256 or "")[:7]),
            (run.model or NONE, run.strategy or NONE, *precision_cell(run)),
            (*_auroc(test), f"AP {decimal(test.average_precision_macro)}", f"n = {test.images}")
            if test
            else (NONE,),
            (percent(test.label_accuracy), f"neg {percent(test.always_negative_accuracy)}")
            if test
            else (NONE,),
            _fit(run),
        )
        for run in runs
        for test in [run.test]
    ]
    notes = ["AUROC and AP (average precision) are macro. n: test images. neg: always negative."]
    notes += [*data_notes(runs), *baseline_note(runs), *metadata_note(runs)]
    notes += state_notes(runs)
    return Table.of("Runs", columns, rows, notes)


def _seeds_table(summaries: Sequence[SeedSummary]) -> Table:
    scores = (f"{name}\n(lowest-highest)" for name in ("AUROC", "AP", "Label accuracy"))
    rows = [
        (
            seeds.name,
            f"{len(seeds.seeds)}: {', '.join(map(str, seeds.seeds))}",
            _spread(seeds.auroc_macro, decimal),
            _spread(seeds.average_precision_macro, decimal),
            _spread(seeds.label_accuracy, percent),
        )
        for seeds in summaries
    ]
    note = (
        "Runs of one recipe that differ in the seed alone: mean, and after ± the sample standard "
        "deviation, which is of the training and not of the test images."
    )
    return Table.of("Seeds", (*texts("Recipe", "Seeds"), *numbers(*scores)), rows, (note,))


def _fit(run: Run) -> Cell:
    rate = run.timing.fit_images_per_second
    return (
        duration(run.timing.fit),
        f"{rate:.0f} img/s" if rate else "",
        f"on {(run.accelerator or NONE).upper()}" if run.timing.fit else "",
    )


def _spread(spread: Spread | None, number: Number) -> Cell:
    if spread is None:
        return (NONE,)
    mean = number(spread.mean).removesuffix(" %")
    around = f"{mean} ± {number(spread.spread)}" if spread.spread is not None else mean
    return around, interval((spread.lowest, spread.highest), number)


def published_table(runs: Sequence[Run]) -> Table:
    """Published figures of NIH's official split beside runs that are `on_published_split`."""
    columns = (*texts("System"), *numbers("Macro AUROC", "Test images"), *texts("Seen in"))
    rows = [
        (p.system, decimal(p.auroc), str(OFFICIAL_TEST_IMAGES), p.source) for p in PUBLISHED_AUROCS
    ]
    rows += [
        (f"ours: {r.name}", decimal(r.test.auroc_macro), str(r.test.images), "this report")
        for r in runs
        if r.test
    ]
    return Table.of("Macro AUROC on the official split", columns, rows)


PREDICTIONS = predictions_name("test")

Row = tuple[str | Cell, ...]

_NOTE = (
    "Differences of macro figures on the same test images, from the same resamples of patients. An "
    "interval that holds 0 shows no difference; it does not show that there is none."
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
    scores = numbers(*(f"{name}\n(95 % CI)" for name in ("AUROC", "AP", "Label accuracy")))
    columns = (*texts("Run", "Against"), *scores, *texts("AUROC differs"))
    return [Table.of("Paired differences", columns, rows, (_NOTE, *grouped(left_out)))]


def _against_first(runs: Sequence[Run]) -> tuple[list[Row], list[tuple[Run, str]]]:
    """Rows of runs minus the first with predictions, on one split; runs left out, with reasons."""
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
                found = compare(first[1], predictions)
                cells = (
                    _difference(found.auroc_macro, signed),
                    _difference(found.average_precision_macro, signed),
                    _difference(found.label_accuracy, percentage_points),
                    "yes" if found.auroc_macro.excludes_zero else "not shown",
                )
                rows.append((run.name, first[0].name, *cells))
        except UserError as error:
            left_out.append((run, f": not compared: {error}."))
            continue
        first = first or (run, predictions)
    return rows, left_out


def _difference(difference: Estimate, number: Number) -> Cell:
    if difference.value is None:
        return NONE, difference.reason or ""
    return _estimate(difference.value, difference.ci95, number, joint=" to ")
