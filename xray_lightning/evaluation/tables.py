"""Tables of `xray evaluate` and `xray compare` on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning import terminal
from xray_lightning.data.splits import WHOLE
from xray_lightning.evaluation.compare import Comparison
from xray_lightning.evaluation.evaluate import Scored
from xray_lightning.evaluation.evaluate_predictions import Recomputed
from xray_lightning.evaluation.external_validation import AT_POINTS
from xray_lightning.evaluation.label_agreement import show_expert_labels
from xray_lightning.runs.summary import metrics_table
from xray_lightning.terminal import (
    Column,
    by_reason,
    count,
    decimal,
    interval,
    numbers,
    print_table,
    readable,
    say,
    signed,
)

SIDE_TITLES = {"train": "Training", "val": "Validation", "test": "Test"}
EXCLUDES, INCLUDES = "excludes zero", "includes zero"
LABELS = {
    "auroc_macro": "AUROC, macro",
    "average_precision_macro": "AP, macro",
    "label_accuracy": "Label accuracy",
    "brier_macro": "Brier score *",
}
LESS_IS_BETTER = "* less is better"
NOTES = (
    "Where nothing differs, one in twenty of the findings' intervals excludes zero by chance.",
    "The intervals are of the patients drawn, not of the training: another seed may differ more.",
)


def show_comparison(comparison: Comparison, console: Console, *, names: Sequence[str]) -> None:
    """Print both runs' scores, their difference with its interval, and what it says."""
    one, other = comparison.first, comparison.second
    table = _table("", "first", "second", "difference", "95 % interval", "")
    for key, label in LABELS.items():
        found = getattr(comparison, key).to_plain()
        _add(table, label, getattr(one, key), getattr(other, key), found)
    table.add_section()
    for finding, found in comparison.per_finding.items():
        scores = one.per_finding[finding], other.per_finding[finding]
        _add(table, readable(finding), *scores, found.to_plain())
    say(f"first   {names[0]}", f"second  {names[1]}", console=console)
    images = f"{comparison.images:,} test images of {comparison.patients:,} patients"
    say(f"{images}; difference: second minus first", console=console)
    console.print(table)
    lacking = {readable(name): found.reason for name, found in comparison.per_finding.items()}
    say(
        LESS_IS_BETTER,
        *by_reason((name, reason) for name, reason in lacking.items() if reason is not None),
        f"Label accuracy of always answering no finding: {one.always_negative:.4f}.",
        sentence(comparison),
        *NOTES,
        console=console,
    )


def sentence(comparison: Comparison) -> str:
    """What the difference in macro AUROC says."""
    found = comparison.auroc_macro
    if found.value is None:
        return f"Macro AUROC: not defined, {found.reason}."
    start = f"Macro AUROC over {len(comparison.findings)} findings, second - first: "
    if found.ci95 is None:
        return f"{start}{found.value:+.4f}, without an interval: {found.reason}."
    ends = interval(found.ci95, "{:+.4f}".format, joint=" to ")
    numbers = f"{found.value:+.4f} (95 % interval {ends})"
    if not found.excludes_zero:
        return f"{start}{numbers}. It includes zero: these images do not tell them apart."
    better = "second" if found.value > 0 else "first"
    return f"{start}{numbers}. It excludes zero: the {better} is better on these images."


def show_scored(scored: Scored, console: Console) -> None:
    """Print what checkpoints score, and for an ensemble what averaging gains."""
    content = scored.content
    if content.get("external") is not None:
        show_external(content, console)
        return
    data, metrics = content["data"], content["metrics"]
    table = metrics_table(metrics)
    where = SIDE_TITLES[data["side"]]
    table.title = f"{where}: {metrics['images']:,} images of {metrics['patients']:,} patients"
    console.print(table)
    split = f"split {data['split']} ({data['split_sha256'][:7]})"
    say(f"{data['name']}, {split}, {data['side']} side, in {content['precision']}", console=console)
    if content["tta"] is not None:
        say(f"tta {content['tta']}: logits averaged with the mirror image's", console=console)
    for name, source in content["fitted"].items():
        words = readable(name)
        if source is not None:
            say(f"{words[0].upper()}{words[1:]}: {source}", console=console)
    _show_baselines(metrics, console)
    _show_predictive_values(metrics, console)
    _show_abstention(metrics, console)
    if content["ensemble"] is not None:
        _show_gain(content, console)
    if content["expert_labels"] is not None:
        show_expert_labels(content["expert_labels"], console)
    if content["note"] is not None:
        say(f"Note: {content['note']}", console=console, style="yellow")


