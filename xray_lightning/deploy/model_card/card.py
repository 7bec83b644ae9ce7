"""Model card: model_card.md with its YAML head, and the same on a terminal (`xray info`)."""

import json
import logging
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xray_lightning.deploy.model_card.info import (
    INTENDED,
    OUT_OF_SCOPE,
    CheckpointInfo,
    ModelInfo,
    data_set,
    info_of_run,
    limits,
    model_terms,
    split_of,
    training_terms,
    version_terms,
    without_folders,
)
from xray_lightning.errors import InterruptedRunError, one_line, printable
from xray_lightning.files import remove_leftovers, write_atomically
from xray_lightning.html import markdown
from xray_lightning.html.page import NOTICE
from xray_lightning.models.checkpoint import BEST
from xray_lightning.report import claim_checklist, clinical_wording, wording
from xray_lightning.report.write import PAGE as REPORT
from xray_lightning.report.write import write_run_report
from xray_lightning.runs.results_json import RunRecord
from xray_lightning.runs.run_folder import Run
from xray_lightning.runs.schema import FindingRow, Subgroup, TestMetrics
from xray_lightning.terminal import (
    NONE,
    Column,
    Number,
    Table,
    count,
    counted,
    decimal,
    interval,
    numbers,
    percent,
    print_table,
    probability,
    readable,
    signed,
    with_interval,
)

FILE_NAME = "model_card.md"
log = logging.getLogger("xray")
LIBRARY = "xray-lightning"  # loads the model; Lightning is not among the Hub's known libraries
TASK = "image-classification"
_TASK_NAME = "Multi-label classification of chest X-rays"
_TAGS = ("chest-x-ray", "radiology", "multi-label-classification")

Metric = dict[str, Any]


def write_card(folder: Path) -> Path:
    """Write the card of a run into its folder, atomically.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
        OSError: the card cannot be written.
    """
    path = folder / FILE_NAME
    write_atomically(path, card(info_of_run(folder)))
    return path


def write_pages(folder: Path, *, report: bool, missing: bool = False) -> None:
    """Write a finished run's card, if it was tested, and report; a failure is only logged.

    Args:
        report: whether to write report.html, too.
        missing: write only pages that do not exist, and remove a killed process's temporary files.
    """
    record = RunRecord.load(folder)
    tested = record is not None and record.content["metrics"]["test"] is not None
    pages: list[tuple[bool, str, Callable[[Path], object]]] = [
        (tested, FILE_NAME, write_card),
        (report, REPORT, write_run_report),
    ]
    if missing:
        remove_leftovers(folder)
    for wanted, name, write in pages:
        if not wanted or (missing and (folder / name).exists()):
            continue
        try:
            write(folder)
        except (Exception, InterruptedRunError) as error:  # noqa: BLE001 - the results are there
            log.warning("%s could not be written: %s", name, one_line(error))


def card(info: ModelInfo) -> str:
    """The whole text of the card."""
    run, test, checkpoint = info.run, info.test, info.checkpoint
    path = f"checkpoints/{BEST}"
    if checkpoint is not None:  # relative to its run folder, or else to its own folder
        folder = "checkpoints/" if checkpoint.path.parent.name == "checkpoints" else ""
        path = f"{folder}{checkpoint.path.name}"
    data_tables: list[Table] = []
    test_tables: list[Table] = []
    if run is not None and run.sides:
        data_tables.append(splits_table(run))
        if any(split.positives for split in run.sides):
            data_tables.append(positives_table(run))
    if test is not None:
        worth = predictive_table(test, wide=True)
        test_tables += [findings_table(test, wide=True), *filter(None, [worth])]
        if test.subgroups:
            test_tables.append(subgroups_table(test.subgroups))
    command = "" if run is None else printable(without_folders(run.command))
    return markdown.rendered(
        "model_card.md.jinja",
        front_matter=Markup(front_matter(info)),
        name=info.name,
        notice=NOTICE,
        wording=wording,
        run=None if run is None else replace(run, split=split_of(run)),  # without a file's folder
        test=test,
        untested=info.untested,
        model_terms=model_terms(info),
        intended=INTENDED,
        out_of_scope=OUT_OF_SCOPE,
        training_terms=training_terms(info),
        data_set=None if run is None else data_set(run),
        data_tables=data_tables,
        headline=None if test is None else headline_table(test),
        test_tables=test_tables,
        decisions=_decisions(test),
        clinical=clinical_wording,
        abstaining=None if test is None else _abstaining(test),
        fitted=None if checkpoint is None else fitted_table(checkpoint),
        calibration=None if checkpoint is None else checkpoint.calibration,
        recalibrated=None if checkpoint is None else checkpoint.recalibrated,
        limits=list(limits(info, of_data=False)),
        python_path=Markup(json.dumps(path)),
        shell_path=Markup(shlex.quote(printable(path))),
        command=Markup(command),
        version_terms=version_terms(info),
        link=info.link,
        checklist=None if run is None else checklist_table(run),
    )


