"""The report's tables: the paper's two with ours beside, a summary, seeds, published figures."""

from collections.abc import Callable, Sequence

from xray_lightning.evaluation.published import OFFICIAL_TEST_IMAGES, PUBLISHED_AUROCS
from xray_lightning.evaluation.record import Run, TestMetrics
from xray_lightning.evaluation.report.notes import baseline_note, data_notes, state, state_notes
from xray_lightning.evaluation.report.paper_study import of_paper, paper_tables
from xray_lightning.evaluation.report.table import (
    NONE,
    Column,
    Table,
    auroc_cell,
    duration,
    precision_cell,
)
from xray_lightning.evaluation.seeds import SeedSummary, Spread, summarise_seeds
from xray_lightning.findings import FINDINGS
from xray_lightning.page.frame import decimal, percent


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


def on_published_split(run: Run) -> bool:
    """Whether the run was tested on what the published figures of the official split are of."""
    official = (run.data, run.split) == ("nih", "official")
    tested = run.test is not None and run.test.images == OFFICIAL_TEST_IMAGES
    return official and tested and set(run.findings) == set(FINDINGS)


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
            (run.name, *([] if run.status == "finished" else [state(run)])),
            (run.data or NONE, run.split, (run.split_sha256 or "")[:7]),
            (run.model or NONE, run.strategy or NONE, *precision_cell(run)),
            (*auroc_cell(run.test), *_precision_and_images(run.test)),
            _accuracy_and_baseline(run.test),
            _fit(run),
        )
        for run in runs
    ]
    notes = ["AUROC and AP (average precision) are macro. n: test images. neg: always negative."]
    notes += [*data_notes(runs, beside_paper=False), *baseline_note(runs), *state_notes(runs)]
    return Table("Runs", columns, tuple(rows), tuple(notes))


def _seeds_table(summaries: Sequence[SeedSummary]) -> Table:
    columns = (
        Column("Recipe"),
        Column("Seeds"),
        Column("AUROC\n(lowest-highest)", number=True),
        Column("AP\n(lowest-highest)", number=True),
        Column("Label accuracy\n(lowest-highest)", number=True),
    )
    rows = [
        (
            (seeds.name,),
            (f"{seeds.runs}: {', '.join(map(str, seeds.seeds))}",),
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
    return Table("Seeds", columns, tuple(rows), (note,))


def _fit(run: Run) -> tuple[str, ...]:
    rate = run.timing.fit_images_per_second
    return (
        duration(run.timing.fit),
        f"{rate:.0f} img/s" if rate else "",
        f"on {(run.accelerator or NONE).upper()}" if run.timing.fit else "",
    )


def _spread(spread: Spread | None, shown: Callable[[float | None], str]) -> tuple[str, ...]:
    if spread is None:
        return (NONE,)
    mean = shown(spread.mean).removesuffix(" %")
    around = f"{mean} ± {shown(spread.spread)}" if spread.spread is not None else mean
    return around, f"{shown(spread.lowest).removesuffix(' %')}-{shown(spread.highest)}"


def published_table(runs: Sequence[Run]) -> Table:
    """Published figures of NIH's official split beside runs that are `on_published_split`."""
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
    return Table("Macro AUROC on the official split", columns, tuple(rows), notes=())


def _precision_and_images(test: TestMetrics | None) -> tuple[str, ...]:
    return (f"AP {decimal(test.average_precision)}", f"n = {test.images}") if test else ()


def _accuracy_and_baseline(test: TestMetrics | None) -> tuple[str, ...]:
    if test is None:
        return (NONE,)
    return (percent(test.label_accuracy), f"neg {percent(test.always_negative)}")
