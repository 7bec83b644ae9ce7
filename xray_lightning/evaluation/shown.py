"""Scores and comparisons as a person reads them on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.errors import printable
from xray_lightning.evaluation.comparison import Comparison, Difference
from xray_lightning.evaluation.recompute import Recomputed
from xray_lightning.evaluation.score import Scored
from xray_lightning.training.predictions import metrics_table

SIDES = {"train": "Training", "val": "Validation", "test": "Test"}
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
        _add(table, label, getattr(one, key), getattr(other, key), getattr(comparison, key))
    table.add_section()
    for finding, found in comparison.per_finding.items():
        label = finding.replace("_", " ")
        _add(table, label, one.per_finding[finding], other.per_finding[finding], found)
    _say(console, f"first   {names[0]}")
    _say(console, f"second  {names[1]}")
    images = f"{comparison.images:,} test images of {comparison.patients:,} patients"
    _say(console, f"{images}; difference: second minus first")
    console.print(table)
    _say(console, LESS_IS_BETTER)
    for line in _without_interval(comparison):
        _say(console, line)
    negative = f"{one.always_negative:.4f}"
    _say(console, f"Label accuracy of always answering no finding: {negative}.")
    _say(console, sentence(comparison))
    for line in NOTES:
        _say(console, line)


def _without_interval(comparison: Comparison) -> list[str]:
    """The findings that lack something, by the reason."""
    names: dict[str, list[str]] = {}
    for finding, found in comparison.per_finding.items():
        if found.reason is not None:
            names.setdefault(found.reason, []).append(finding.replace("_", " "))
    return [f"{', '.join(findings)}: {reason}." for reason, findings in names.items()]


def sentence(comparison: Comparison) -> str:
    """What the difference in macro AUROC says."""
    found = comparison.auroc_macro
    if found.value is None:
        return f"Macro AUROC: not defined, {found.reason}."
    start = f"Macro AUROC over {len(comparison.findings)} findings, second - first: "
    if found.ci95 is None:
        return f"{start}{found.value:+.4f}, without an interval: {found.reason}."
    numbers = f"{found.value:+.4f} (95 % interval {_interval(found)})"
    if not found.excludes_zero:
        return f"{start}{numbers}. It includes zero: these images do not tell them apart."
    better = "second" if found.value > 0 else "first"
    return f"{start}{numbers}. It excludes zero: the {better} is better on these images."


def show_scored(scored: Scored, console: Console) -> None:
    """Print what checkpoints score, and for an ensemble what averaging gains."""
    content = scored.content
    data, metrics = content["data"], content["metrics"]
    table = metrics_table(metrics)
    table.title = (
        f"{SIDES[data['side']]}: {metrics['images']:,} images of {metrics['patients']:,} patients"
    )
    console.print(table)
    split = f"split {data['split']} ({data['split_sha256'][:7]})"
    _say(console, f"{data['name']}, {split}, {data['side']} side, in {content['precision']}")
    for name, source in content["fitted"].items():
        words = name.replace("_", " ")
        if source is not None:
            _say(console, f"{words[0].upper()}{words[1:]}: {source}")
    _show_baselines(metrics, console)
    if content["ensemble"] is not None:
        _show_gain(content, console)
    if content["note"] is not None:
        console.print(Text(printable(f"Note: {content['note']}"), style="yellow"), soft_wrap=True)


def show_recomputed(recomputed: Recomputed, console: Console) -> None:
    """Print what a file of predictions scores."""
    console.print(metrics_table(recomputed.metrics))
    if recomputed.val is not None:
        _say(console, f"Operating points and calibration: fitted to {recomputed.val}")
    _show_baselines(recomputed.metrics, console)
    for note in recomputed.notes:
        console.print(Text(printable(f"Note: {note}"), style="yellow"), soft_wrap=True)


def _show_baselines(metrics: Mapping[str, Any], console: Console) -> None:
    """Print raw beside calibrated, and beside what knows no image."""
    parts = [f"raw {_number(metrics['brier_macro'])}"]
    if (calibrated := metrics["calibrated"]) is not None:
        parts.append(f"calibrated by {calibrated['method']} {_number(calibrated['brier_macro'])}")
    if metrics["prevalence_brier_macro"] is not None:
        parts.append(f"training prevalences {_number(metrics['prevalence_brier_macro'])}")
    _say(console, f"Brier score, less is better: {', '.join(parts)}")


def _show_gain(content: Mapping[str, Any], console: Console) -> None:
    ensemble = content["ensemble"]
    table = _table("Macro AUROC", "member", "ensemble", "gain", "95 % interval", "")
    whole = content["metrics"]["auroc_macro"]
    _say(console, f"Ensemble: the mean of the {content['average']} of")
    for number, member in enumerate(ensemble["members"], start=1):
        _say(console, f"  {number}  {member['path']}")
        gain = _difference(member["gain"]["auroc_macro"])
        _add(table, f"checkpoint {number}", member["auroc_macro"], whole, gain)
    over = _difference(ensemble["gain_over_mean"])
    mean = None if over.value is None else whole - over.value
    table.add_section()
    _add(table, "their mean", mean, whole, over)
    console.print(table)


def _difference(plain: Mapping[str, Any]) -> Difference:
    interval = plain["ci95"]
    reason = plain["undefined_reason"]
    return Difference(plain["value"], None if interval is None else tuple(interval), reason)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        words = place in (0, len(headings) - 1)
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    return table


def _add(
    table: Table, label: str, first: float | None, second: float | None, found: Difference
) -> None:
    verdict = "" if found.ci95 is None else EXCLUDES if found.excludes_zero else INCLUDES
    table.add_row(
        Text(label),
        _number(first),
        _number(second),
        "-" if found.value is None else f"{found.value:+.3f}",
        _interval(found, digits=3),
        verdict,
        style="bold" if found.excludes_zero else "",
    )


def _interval(found: Difference, *, digits: int = 4) -> str:
    if found.ci95 is None:
        return "-"
    low, high = (f"{end:+.{digits}f}" for end in found.ci95)
    return f"{low} to {high}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
