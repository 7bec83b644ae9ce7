"""ROC and precision-recall curves against scikit-learn, and what thinning leaves of them."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from xray_lightning.report.plots import (
    MOST_POINTS,
    Curve,
    precision_recall_curve,
    roc_curve,
    thinned,
)

OFFICIAL = 25_596  # images of NIH's official test list
FAR = 0.002


def drawn(images: int, *, prevalence: float, seed: int, ties: bool = False):
    rng = np.random.default_rng(seed)
    labels = rng.random(images) < prevalence
    scores = rng.normal(1.2 * labels, 1.0)
    return (np.round(scores, 1) if ties else scores), labels


def distances(curve: Curve, kept: Curve) -> np.ndarray:
    """How far points of a curve are from the polyline through the kept ones."""
    points = np.stack([curve.x, curve.y], axis=1)[::3, None]  # a third of them will do
    ends = np.stack([kept.x, kept.y], axis=1)
    starts, steps = ends[:-1], np.diff(ends, axis=0)
    lengths = np.maximum((steps**2).sum(axis=1), 1e-30)
    along = np.clip(((points - starts) * steps).sum(axis=2) / lengths, 0, 1)
    nearest = starts + along[..., None] * steps
    return np.sqrt(((points - nearest) ** 2).sum(axis=2)).min(axis=1)


@pytest.mark.parametrize("ties", [False, True])
def test_the_areas_below_the_curves_are_auroc_and_average_precision(ties: bool) -> None:
    scores, labels = drawn(500, prevalence=0.2, seed=1, ties=ties)
    roc, recall = roc_curve(scores, labels), precision_recall_curve(scores, labels)
    assert auc(roc.x, roc.y) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    area = np.sum(np.diff(recall.x) * recall.y[1:])
    assert area == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("make", [roc_curve, precision_recall_curve])
@pytest.mark.parametrize("images, prevalence", [(OFFICIAL, 0.1), (OFFICIAL, 0.003), (1045, 0.3)])
def test_a_thinned_curve_has_few_points_and_the_same_shape_and_area(
    make, images: int, prevalence: float
) -> None:
    curve = make(*drawn(images, prevalence=prevalence, seed=3))
    kept = thinned(curve)
    assert len(kept.x) <= MOST_POINTS
    assert len(kept.x) < len(curve.x)
    assert distances(curve, kept).max() < FAR
    assert abs(auc(kept.x, kept.y) - auc(curve.x, curve.y)) < FAR
    assert set(zip(kept.x, kept.y, strict=True)) <= set(zip(curve.x, curve.y, strict=True))


def test_a_curve_that_no_few_points_draw_gets_as_many_as_it_may() -> None:
    x = np.linspace(0, 1, 2001)
    teeth = Curve(x, np.where(np.arange(len(x)) % 2, 1.0, 0.0))
    assert len(thinned(teeth).x) <= MOST_POINTS


def test_a_curve_of_two_points_stays() -> None:
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert thinned(curve).x.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "make, label", [(roc_curve, True), (roc_curve, False), (precision_recall_curve, False)]
)
def test_a_curve_of_one_class_is_refused(make, label: bool) -> None:
    with pytest.raises(ValueError, match="needs images"):
        make(np.array([0.1, 0.2]), np.array([label, label]))
