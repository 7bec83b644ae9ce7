"""Loss curves as PNG: the paper's Figures 3-7, with the validation loss that it leaves out."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xray_lightning.evaluation.record import Run
from xray_lightning.page.png import COLOURS, INK, dress, png

_STYLES = ("-", "--", ":")
_LEGEND_ROWS = 18  # as many as fit beside the axes
_LONGEST_LABEL, _LONGEST_TITLE = 40, 66  # characters that leave room for the axes


def has_losses(run: Run) -> bool:
    """Whether there is any loss to draw."""
    return any(e.train_loss is not None or e.val_loss is not None for e in run.history)


def loss_curve(run: Run, *, title: str) -> bytes:
    """The training and validation loss of one run by epoch, as PNG bytes."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, run, "train", label="training", colour=COLOURS[0], style="-")
    _draw(axes, run, "val", label="validation", colour=COLOURS[1], style="-")
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
        for axes, which in ((train, "train"), (val, "val")):
            _draw(axes, run, which, label=label, colour=colour, style=style)
    _dress(train, "Training loss")
    _dress(val, "Validation loss")
    train.set_ylabel("loss", color=INK)
    _outside_legend(figure, train)
    return png(figure)


def _draw(axes: Axes, run: Run, which: str, *, label: str, colour: str, style: str) -> None:
    epochs = [epoch.number + 1 for epoch in run.history]
    losses = [e.train_loss if which == "train" else e.val_loss for e in run.history]
    shown = [math.nan if loss is None else loss for loss in losses]
    name = _shortened(label, _LONGEST_LABEL)
    if name.startswith("_"):  # which matplotlib would leave out of the legend
        name = f" {name}"
    axes.plot(epochs, shown, style, color=colour, label=name, linewidth=1.8, marker="o", ms=3.5)


def _dress(axes: Axes, title: str) -> None:
    dress(axes, _shortened(title, _LONGEST_TITLE))
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _outside_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    left_out = len(handles) - _LEGEND_ROWS
    legend = figure.legend(
        handles[:_LEGEND_ROWS],
        labels[:_LEGEND_ROWS],
        loc="outside right upper",
        frameon=False,
        labelcolor=INK,
        title=f"(first {_LEGEND_ROWS} of {len(handles)})" if left_out > 0 else None,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a run's name is no formula
