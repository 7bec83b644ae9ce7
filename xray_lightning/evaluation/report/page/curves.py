"""ROC and precision-recall curves, exact, and the few points that draw them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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

    Each precision holds back to the recall before it, so that the area below is the average
    precision, as scikit-learn's `average_precision_score`.

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
    """Positives, and images, at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each run of ties
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
        distances = _distances(curve, first, last)
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            pending += [(first, middle), (middle, last)]
    return kept


def _distances(curve: Curve, first: int, last: int) -> Floats:
    """How far the points between two are from the line segment that joins them."""
    x, y = curve.x[first + 1 : last] - curve.x[first], curve.y[first + 1 : last] - curve.y[first]
    dx, dy = curve.x[last] - curve.x[first], curve.y[last] - curve.y[first]
    length = dx * dx + dy * dy
    along = np.clip((x * dx + y * dy) / length, 0.0, 1.0) if length else np.zeros_like(x)
    distances: Floats = np.hypot(x - along * dx, y - along * dy)
    return distances
