"""Plots of the report: SVG for report.html, small enough to stand side by side, and PNG losses.

Sizes of an SVG are in pixels on a narrow page; no page shows a plot, or its text, smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from xray_lightning.errors import printable, shortened
from xray_lightning.html.figures import (
    COLOURS,
    INK,
    MUTED,
    PAPER,
    POINTS,
    SERIES,
    SVG_INK,
    drawing,
    dress,
    inline,
    png,
)
from xray_lightning.runs.run_folder import Run
from xray_lightning.runs.schema import Bin, Interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MOST_POINTS = 300
TOLERANCE = 0.001  # a fifth of a pixel in a plot of 200 pixels


@dataclass(frozen=True)
class Curve:
    """Points (N,) of a curve in the unit square, in the order of a falling threshold."""

    x: Floats
    y: Floats


def roc_curve(scores: Floats, labels: Bools) -> Curve:
    """Sensitivity over 1 - specificity at every distinct score of scores (N,).

    Raises:
        ValueError: the labels are all the same.
    """
    hits, called = _counts(scores, labels)
    misses = called - hits
    if not hits[-1] or not misses[-1]:
        raise ValueError("a ROC curve needs images with the finding and images without it")
    x, y = misses / misses[-1], hits / hits[-1]
    return Curve(np.concatenate([[0.0], x]), np.concatenate([[0.0], y]))


def precision_recall_curve(scores: Floats, labels: Bools) -> Curve:
    """Precision over recall at every distinct score of scores (N,), in steps.

    Each precision extends back to the previous recall, so that the area under the steps is the
    average precision, as in scikit-learn's `average_precision_score`.

    Raises:
        ValueError: no label is positive.
    """
    hits, called = _counts(scores, labels)
    if not hits[-1]:
        raise ValueError("a precision-recall curve needs images with the finding")
    recall, precision = hits / hits[-1], hits / called
    x = np.stack([np.concatenate([[0.0], recall[:-1]]), recall], axis=1).ravel()
    return Curve(x, np.repeat(precision, 2))


def _counts(scores: Floats, labels: Bools) -> tuple[Floats, Floats]:
    """Numbers of positives and of images at or above each distinct score, highest score first."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each group of ties
    return np.cumsum(labels[order])[last].astype(np.float64), (last + 1).astype(np.float64)


def thinned(curve: Curve, *, most: int = MOST_POINTS, tolerance: float = TOLERANCE) -> Curve:
    """The curve drawn through at most `most` of its points.

    By the algorithm of Ramer (1972) and of Douglas and Peucker (1973): every point left out is
    within `tolerance` of the line through those kept. Where that takes more than `most` points
    the tolerance is widened.
    """
    kept = _kept(curve, tolerance)
    while kept.sum() > most:
        tolerance *= 1.25
        kept = _kept(curve, tolerance)
    return Curve(curve.x[kept], curve.y[kept])


def _kept(curve: Curve, tolerance: float) -> Bools:
    kept = np.zeros(len(curve.x), dtype=np.bool_)
    kept[[0, -1]] = True
    pending = [(0, len(curve.x) - 1)]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        # Distances of the points between them from the line segment that joins the two.
        x, y = (values[first + 1 : last] - values[first] for values in (curve.x, curve.y))
        dx, dy = curve.x[last] - curve.x[first], curve.y[last] - curve.y[first]
        length = dx * dx + dy * dy
        along = np.clip((x * dx + y * dy) / length, 0.0, 1.0) if length else np.zeros_like(x)
        distances = np.hypot(x - along * dx, y - along * dy)
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            pending += [(first, middle), (middle, last)]
    return kept


SMALL = (160, 160)  # two of them side by side on a phone
WIDE = 336  # one on a phone
FEWEST = 5  # images that a bin of a reliability curve needs to be plotted
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LONGEST_ROW_LABEL = 20  # characters beside a forest plot


@dataclass(frozen=True)
class Line:
    """One line of a plot by epoch; `number`, from 0, selects its colour, style and marker."""

    number: int
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot: a value, its interval, a label (left) and a remark (right)."""

    label: str
    value: float
    interval: Interval | None
    remark: str
    flagged: bool = False


def curve_plot(
    curve: Curve,
    labels: tuple[str, str],
    *,
    chance: tuple[float, float],
    point: tuple[float, float] | None,
    name: str,
    text: str,
) -> Markup:
    """A ROC or precision-recall curve.

    Args:
        labels: of both axes.
        chance: y of the line of chance at x = 0 and at x = 1.
        point: operating point, shown as a dot.
        name, text: see `inline`.
    """
    with drawing():
        figure, axes = _unit_square(*labels)
        axes.plot([0, 1], chance, "--", color=MUTED, linewidth=1.0)
        axes.plot(curve.x, curve.y, color=SERIES[0], clip_on=False)
        if point is not None:
            ring = axes.plot(*point, "o", color=SERIES[1], mew=1.6, ms=6, clip_on=False)
            ring[0].set_markerfacecolor(PAPER)
        return inline(figure, name=name, text=text)


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit by threshold with intervals; over `useful` it beats acting on all and none."""

    thresholds: Sequence[float]
    model: Sequence[float]
    ends: Sequence[Interval | None]
    treat_all: Sequence[float]
    useful: tuple[float, float] | None