def checklist_table(run: Run) -> Table:
    """Items of CLAIM 2024 that the record answers, and a note on those left to the authors."""
    answered = [
        (str(item.number), item.words, item.answer)
        for item in claim_checklist.items(replace(run, split=split_of(run)))
        if item.answer is not None
    ]
    columns = (Column("No."), Column("Item"), Column("Answer"))
    return Table.of(
        claim_checklist.SOURCE, columns, answered, [claim_checklist.left_to_authors(run)]
    )


def _decisions(test: TestMetrics | None) -> str | None:
    """What the decision curves show; None if the record has none."""
    if test is None or not any(row.decision_curve for row in test.finding_rows):
        return None
    return " ".join([clinical_wording.usefulness(test), *clinical_wording.about_curves(test)])


def _abstaining(test: TestMetrics) -> str:
    """Each finding's abstention thresholds and their test results; why other findings have none."""
    said = [
        f"{readable(row.finding)}: no below {probability(of.low)}, yes from "
        f"{probability(of.high)}; {with_interval(of.answered, of.answered_ci95)} of images "
        f"answered, {with_interval(of.misses_among_no, of.misses_among_no_ci95)} of "
        f"{counted(of.patients, 'patient')} missed among its no."
        for row in clinical_wording.abstention_rows(test)
        if (of := row.abstention) is not None and of.low is not None
    ]
    return " ".join([*said, *clinical_wording.without_abstention(test)])


