"""The figures that count: findings, what goes with what, ages, views, images of a patient."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from xray_lightning.data.explore.numbers import AGE_STEP, ALL, MOST_IMAGES, Numbers
from xray_lightning.findings import NO_FINDING
from xray_lightning.page.png import COLOURS, GRID, INK, dress, png

MOST_BARS, MOST_CELLS = 40, 24  # findings that a figure has room for
SEX_COLOURS = {"female": COLOURS[1], "male": COLOURS[0], "unknown": "#999999"}
SIDE_NAMES = {"train": "training", "val": "validation", "test": "test", ALL: "all"}
_THOUSANDS = StrMethodFormatter("{x:,.0f}")


def findings_figure(numbers: Numbers, names: list[str]) -> bytes:
    """Positives of each finding, stacked by side, with their share of all images."""
    rows = [NO_FINDING, *names][::-1]
    counts = numbers.counts.loc[rows]
    images = max(1, numbers.images)
    figure = Figure(figsize=(6.4, 1.1 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Images with each finding")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    start = np.zeros(len(rows))
    for side, colour in zip(numbers.sides or (ALL,), COLOURS, strict=False):
        values = counts[side].to_numpy(dtype=float)
        label = SIDE_NAMES[side] if numbers.sides else None
        axes.barh(range(len(rows)), values, left=start, color=colour, height=0.72, label=label)
        start += values
    for place, (end, total) in enumerate(zip(start, counts[ALL], strict=True)):
        text = f" {total:,} ({100 * total / images:.1f} %)"
        axes.text(end, place, text, va="center", fontsize=8, color=INK)
    axes.set_xlim(0, max(1.0, 1.2 * float(start.max())))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), _shown(rows))
    axes.set_xlabel("images", color=INK)
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0, labelsize=9)
    if numbers.sides:
        axes.legend(frameon=False, labelcolor=INK, loc="lower right", fontsize=9)
    return png(figure)


def together_figure(
    together: npt.NDArray[np.int64], findings: tuple[str, ...], names: list[str]
) -> bytes:
    """Of the images with the finding of a row, the share that also has the one of a column."""
    places = [findings.index(name) for name in names]
    counts = together[np.ix_(places, places)]
    own = np.diag(counts)
    shares = counts / np.maximum(own, 1)[:, None]
    np.fill_diagonal(shares, np.nan)
    side = 2.3 + 0.36 * len(names)
    figure = Figure(figsize=(side + 0.4, side - 0.75), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#F0F0F0")
    most = float(np.nanmax(shares)) if np.isfinite(shares).any() else 0.0
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(most, 0.01))
    dress(axes, "Of the images with the row's finding, the share with the column's")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    labels = _shown(names)
    rows = [f"{name} ({count:,})" for name, count in zip(labels, own, strict=True)]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), rows)
    axes.tick_params(length=0, labelsize=8.5)
    for row, column in np.ndindex(shares.shape):
        if row != column and own[row]:
            dark = shares[row, column] > 0.6 * most
            axes.text(
                column,
                row,
                f"{100 * shares[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if dark else INK,
            )
    bar = figure.colorbar(
        image, ax=axes, shrink=0.7, pad=0.02, format=StrMethodFormatter("{x:.0%}")
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8.5)
    return png(figure)


def ages_figure(numbers: Numbers) -> bytes:
    """Images by age and sex."""
    figure, axes = _small("Ages at the time of the image")
    starts = numbers.ages.index.to_numpy(dtype=float)
    base = np.zeros(len(starts))
    for sex in numbers.ages:
        values = numbers.ages[sex].to_numpy(dtype=float)
        axes.bar(
            starts,
            values,
            bottom=base,
            width=0.9 * AGE_STEP,
            align="edge",
            color=SEX_COLOURS[str(sex)],
            label=f"{sex} ({int(values.sum()):,})",
        )
        base += values
    axes.set_xlim(0, max(100.0, float(starts.max(initial=0)) + AGE_STEP))
    axes.set_xlabel(f"age in years, in steps of {AGE_STEP}", color=INK)
    _counting(axes, "images")
    return png(figure)


def views_figure(numbers: Numbers) -> bytes:
    """Images by view and sex."""
    figure, axes = _small("Views")
    _grouped(axes, numbers.views)
    _counting(axes, "images")
    return png(figure)


def patients_figure(numbers: Numbers) -> bytes:
    """Patients by how many images they have."""
    figure, axes = _small("Images of a patient")
    patients = numbers.images_of_patients
    bars = axes.bar(np.arange(1, MOST_IMAGES + 1), patients, width=0.8, color=COLOURS[0])
    axes.bar_label(bars, [f"{n:,}" if n else "" for n in patients], fontsize=8, color=INK)
    labels = [*map(str, range(1, MOST_IMAGES)), f"{MOST_IMAGES}+"]
    axes.set_xticks(range(1, MOST_IMAGES + 1), labels)
    axes.set_xlabel("images", color=INK)
    _counting(axes, "patients", legend=False)
    return png(figure)


def _grouped(axes: Axes, counts: pd.DataFrame) -> None:
    """Bars side by side for each row, one a column, each with its number."""
    width = 0.8 / max(1, len(counts.columns))
    middle = np.arange(len(counts))
    for place, sex in enumerate(counts):
        values = counts[sex].to_numpy()
        shift = (place - (len(counts.columns) - 1) / 2) * width
        colour = SEX_COLOURS[str(sex)]
        bars = axes.bar(middle + shift, values, 0.92 * width, color=colour, label=str(sex))
        axes.bar_label(bars, [f"{n:,}" if n else "" for n in values], fontsize=8, color=INK)
    axes.set_xticks(middle, [str(view) for view in counts.index])
    axes.set_xlim(-0.6, max(len(counts) - 0.4, 1.4))


def _small(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, title)
    return figure, axes


def _counting(axes: Axes, what: str, *, legend: bool = True) -> None:
    axes.set_ylabel(what, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(_THOUSANDS)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _shown(names: list[str]) -> list[str]:
    """Names of findings as text; a "$" in one is no formula."""
    return [name.replace("_", " ").replace("$", r"\$") for name in names]