def show_recomputed(recomputed: Recomputed, console: Console) -> None:
    """Print what a file of predictions scores."""
    where = SIDE_TITLES.get(recomputed.side, "Scored")
    console.print(metrics_table(recomputed.metrics, where=where))
    if recomputed.val is not None:
        say(f"Operating points and calibration: fitted to {recomputed.val}", console=console)
    _show_baselines(recomputed.metrics, console)
    if recomputed.expert_labels is not None:
        show_expert_labels(recomputed.expert_labels, console)
    _show_predictive_values(recomputed.metrics, console)
    _show_abstention(recomputed.metrics, console)
    for note in recomputed.notes:
        say(f"Note: {note}", console=console, style="yellow")


def _show_baselines(metrics: Mapping[str, Any], console: Console) -> None:
    """Print the Brier score of raw and calibrated probabilities and training prevalences."""
    parts = [f"raw {decimal(metrics['brier_macro'])}"]
    if (calibrated := metrics["calibrated"]) is not None:
        parts.append(f"calibrated by {calibrated['method']} {decimal(calibrated['brier_macro'])}")
    if metrics["prevalence_brier_macro"] is not None:
        parts.append(f"training prevalences {decimal(metrics['prevalence_brier_macro'])}")
    say(f"Brier score, less is better: {', '.join(parts)}", console=console)


def _show_predictive_values(metrics: Mapping[str, Any], console: Console) -> None:
    """Print PPV and NPV beside those at the stated prevalence, where one is stated."""
    stated = {k: v for k, v in metrics["per_finding"].items() if "stated_prevalence" in v}
    if not stated:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("At the operating point", no_wrap=True)
    for heading in ("prevalence", "PPV", "NPV", "stated", "PPV there", "NPV there"):
        table.add_column(heading, justify="right", no_wrap=True)
    for finding, row in stated.items():
        figures = (
            *(decimal(row[name]) for name in ("prevalence", "ppv", "npv")),
            f"{row['stated_prevalence']:g}",
            *(decimal(row[f"{name}_at_stated_prevalence"]) for name in ("ppv", "npv")),
        )
        table.add_row(Text(readable(finding)), *figures)
    console.print(table)


def _show_abstention(metrics: Mapping[str, Any], console: Console) -> None:
    """Print the share of images answered yes or no, by finding, if abstention was fitted."""
    rows = {finding: row.get("abstention") for finding, row in metrics["per_finding"].items()}
    answered = [
        f"{readable(finding)} {decimal(row['answered'])}"
        for finding, row in rows.items()
        if row and row["low"] is not None
    ]
    if metrics["abstention"] is not None:
        said = f"answers of {', '.join(answered)}" if answered else "never says no"
        say(f"With abstention it {said} (share of images)", console=console)


def _show_gain(content: Mapping[str, Any], console: Console) -> None:
    ensemble = content["ensemble"]
    table = _table("Macro AUROC", "member", "ensemble", "gain", "95 % interval", "")
    whole = content["metrics"]["auroc_macro"]
    say(f"Ensemble: the mean of the {content['average']} of", console=console)
    for number, member in enumerate(ensemble["members"], start=1):
        say(f"  {number}  {member['path']}", console=console)
        gain = member["gain"]["auroc_macro"]
        _add(table, f"checkpoint {number}", member["auroc_macro"], whole, gain)
    over = ensemble["gain_over_mean"]
    mean = None if over["value"] is None else whole - over["value"]
    table.add_section()
    _add(table, "their mean", mean, whole, over)
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        words = place in (0, len(headings) - 1)
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    return table


def _add(
    table: Table, label: str, first: float | None, second: float | None, found: Mapping[str, Any]
) -> None:
    """Add a row; `found` is what `Estimate.to_plain` gives of the difference."""
    excludes = found["excludes_zero"]
    table.add_row(
        Text(label),
        decimal(first),
        decimal(second),
        signed(found["value"]),
        interval(found["ci95"], signed, joint=" to "),
        "" if found["ci95"] is None else EXCLUDES if excludes else INCLUDES,
        style="bold" if excludes else "",
    )