def front_matter(info: ModelInfo) -> str:
    """The YAML front matter, with its dashes; texts are quoted as YAML requires."""
    checkpoint = info.checkpoint
    arch = checkpoint.model["arch"] if checkpoint else None
    engine = ("onnx",) if checkpoint and checkpoint.exported else ("pytorch", "lightning")
    content: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "tags": [*_TAGS, *engine, *([arch] if arch else [])],
    }
    if info.run is not None and info.test is not None:
        metrics = metrics_of(info.test)
        content["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
        result = {
            "task": {"type": TASK, "name": _TASK_NAME},
            "dataset": {
                "type": printable(info.run.data) or "unknown",
                "name": printable(data_set(info.run).name),
                "config": printable(split_of(info.run)),
                "split": "test",
            },
            "metrics": metrics,
        }
        content["model-index"] = [{"name": printable(info.name), "results": [result]}]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---"


def metrics_of(test: TestMetrics) -> list[Metric]:
    """All defined metrics, unrounded; names state intervals, and the baseline of the accuracy."""
    accuracy = f"Label accuracy at 0.5; always negative {decimal(test.always_negative_accuracy)}"
    found = [
        _metric("roc_auc", test, "auroc_macro", "AUROC, macro"),
        _metric("average_precision", test, "average_precision_macro", "Average precision, macro"),
        _metric("brier_score", test, "brier_macro", "Brier score, macro"),
        _metric("accuracy", test, "label_accuracy", accuracy),
        *(
            _metric("roc_auc", row, "auroc", f"AUROC, {readable(row.finding)}")
            for row in test.finding_rows
        ),
    ]
    return [metric for metric in found if metric["value"] is not None]


def _metric(kind: str, of: TestMetrics | FindingRow, key: str, name: str) -> Metric:
    ends = getattr(of, f"{key}_ci95")
    said = "" if ends is None else f" (95 % interval {interval(ends)})"
    return {"type": kind, "value": getattr(of, key), "name": f"{name}{said}"}


def splits_table(run: Run) -> Table:
    """Images and patients of each split."""
    known = any(split.demographics for split in run.sides)
    columns = (
        Column("Side"),
        *numbers("Images", "Patients", "Positive labels"),
        *([Column("Who is on them")] if known else []),
    )
    rows = [
        (
            split.name,
            count(split.images),
            count(split.patients),
            count(sum(split.positives.values())) if split.positives else NONE,
            *([wording.imaged(split)] if known else []),
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
    """Metrics over all findings, beside baselines that need no model."""

    def row(name: str, key: str, baseline: str, number: Number = decimal) -> tuple[str, ...]:
        ends = getattr(test, f"{key}_ci95")
        ends = interval(ends, number, joint=" to " if number is signed else "-")
        return name, number(getattr(test, key)), ends, baseline

    alone = f"{decimal(test.metadata_auroc_macro)}, metadata alone"
    beside = [
        row("AUROC, gain over metadata", "gain_over_metadata_macro", alone, signed),
        row("AUROC, gain with metadata", "gain_of_combined_macro", "0, metadata alone", signed),
        row("AUROC within a view, macro", "auroc_within_view_macro", "0.500, chance"),
    ]
    prevalence = f"{decimal(wording.chance_precision(test))}, mean prevalence"
    negative = f"{percent(test.always_negative_accuracy)}, always negative"
    rows = [
        row("AUROC, macro", "auroc_macro", "0.500, chance"),
        *(one for one in beside if one[1] != NONE),
        row("Average precision, macro", "average_precision_macro", prevalence),
        row("Label accuracy at 0.5", "label_accuracy", negative, percent),
    ]
    patients = f" of {counted(test.patients, 'patient')}" if test.patients else ""
    notes = [
        f"{counted(test.images, 'test image')}{patients}; macro AUROC over "
        f"{test.auroc_macro_findings} of {counted(len(test.per_finding), 'finding')}. Intervals by "
        "bootstrap over patients.",
        *filter(None, [wording.metadata(test), wording.shuffled(test)]),
    ]
    if test.prevalence_accuracy is not None:
        guessed = percent(test.prevalence_accuracy)
        notes.append(f"Label accuracy of always answering the training prevalence: {guessed}.")
    if test.brier_macro is not None:
        guessed = f"{decimal(test.prevalence_brier_macro)}, train prevalence"
        rows.append(row("Brier score, macro *", "brier_macro", guessed))
        notes.append("* Less is better.")
    of_model = numbers("This model", "95 % interval")
    columns = (Column("Over all findings"), *of_model, Column("Without a model"))
    return Table.of("Test", columns, rows, notes)


def findings_table(test: TestMetrics, *, wide: bool) -> Table:
    """Metrics of each finding; `wide` adds average precision and all intervals."""
    figures = ["AUROC (95 % CI)", "From", "Sens.", "Spec."]
    if wide:
        figures = ["AUROC (95 % CI)", "AP (95 % CI)", "From", "Sensitivity", "Specificity"]
    rows = [
        [
            readable(row.finding),
            count(row.positives),
            with_interval(row.auroc, row.auroc_ci95),
            *([with_interval(row.average_precision, row.average_precision_ci95)] if wide else ()),
            NONE if row.threshold is None else probability(row.threshold),
            with_interval(row.sensitivity, row.sensitivity_ci95 if wide else None),
            with_interval(row.specificity, row.specificity_ci95 if wide else None),
        ]
        for row in test.finding_rows
    ]
    notes = (
        "From: the probability from which a finding is called present. AP: average precision.",
        *wording.undefined(test),
    )
    return Table.of(
        "Each finding", (Column("Finding"), *numbers("Positives", *figures)), rows, notes
    )


def predictive_table(test: TestMetrics, *, wide: bool) -> Table | None:
    """PPV and NPV on the test images and, if one is given, at the stated prevalence.

    None for an older record, which has neither; `wide` adds the intervals.
    """
    known = [row for row in test.finding_rows if row.ppv is not None or row.npv is not None]
    stated = any(row.stated_prevalence is not None for row in known)
    figures = ["Prevalence", "PPV", "NPV", *(("Stated", "PPV then", "NPV then") if stated else ())]
    rows = []
    for row in known:
        cells = [readable(row.finding), decimal(row.prevalence)]
        for name in ("ppv", "npv", "ppv_at_stated_prevalence", "npv_at_stated_prevalence"):
            ends = getattr(row, f"{name}_ci95") if wide else None
            cells.append(with_interval(getattr(row, name), ends))
        share = row.stated_prevalence
        cells.insert(4, NONE if share is None else f"{share:g}")
        rows.append(cells[: len(figures) + 1])
    columns = (Column("Finding"), *numbers(*figures))
    notes = clinical_wording.predictive_values(test)
    return Table.of("What a call is worth", columns, rows, notes) if rows else None


def subgroups_table(groups: tuple[Subgroup, ...]) -> Table:
    """The scores of each group of images, and its gaps to the others."""
    gaps = ("AUROC", "sensitivity", "specificity")
    figures = ("Images", "Patients", "Macro AUROC (95 % CI)", *(f"Gap in {gap}" for gap in gaps))
    rows = [
        (
            f"{group.by}: {group.group}",
            count(group.images),
            count(group.patients),
            with_interval(group.auroc_macro, group.auroc_macro_ci95),
            *(
                _gap(value, ends, smallest, flagged=name in group.flagged_by)
                for name, (value, ends, smallest) in zip(gaps, group.gaps, strict=True)
            ),
        )
        for group in groups
    ]
    notes = (
        "Sensitivity and specificity are at the operating points, macro over the findings that ten "
        "patients of the group, and ten of the others, have or lack.",
        wording.multiplicity(groups),
        *wording.undefined_groups(groups),
    )
    return Table.of("Subgroups", (Column("Group"), *numbers(*figures)), rows, notes)


def _gap(
    value: float | None,
    ends: tuple[float, float] | None,
    smallest: float | None,
    *,
    flagged: bool,
) -> str:
    said = with_interval(value, ends, signed, joint=" to ")
    if smallest is not None:
        said += f", shown from {decimal(smallest)}"
    return f"{said}, flagged" if flagged else said


def fitted_table(checkpoint: CheckpointInfo) -> Table | None:
    """Operating point and calibration of each finding; None if the checkpoint has neither."""
    points, calibration = checkpoint.points, checkpoint.calibration
    if points is None and calibration is None:
        return None
    rows = [
        (
            readable(finding),
            probability(points.cuts[finding]) if points else NONE,
            decimal(calibration.slope[finding] if calibration else None),
            decimal(calibration.intercept[finding] if calibration else None),
        )
        for finding in checkpoint.model["findings"]
    ]
    undefined = {} if points is None else points.undefined
    mirrored = ["tta flip: of logits averaged over each image and its mirror image."]
    return Table.of(
        "Operating points and calibration",
        (Column("Finding"), *numbers("Present from", "Slope", "Intercept")),
        rows,
        [
            *(mirrored if checkpoint.tta else []),
            *(f"{readable(name)} keeps 0.5: {reason}." for name, reason in undefined.items()),
        ],
    )


_STATUS_STYLES = {"finished": "green", "running": "yellow", "skipped": "yellow"}


def print_info(info: ModelInfo, console: Console) -> None:
    """Print what `xray info` shows, as wide as the console."""
    terms = partial(_print_section, console, gap=2, style="dim", min_width=13)
    sentences = partial(_print_section, console, gap=1)
    title = Text(printable(info.name), style="bold")
    if info.run is not None:
        title.append(f"  {info.run.status}", style=_STATUS_STYLES.get(info.run.status, "red"))
    console.print(title)
    console.print(Text(NOTICE, style="italic"))
    terms("Model", model_terms(info))
    terms("Training", training_terms(info))
    if info.test is not None:
        _print_test(info.test, console)
    else:
        sentences("Test", [("-", info.untested or "")])
    sentences("Intended use", [("-", INTENDED)])
    sentences("Out of scope", zip(repeat("-"), OUT_OF_SCOPE))
    sentences("Limits", zip(repeat("-"), limits(info)))
    if versions := version_terms(info):
        terms("Versions", versions)
    sentences("How this is known", [("-", info.link)])


def _print_test(test: TestMetrics, console: Console) -> None:
    worth = predictive_table(test, wide=False)
    for table in (headline_table(test), findings_table(test, wide=False), *filter(None, [worth])):
        console.print()
        print_table(table, console)
    console.print(Text(wording.operating_point(test), style="dim"))
    if test.calibrated is not None:
        label = wording.calibrated_label(test)
        text = f"Brier score once {label}: {decimal(test.calibrated.brier_macro)}."
        console.print(Text(text, style="dim"))
    if any(row.decision_curve for row in test.finding_rows):
        console.print(Text(clinical_wording.usefulness(test), style="dim"))


def _print_section(
    console: Console, heading: str, rows: Iterable[tuple[str, str]], *, gap: int, **first: Any
) -> None:
    grid = RichTable.grid(padding=(0, gap, 0, 0))
    grid.add_column(no_wrap=True, **first)
    grid.add_column(overflow="fold")
    for term, value in rows:
        grid.add_row(Text(term), Text(printable(value)))
    console.print()
    console.print(Text(heading, style="bold"))
    console.print(grid)
