"""How far probabilities can be taken at their word: Brier score and calibration error."""

from typing import Any

import numpy as np

from xray_lightning.evaluation.arrays import Bools, Floats

# As many bins of equal width as Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
# The error depends on their number: compare it only with one of 15 bins.
BINS = 15


def reliability(probabilities: Floats, labels: Bools) -> dict[str, Any]:
    """Brier score, expected calibration error and reliability curve of one finding.

    The Brier score is the mean of (probability - label)^2 (Brier, Monthly Weather Review 1950).
    The expected calibration error is the mean over the images of the distance between their bin's
    mean probability and its share of positives (Naeini et al., AAAI 2015), here of the
    probability of the finding, not of the likelier answer. Of a rare finding almost all images lie
    in the lowest bin, so that a small error says little: look at the curve too.

    Args:
        probabilities: in 0..1, shape (N,), N at least 1.
        labels: shape (N,).

    Returns:
        `brier`, `expected_calibration_error`, and `reliability`: each bin that has images, with
        `low` and `high` (a probability on an edge is in the lower bin), `images`,
        `mean_probability` and `share_positive`.
    """
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.searchsorted(edges[1:-1], probabilities, side="left")
    images = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(images)
    mean = np.bincount(bins, weights=probabilities, minlength=BINS)[filled] / images[filled]
    share = np.bincount(bins, weights=labels, minlength=BINS)[filled] / images[filled]
    error = np.sum(images[filled] * np.abs(mean - share)) / len(labels)
    return {
        "brier": float(np.mean((probabilities - labels) ** 2)),
        "expected_calibration_error": float(error),
        "reliability": [
            {
                "low": float(edges[place]),
                "high": float(edges[place + 1]),
                "images": int(images[place]),
                "mean_probability": float(mean[i]),
                "share_positive": float(share[i]),
            }
            for i, place in enumerate(filled)
        ],
    }
