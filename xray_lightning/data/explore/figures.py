"""Figures of a data set: counts, co-occurrence, ages, views, and images with their gray levels."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from xray_lightning.data.decode_resize import Gray
from xray_lightning.data.explore.measure import (
    AGE_STEP,
    ALL,
    BRIGHT,
    DARK,
    FLAT_BRIGHT,
    FLAT_DARK,
    MOST_IMAGES,
    Exposure,
    GrayLevels,
    Numbers,
    gray_levels,
    histogram,
)
from xray_lightning.errors import printable
from xray_lightning.findings import NO_FINDING
from xray_lightning.html.figures import COLOURS, GRID, INK, dress, png
from xray_lightning.terminal import readable

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
    """Heat map: of the images with the row's finding, the share that also has the column's."""
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
            text, colour = f"{100 * shares[row, column]:.0f}", "white" if dark else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    form = StrMethodFormatter("{x:.0%}")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, format=form)
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
    """Images by view and sex: bars side by side for each view, each with its number."""
    figure, axes = _small("Views")
    counts = numbers.views
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
    """Names of findings as text, with "$" escaped, which would start a formula in Matplotlib."""
    return [readable(name).replace("$", r"\$") for name in names]


COLUMNS, ROWS = 5, 4
EXPOSURE_COLOURS = {
    Exposure.OVER: COLOURS[0],
    Exposure.UNDER: COLOURS[5],
    Exposure.PADDED: COLOURS[3],
    Exposure.CORRECT: COLOURS[2],
}
_MARKERS = {Exposure.OVER: "v", Exposure.UNDER: "^", Exposure.PADDED: "s", Exposure.CORRECT: "o"}
_LINE = 24  # characters per line under an image of the grid


@dataclass(frozen=True)
class Shown:
    """An image with its name and its findings."""

    name: str
    pixels: Gray
    findings: Sequence[str]


def grid_figure(images: Sequence[Shown]) -> bytes:
    """Up to `COLUMNS` x `ROWS` images with their findings."""
    rows = max(1, -(-len(images) // COLUMNS))
    figure = Figure(figsize=(7.6, 1.8 * rows), layout="constrained")
    cells = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in cells:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes, shown in zip(cells, images, strict=False):
        _draw(axes, shown.pixels)
        text = readable(", ".join(shown.findings)) or "No finding"
        lines = textwrap.wrap(printable(text), _LINE, max_lines=2, placeholder=" ...")
        axes.set_xlabel("\n".join(lines), fontsize=7, color=INK, labelpad=3, parse_math=False)
    return png(figure)


def levels_figure(images: Sequence[Shown]) -> bytes:
    """Each image beside the histogram of its gray levels, as the paper's Figure 2."""
    figure = Figure(figsize=(7.0, 2.35 * len(images)), layout="constrained")
    cells = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 1.9))
    for (left, right), shown in zip(cells, images, strict=True):
        levels = gray_levels(shown.pixels)
        left.set_axis_off()
        _draw(left, shown.pixels)
        name = _shortened(shown.name)
        left.set_title(name, loc="left", fontsize=8.5, color=INK, parse_math=False)
        _histogram(right, shown.pixels, levels)
    cells[-1, 1].set_xlabel("gray level, black to white", color=INK)
    return png(figure)


def exposures_figure(levels: Mapping[str, GrayLevels]) -> bytes:
    """Scatter plot of every image's mean and standard deviation, with the classes' limits."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Exposure of each image, without its padding")
    of_class: dict[Exposure, list[tuple[float, float]]] = {kind: [] for kind in Exposure}
    for one in levels.values():
        of_class[one.exposure].append((one.inside_mean, one.inside_std))
    total = max(1, len(levels))
    drawn = max((len(points) for points in of_class.values()), default=0)
    for kind in (Exposure.CORRECT, Exposure.OVER, Exposure.UNDER, Exposure.PADDED):
        points = of_class[kind]
        means, deviations = np.reshape(points, (-1, 2)).T
        axes.scatter(
            means,
            deviations,
            s=9 if drawn > 300 else 18,
            marker=_MARKERS[kind],
            color=EXPOSURE_COLOURS[kind],
            alpha=0.55 if drawn > 300 else 0.8,
            linewidth=0,
            label=f"{kind.value}: {len(points):,} ({100 * len(points) / total:.1f} %)",
        )
    for x, y in (((0, DARK, DARK), FLAT_DARK), ((1, BRIGHT, BRIGHT), FLAT_BRIGHT)):
        axes.plot(x, (y, y, 0), "--", color=INK, linewidth=1.0)
    drawn_levels = [one.inside_std for one in levels.values() if one.padding < 1]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max([0.36, *(level + 0.02 for level in drawn_levels)]))
    axes.set_xlabel("mean gray level", color=INK)
    axes.set_ylabel("standard deviation", color=INK)
    legend = axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    return png(figure)


def _draw(axes: Axes, pixels: Gray) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")


def _histogram(axes: Axes, pixels: Gray, levels: GrayLevels) -> None:
    shares = histogram(pixels)
    edges = np.linspace(0, 1, len(shares) + 1)
    colour = EXPOSURE_COLOURS[levels.exposure]
    dress(axes, levels.exposure.value.capitalize())
    axes.stairs(shares, edges, fill=True, color=colour, alpha=0.85)
    axes.axvline(levels.mean, color=INK, linewidth=1.2)
    axes.axvspan(levels.mean - levels.std, levels.mean + levels.std, color=INK, alpha=0.08, lw=0)
    # A bar of pure black would flatten all others: it is cut, and its height written beside it.
    second, tallest = np.sort(shares)[-2:].tolist()
    cut = tallest > 3 * second > 0
    top = 1.25 * (second if cut else tallest)
    axes.set_ylim(0, top)
    axes.set_xlim(0, 1)
    if cut:
        place = (edges[int(np.argmax(shares)) + 1], 0.97 * top)
        side = "left" if place[0] < 0.9 else "right"
        axes.annotate(f" {100 * tallest:.0f} %", place, ha=side, va="top", fontsize=8.5, color=INK)
    text = f"mean {levels.mean:.3f}, std {levels.std:.3f}"
    if levels.padding >= 0.005:
        text += f", padding {100 * levels.padding:.0f} %"
    axes.set_title(text, loc="right", fontsize=8.5, color=INK)
    axes.set_ylabel("share of pixels", color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, place: f"{100 * share:g} %"))


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 28 else f"...{name[-25:]}"
