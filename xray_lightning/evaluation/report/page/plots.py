"""The plots of report.html, small enough to stand side by side, and one above the other on a phone.

Sizes are in pixels of a narrow page: a plot is drawn no smaller than so, and its text with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from xray_lightning.errors import printable
from xray_lightning.evaluation.record import Bin, Interval
from xray_lightning.evaluation.report.page.curves import Curve
from xray_lightning.page.svg import (
    INK,
    MUTED,
    PAPER,
    POINTS,
    SERIES,
    drawing,
    inline,
)

SMALL = (160, 160)  # two of them side by side on a phone
WIDE = 336  # one on a phone
FEWEST = 5  # images in a bin of a reliability curve that is drawn
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LONGEST_LABEL = 20  # characters beside a forest plot


@dataclass(frozen=True)
class Line:
    """One line of a plot by epoch; `number` is that of its colour, style and marker, from 0."""

    number: int
    epochs: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot: a value, its interval, and what stands at both sides of it."""

    label: str
    value: float
    interval: Interval | None
    remark: str
    flagged: bool = False


def roc_plot(curve: Curve, *, point: tuple[float, float] | None, name: str, text: str) -> Markup:
    """A ROC curve with the line of chance and, as a dot, the operating point."""
    with drawing():
        figure, axes = _unit_square("1 \N{MINUS SIGN} specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.0)
        axes.plot(curve.x, curve.y, color=SERIES[0], clip_on=False)
        _mark(axes, point)
        return inline(figure, name=name, text=text)


def precision_recall_plot(
    curve: Curve, *, prevalence: float, point: tuple[float, float] | None, name: str, text: str
) -> Markup:
    """A precision-recall curve with chance, which is the prevalence, and the operating point."""
    with drawing():
        figure, axes = _unit_square("recall (sensitivity)", "precision")
        axes.plot([0, 1], [prevalence, prevalence], "--", color=MUTED, linewidth=1.0)
        axes.plot(curve.x, curve.y, color=SERIES[0], clip_on=False)
        _mark(axes, point)
        return inline(figure, name=name, text=text)


def reliability_plot(
    raw: Sequence[Bin], calibrated: Sequence[Bin] | None, *, name: str, text: str
) -> Markup:
    """What share was positive at each probability; the larger the marker, the more images.

    Bins of fewer than `FEWEST` images are left out: their share is hardly more than a coin's.
    """
    raw, calibrated = _drawn(raw), _drawn(calibrated or ())
    bins = [*raw, *calibrated]
    reach = max((max(b.mean_probability, b.share_positive) for b in bins), default=1.0)
    end = next((step for step in (0.2, 0.4, 0.6) if reach <= step * 0.97), 1.0)
    with drawing():
        figure, axes = _unit_square("probability given", "share positive", end=end)
        axes.plot([0, end], [0, end], "--", color=MUTED, linewidth=1.0)
        most = max((b.images for b in bins), default=1)
        for number, line in enumerate((raw, calibrated)):
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
            axes.set_ylim(0, 1.5 * max(values))  # else a constant looks like what it is not
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
        axes.set_yticks(range(len(rows)), [_shortened(row.label) for row in rows], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axes.set_xlabel(xlabel)
        return inline(figure, name=name, text=text)


def bar_plot(parts: Sequence[tuple[int, float]], *, xlabel: str, name: str, text: str) -> Markup:
    """One bar of parts that follow each other, each with the number of its colour, from 0."""
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


def _drawn(bins: Sequence[Bin]) -> list[Bin]:
    return [b for b in bins if b.images >= FEWEST] or list(bins)


def _mark(axes: Axes, point: tuple[float, float] | None) -> None:
    if point is not None:
        axes.plot(*point, "o", color=SERIES[1], markerfacecolor=PAPER, mew=1.6, ms=6, clip_on=False)


def _figure(
    size: tuple[int, int], *, left: int, right: int, bottom: int, top: int
) -> tuple[Figure, Axes]:
    """A figure of so many pixels and the axes that leave so many on each side."""
    width, height = size
    figure = Figure(figsize=(width / POINTS, height / POINTS))
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _shortened(label: str) -> str:
    label = printable(label)
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
