"""The figures that show images: a random grid, and images beside their gray levels."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from xray_lightning.data.explore.gray import (
    BRIGHT,
    DARK,
    FLAT_BRIGHT,
    FLAT_DARK,
    Exposure,
    GrayLevels,
    gray_levels,
    histogram,
)
from xray_lightning.data.images import Gray
from xray_lightning.errors import printable
from xray_lightning.page.png import COLOURS, INK, dress, png

COLUMNS, ROWS = 5, 4
EXPOSURE_COLOURS = {
    Exposure.OVER: COLOURS[0],
    Exposure.UNDER: COLOURS[5],
    Exposure.PADDED: COLOURS[3],
    Exposure.CORRECT: COLOURS[2],
}
_MARKERS = {Exposure.OVER: "v", Exposure.UNDER: "^", Exposure.PADDED: "s", Exposure.CORRECT: "o"}
_LINE = 24  # letters under an image of the grid


@dataclass(frozen=True)
class Shown:
    """An image, what it is called and what is said of it."""

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
        text = ", ".join(shown.findings).replace("_", " ") or "No finding"
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
        left.set_title(
            _shortened(shown.name), loc="left", fontsize=8.5, color=INK, parse_math=False
        )
        _histogram(right, shown.pixels, levels)
    cells[-1, 1].set_xlabel("gray level, black to white", color=INK)
    return png(figure)


def exposures_figure(levels: Mapping[str, GrayLevels]) -> bytes:
    """Mean and deviation of every image, with the limits of the classes."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, "Exposure of each image, without its padding")
    of_class = {
        kind: np.array(
            [(one.inside_mean, one.inside_std) for one in levels.values() if one.exposure == kind]
        ).reshape(-1, 2)
        for kind in Exposure
    }
    total = max(1, len(levels))
    drawn = max((len(points) for points in of_class.values()), default=0)
    for kind in (Exposure.CORRECT, Exposure.OVER, Exposure.UNDER, Exposure.PADDED):
        points = of_class[kind]
        axes.scatter(
            points[:, 0],
            points[:, 1],
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
        axes.annotate(
            f" {100 * tallest:.0f} %",
            place,
            ha="left" if place[0] < 0.9 else "right",
            va="top",
            fontsize=8.5,
            color=INK,
        )
    text = f"mean {levels.mean:.3f}, std {levels.std:.3f}"
    if levels.padding >= 0.005:
        text += f", padding {100 * levels.padding:.0f} %"
    axes.set_title(text, loc="right", fontsize=8.5, color=INK)
    axes.set_ylabel("share of pixels", color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, place: f"{100 * share:g} %"))


def _shortened(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 28 else f"...{name[-25:]}"
