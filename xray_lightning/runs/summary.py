"""Summary of a run's test: the table that ends a run, and what it says in a sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from xray_lightning.terminal import (
    decimal,
    interval,
    percent,
    readable,
    signed,
    with_interval,
)


def images_add(
    metadata: float | None,
    gain: float | None,
    gain_ci95: Sequence[float] | None,
    combined: float | None = None,
    combined_ci95: Sequence[float] | None = None,
) -> str | None:
    """A sentence on what the images add to metadata in macro AUROC; None if it is not known.

    Args:
        metadata: macro AUROC of metadata alone.
        gain: macro AUROC of the model minus that of metadata.
        combined: the same gain of metadata and model together; None if it is not known.
    """
    if metadata is None or gain is None:
        return None
    said = (
        f"View, age, sex and follow-up alone reach macro AUROC {decimal(metadata)}; the images add "
        f"{with_interval(gain, gain_ci95, signed, joint=' to ')}"
    )
    if gain_ci95 is None:
        said += ", without an interval"
    elif gain_ci95[0] <= 0:
        said += ": that the images add anything cannot be shown"
    if combined is None:
        return f"{said}."
    together = with_interval(combined, combined_ci95, signed, joint=" to ")
    alone = gain_ci95 is None or gain_ci95[0] > 0
    if alone or combined_ci95 is None or combined_ci95[0] <= 0:
        return f"{said}. Metadata and the model together: {together} over metadata."
    return f"{said}. Only metadata and the model together reach more than metadata: {together}."


def shuffled_reach(auroc: float | None, ci95: Sequence[float] | None) -> str:
    """What the same recipe reaches on shuffled labels, where 0.5 is expected."""
    reached = with_interval(auroc, ci95, joint=" to ")
    return (
        f"The same recipe on shuffled labels reaches macro AUROC {reached}, where 0.500 is "
        "expected and some hundredths are chance."
    )


# The keys of the metrics over all findings that `images_add` takes, in its order.
IMAGES_ADD = (
    "metadata_auroc_macro",
    *("gain_over_metadata_macro", "gain_over_metadata_macro_ci95"),
    *("gain_of_combined_macro", "gain_of_combined_macro_ci95"),
)


# The gaps of a group, by score: the keys of the gap and of the smallest one that would show.
GAPS = {
    "AUROC": ("gap", "smallest_gap"),
    "sensitivity": ("sensitivity_gap", "smallest_sensitivity_gap"),
    "specificity": ("specificity_gap", "smallest_specificity_gap"),
}


def subgroups_said(groups: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence on the flagged groups, or that there are none; None without any interval.

    Args:
        groups: as `subgroups` of the metrics.
    """
    keys = [f"{gap}_ci95_simultaneous" for gap, _ in GAPS.values()]
    gaps = sum(row.get(key) is not None for row in groups for key in keys)
    if not gaps:
        return None
    told: dict[str, str] = {}
    sizes = Counter(row["by"] for row in groups if row["auroc_macro"] is not None)
    for row in groups:
        if not row["flagged_by"] or (sizes[row["by"]] == 2 and row["by"] in told):
            continue  # two groups share one gap
        apart = ", ".join(f"{name} {signed(row[GAPS[name][0]])}" for name in row["flagged_by"])
        key = row["by"] if sizes[row["by"]] == 2 else f"{row['by']} {row['group']}"
        told[key] = f"{row['by']} {row['group']} ({apart})"
    if told:
        groups_told = "; ".join(told.values())
        return f"Subgroups apart from the others, {gaps} gaps looked at: {groups_told}."
    said = f"Subgroups: none of {gaps} gaps in AUROC, sensitivity and specificity can be shown"
    return f"{said}{_smallest_said(groups)}."


def _smallest_said(groups: Sequence[Mapping[str, Any]]) -> str:
    """How small a gap the smallest group could have shown."""
    known = [row for row in groups if row.get("smallest_gap") is not None]
    if not known:
        return ""
    row = min(known, key=lambda row: row["patients"])
    return (
        "; the smallest group that can be told apart, "
        f"{row['by']} {row['group']} ({row['patients']} patients), would "
        f"have shown one in AUROC from {decimal(row['smallest_gap'])} on"
    )


def metrics_table(metrics: Mapping[str, Any], *, where: str = "Test") -> Table:
    """The table that ends a run: the headline, and each finding.

    Args:
        where: the side that the images are of, for the title.
    """
    caption = (
        f"label accuracy {percent(metrics['label_accuracy'])}, and "
        f"{percent(metrics['always_negative_accuracy'])} for always answering no finding"
    )
    if said := images_add(*(metrics[name] for name in IMAGES_ADD)):
        caption = f"{caption}\n{said}"
    if said := subgroups_said(metrics["subgroups"]):
        caption = f"{caption}\n{said}"
    table = Table(
        title=f"{where}: {metrics['images']} images of {metrics['patients']} patients",
        caption=Text(caption),
        caption_justify="left",
    )
    table.add_column("finding")
    for heading in ("positives", "AUROC", "95 % interval", "AP"):
        table.add_column(heading, justify="right")
    for name, row in metrics["per_finding"].items():
        table.add_row(
            readable(name),
            str(row["positives"]),
            decimal(row["auroc"]),
            interval(row["auroc_ci95"], joint=" to "),
            decimal(row["average_precision"]),
        )
    table.add_section()
    table.add_row(
        f"macro over {metrics['auroc_macro_findings']}",
        "",
        decimal(metrics["auroc_macro"]),
        interval(metrics["auroc_macro_ci95"], joint=" to "),
        decimal(metrics["average_precision_macro"]),
        style="bold",
    )
    return table