def decision_plot(curve: NetBenefit, *, name: str, text: str) -> Markup:
    """Net benefit of the model over the threshold, with interval, beside acting on all and none."""
    known = [(pt, *ends) for pt, ends in zip(curve.thresholds, curve.ends, strict=True) if ends]
    top = max([*curve.model, *curve.treat_all, *(high for _, _, high in known), 1e-6])
    with drawing():
        figure, axes = _figure(SMALL, left=50, right=8, bottom=32, top=8)
        axes.axhline(0, color=MUTED, linewidth=1.0, linestyle=":")
        axes.plot(curve.thresholds, curve.treat_all, "--", color=SERIES[1], linewidth=1.2)
        if known:
            low, high = ([ends[side] for ends in known] for side in (1, 2))
            axes.fill_between(
                [pt for pt, *_ in known], low, high, color=SERIES[0], alpha=0.2, linewidth=0
            )
        axes.plot(curve.thresholds, curve.model, color=SERIES[0])
        if curve.useful is not None:
            level = -0.16 * top
            axes.plot(curve.useful, [level, level], color=SERIES[2], linewidth=4)
        axes.set_xscale("log")
        axes.set_xlim(curve.thresholds[0], curve.thresholds[-1])
        axes.set_ylim(-0.25 * top, 1.08 * top)
        axes.minorticks_off()
        ticks = [0.001, 0.01, 0.1, 0.8]
        axes.set_xticks(ticks, [f"{100 * tick:g}" for tick in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
        axes.set_xlabel("threshold in %")
        axes.set_ylabel("net benefit")
        return inline(figure, name=name, text=text)


def reliability_plot(
    raw: Sequence[Bin], calibrated: Sequence[Bin] | None, *, name: str, text: str
) -> Markup:
    """Share of positives by predicted probability; a larger marker stands for more images.

    Bins with fewer than `FEWEST` images are too noisy to plot, unless there are no others.
    """
    drawn = [
        [b for b in bins if b.images >= FEWEST] or list(bins) for bins in (raw, calibrated or ())
    ]
    bins = [b for line in drawn for b in line]
    reach = max((max(b.mean_probability, b.share_positive) for b in bins), default=1.0)
    end = next((step for step in (0.2, 0.4, 0.6) if reach <= step * 0.97), 1.0)
    with drawing():
        figure, axes = _unit_square("probability given", "share positive", end=end)
        axes.plot([0, end], [0, end], "--", color=MUTED, linewidth=1.0)
        most = max((b.images for b in bins), default=1)
        for number, line in enumerate(drawn):
            x = [b.mean_probability for b in line]
            y = [b.share_positive for b in line]
            axes.plot(x, y, _STYLES[number], color=SERIES[number], linewidth=1.2, clip_on=False)
            axes.scatter(
                x,
                y,
                s=[6 + 44 * b.images / most for b in line],
                marker=_MARKERS[number],
                facecolor=SERIES[number] if number == 0 else PAPER,
                edgecolor=SERIES[number],
                linewidth=1.2,
                zorder=3,
                clip_on=False,
            )
        return inline(figure, name=name, text=text)


def epoch_plot(lines: Sequence[Line], *, best: int | None, name: str, text: str) -> Markup:
    """Values by epoch, counted from 1, with a line at the best epoch."""
    with drawing():
        figure, axes = _figure((WIDE, 200), left=52, right=10, bottom=34, top=16)
        for line in lines:
            axes.plot(
                line.epochs,
                line.values,
                _STYLES[line.number // len(SERIES) % len(_STYLES)],
                color=SERIES[line.number % len(SERIES)],
                marker=_MARKERS[line.number % len(_MARKERS)],
                markersize=3.5 if len(line.epochs) <= 60 else 0,
            )
        values = [value for line in lines for value in line.values]
        if min(values) == max(values) > 0:
            # Start the y axis at 0 for a constant series; autoscaling would exaggerate it.
            axes.set_ylim(0, 1.5 * max(values))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axes.set_xlim(left=max(0.5, axes.get_xlim()[0]))
        if best is not None:
            axes.axvline(best, color=MUTED, linewidth=1.0, linestyle=":")
            first, last = axes.get_xlim()
            left = best > (first + last) / 2
            axes.annotate(
                f"best: epoch {best}",
                (best, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if left else 4, 3),
                textcoords="offset points",
                ha="right" if left else "left",
                color=MUTED,
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
        return inline(figure, name=name, text=text)


def forest_plot(
    rows: Sequence[Estimate], *, reference: float | None, xlabel: str, name: str, text: str
) -> Markup:
    """Values and their intervals one below the other; flagged ones are drawn hollow."""
    ends = [end for row in rows for end in (row.interval or (row.value, row.value))]
    low, high = min([0.5, *ends]), max([0.5, *ends])
    room = 0.04 * max(high - low, 0.1)
    with drawing():
        size = (WIDE, 18 * len(rows) + 44)
        figure, axes = _figure(size, left=116, right=62, bottom=36, top=8)
        axes.grid(axis="y", visible=False)
        axes.axvline(0.5, color=MUTED, linewidth=1.0, linestyle="--")
        if reference is not None:
            axes.axvline(reference, color=SERIES[0], linewidth=1.0, linestyle=":")
        for place, row in enumerate(rows):
            colour = SERIES[1] if row.flagged else SERIES[0]
            if row.interval:
                axes.plot(row.interval, [place, place], color=colour, solid_capstyle="butt")
            axes.plot(
                row.value,
                place,
                "D" if row.flagged else "o",
                color=colour,
                markerfacecolor=PAPER if row.flagged else colour,
                markersize=5.5,
                clip_on=False,
            )
            axes.annotate(
                row.remark,
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
            )
        axes.set_xlim(max(0.0, low - room), min(1.0, high + room))
        axes.set_ylim(len(rows) - 0.4, -0.6)
        labels = [shortened(printable(row.label), _LONGEST_ROW_LABEL, dots="…") for row in rows]
        axes.set_yticks(range(len(rows)), labels, color=SVG_INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axes.set_xlabel(xlabel)
        return inline(figure, name=name, text=text)


def bar_plot(parts: Sequence[tuple[int, float]], *, xlabel: str, name: str, text: str) -> Markup:
    """One stacked bar of `parts`, each the number of its colour, from 0, and its length."""
    with drawing():
        figure, axes = _figure((WIDE, 72), left=8, right=14, bottom=34, top=4)
        axes.grid(axis="y", visible=False)
        start = 0.0
        for number, part in parts:
            axes.barh(0, part, left=start, height=0.9, color=SERIES[number], edgecolor=PAPER)
            start += part
        axes.set_xlim(0, start)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(xlabel)
        return inline(figure, name=name, text=text)


def _unit_square(xlabel: str, ylabel: str, *, end: float = 1.0) -> tuple[Figure, Axes]:
    figure, axes = _figure(SMALL, left=36, right=8, bottom=32, top=8)
    ticks = [0, end / 2, end]
    for axis, label in ((axes.xaxis, xlabel), (axes.yaxis, ylabel)):
        axis.set_ticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axis.set_label_text(label)
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    return figure, axes


def _figure(
    size: tuple[int, int], *, left: int, right: int, bottom: int, top: int
) -> tuple[Figure, Axes]:
    """A figure of `size` pixels, and its axes with the given margins in pixels."""
    width, height = size
    figure = Figure(figsize=(width / POINTS, height / POINTS))
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


_LEGEND_ROWS = 18  # as many as fit beside the axes
_LONGEST_LABEL, _LONGEST_TITLE = 40, 66  # characters that leave room for the axes


def has_losses(run: Run) -> bool:
    """Whether there is any loss to draw."""
    return any(e.train_loss is not None or e.val_loss is not None for e in run.history)


def loss_curve(run: Run, *, title: str) -> bytes:
    """The training and validation loss of one run by epoch, as PNG bytes."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, run, "train_loss", label="training", colour=COLOURS[0], style="-")
    _draw(axes, run, "val_loss", label="validation", colour=COLOURS[1], style="-")
    _dress(axes, title)
    axes.set_ylabel("loss", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return png(figure)


def loss_overview(runs: Sequence[Run], *, labels: Sequence[str]) -> bytes:
    """The losses of all runs, training beside validation on one scale, as PNG bytes."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    train, val = figure.subplots(1, 2, sharey=True, sharex=True)
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        style = _STYLES[index // len(COLOURS) % len(_STYLES)]
        _draw(train, run, "train_loss", label=label, colour=colour, style=style)
        _draw(val, run, "val_loss", label=label, colour=colour, style=style)
    _dress(train, "Training loss")
    _dress(val, "Validation loss")
    train.set_ylabel("loss", color=INK)
    handles, shown = train.get_legend_handles_labels()
    legend = figure.legend(
        handles[:_LEGEND_ROWS],
        shown[:_LEGEND_ROWS],
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        title=f"(first {_LEGEND_ROWS} of {len(handles)})" if len(handles) > _LEGEND_ROWS else None,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a run's name is no formula
    return png(figure)


def _draw(axes: Axes, run: Run, key: str, *, label: str, colour: str, style: str) -> None:
    epochs = [epoch.epoch + 1 for epoch in run.history]
    losses = [getattr(epoch, key) for epoch in run.history]
    shown = [math.nan if loss is None else loss for loss in losses]
    name = shortened(label, _LONGEST_LABEL)
    if name.startswith("_"):  # which matplotlib would leave out of the legend
        name = f" {name}"
    axes.plot(epochs, shown, style, color=colour, label=name, linewidth=1.8, marker="o", ms=3.5)


def _dress(axes: Axes, title: str) -> None:
    dress(axes, shortened(title, _LONGEST_TITLE))
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