def show_external(content: Mapping[str, Any], console: Console) -> None:
    """Print a checkpoint's scores on another site's images."""
    external, data = content["external"], content["data"]
    cases = f"{external['images']:,} images of {external['patients']:,} patients"
    side = "all images" if data["split"] == WHOLE else f"{data['side']} side of {data['split']}"
    print_table(_ranks(external, title=f"{data['name']}, {side}: {cases}"), console)
    console.print()
    print_table(_at_points(external), console)
    for whose, names in external["not_scored"].items():
        if names:
            told = ", ".join(map(readable, names))
            say(f"Not scored, of the {readable(whose)}: {told}", console=console)
    if content["note"] is not None:
        say(f"Note: {content['note']}", console=console, style="yellow")


def _ranks(external: Mapping[str, Any], *, title: str) -> terminal.Table:
    """AUROC on the site's images, AUROC in the run's own test, and the gap."""
    rows: list[tuple[str | tuple[str, ...], ...]] = []
    lacking: list[tuple[str, str]] = []
    for name, row in external["per_finding"].items():
        own, gap = row["own_test"] or {}, row["gap"] or {}
        positives = count(row["positives"])
        rows.append((readable(name), positives, *_cells("auroc", row, own, gap)))
        lacking += [(readable(name), why) for why in set(row["undefined_reason"].values())]
    macro = [
        {"auroc": external.get(key), "auroc_ci95": external.get(f"{key}_ci95")}
        for key in ("auroc_macro", "own_test_auroc_macro", "gap_auroc_macro")
    ]
    rows.append((f"macro over {external['auroc_macro_findings']}", "", *_cells("auroc", *macro)))
    columns = (Column("Finding"), *numbers("Positives", "AUROC there", "Own test", "Gap"))
    return terminal.Table.of(title, columns, rows, by_reason(lacking))


def _cells(name: str, here: Any, own: Any, gap: Any) -> tuple[tuple[str, ...], ...]:
    ends = interval(gap.get(f"{name}_ci95"), signed, joint=", ")
    return (
        (decimal(here[name]), interval(here[f"{name}_ci95"])),
        (decimal(own.get(name)), interval(own.get(f"{name}_ci95"))),
        (signed(gap.get(name)), ends),
    )


def _at_points(external: Mapping[str, Any]) -> terminal.Table:
    """Scores at the checkpoint's operating points and calibration, and at those refitted."""
    rows: list[tuple[str | tuple[str, ...], ...]] = []
    for name, row in external["per_finding"].items():
        for label, block in (("as it is", row["kept"]), ("refitted", row["recalibrated"])):
            if block is None:
                continue
            cells = ((decimal(block[k]), interval(block[f"{k}_ci95"])) for k in AT_POINTS)
            scored = decimal(block["brier"]), interval(block["brier_ci95"])
            error = decimal(block["expected_calibration_error"])
            whose = readable(name) if label == "as it is" else ""
            rows.append(((whose, label), *cells, scored, error))
    what = "raw probabilities" if external["calibration"] is None else "calibrated probabilities"
    notes = [
        f"As it is: the checkpoint's operating points, and its {what}. Refitted: both fitted "
        f"there, in {external['folds']} folds of patients, each judged by the fit to the others.",
        "Brier score and error of calibration (15 bins): less is better.",
    ]
    mended = external["recalibrated_brier_macro"]
    if mended is not None:
        before, after = (
            decimal(external[f"{key}expected_calibration_error_macro"])
            for key in ("", "recalibrated_")
        )
        brier = decimal(external["brier_macro"])
        notes.append(
            f"Macro over {external['recalibrated_findings']}: Brier score {brier}, refitted "
            f"{decimal(mended)}; error of calibration {before}, refitted {after}."
        )
    headings = ("Sensitivity", "Specificity", "PPV", "Brier", "Error")
    return terminal.Table.of(
        "At the operating points", (Column("Finding"), *numbers(*headings)), rows, notes
    )
