"""Calibration: an increasing function that maps the model's probabilities to observed frequencies.

It is fitted on the validation images alone and stored in the checkpoint. It is never applied
silently: predictions, AUROC and operating points use the raw probabilities.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.fitted_value_checks import FittedValues
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.predictions import SAME_SCORE, Bools, Floats, one_class, validation_arrays

METHODS = ("platt", "temperature")

# A probability of 0 or 1 has no finite logit. 0 is replaced by half the smallest float32 above 0,
# and 1 by the largest float64 below 1.
LOWEST, HIGHEST = 2.0**-150, 1 - 2.0**-53
# For the fit, logits are clipped to the range in which float32 tells a probability from 1. Further
# out, some thousand labels do not determine the odds, and one label could outweigh all others.
FARTHEST = 17.0
SAME_LOGIT = 1e-5  # a smaller range of logits is lost in probabilities of seven significant digits

FALLING = "the scores do not rise with the finding, and turning them round is no calibration"
SEPARATED = "every score lies on its label's side of 0.5: no finite temperature is the best"


@dataclass(frozen=True)
class Calibration:
    """p becomes sigmoid(slope * logit(p) + intercept), finding by finding.

    The slopes are positive, so that no image changes its rank. (Only results within 1e-16 of 1,
    which float64 does not tell apart, become equal.)

    Attributes:
        method: `platt` or `temperature`.
        images: validation images that it was fitted on.
        slope, intercept: of each finding.
        undefined: why a finding is left as it is, with slope 1 and intercept 0.
    """

    method: str
    images: int
    slope: dict[str, float]
    intercept: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)

    def apply(self, probabilities: Floats, *, findings: Sequence[str] | None = None) -> Floats:
        """Calibrate raw probabilities (N, findings), as float64.

        Findings with slope 1 and intercept 0 keep their exact values.

        Args:
            probabilities: one column per finding.
            findings: the order of the columns; None for the order of `slope`.
        """
        order = tuple(self.slope) if findings is None else findings
        raw = np.asarray(probabilities, dtype=np.float64)
        slope = np.array([self.slope[finding] for finding in order])
        intercept = np.array([self.intercept[finding] for finding in order])
        same = (slope == 1) & (intercept == 0)
        calibrated: Floats = np.where(same, raw, sigmoid(slope * logit(raw) + intercept))
        return calibrated

    def to_plain(self) -> dict[str, Any]:
        """Dicts, text and numbers alone, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object, *, findings: Sequence[str] = FINDINGS) -> "Calibration":
        """Restore what `to_plain` returned, checked against these findings.

        Raises:
            UserError: one line, if `plain` is anything else.
        """
        where = "the checkpoint's calibration values"
        fitted = FittedValues(plain, findings, where)
        method = fitted.value("method")
        if method not in METHODS:
            raise UserError(f"{where} are of no known method ({printable(repr(method))[:60]})")
        smallest = float(np.finfo(np.float64).tiny)
        return cls(
            method=method,
            images=fitted.count("images"),
            slope=fitted.by_finding("slope", low=smallest),
            intercept=fitted.by_finding("intercept"),
            undefined=fitted.undefined(),
        )


@dataclass(frozen=True)
class Calibrator:
    """Fits a calibration by minimising the log loss on validation.

    Args:
        method: `platt`, a slope and an intercept of the logit for each finding (Platt 1999,
            "Probabilistic outputs for support vector machines"). As in his paper, the targets 1
            and 0 are replaced by (P + 1) / (P + 2) and 1 / (M + 2), with P positives and M
            negatives, against overconfidence from few positives. `temperature`, one slope for all
            findings, no intercept (Guo et al., "On calibration of modern neural networks", ICML
            2017).

    Raises:
        UserError: another method.
    """

    method: str = "platt"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"evaluation.calibration.method={self.method} must be one of {', '.join(METHODS)}"
            )

    def fit(self, predictions: pd.DataFrame) -> Calibration:
        """Fit on a table of validation predictions; see `validation_arrays`."""
        findings, scores, labels = validation_arrays(predictions, purpose="calibration")
        logits = np.clip(logit(scores), -FARTHEST, FARTHEST)
        if self.method == "temperature":
            shared = temperature(logits, labels)
            lines = dict.fromkeys(findings, shared if isinstance(shared, str) else (shared, 0.0))
        else:
            lines = dict(zip(findings, map(platt, logits.T, labels.T), strict=True))
        fitted = {f: (1.0, 0.0) if isinstance(line, str) else line for f, line in lines.items()}
        return Calibration(
            method=self.method,
            images=len(labels),
            slope={finding: slope for finding, (slope, _) in fitted.items()},
            intercept={finding: intercept for finding, (_, intercept) in fitted.items()},
            undefined={f: line for f, line in lines.items() if isinstance(line, str)},
        )


def logit(probabilities: Floats) -> Floats:
    """log(p / (1 - p)), with 0 and 1 moved to `LOWEST` and `HIGHEST`."""
    inside = np.clip(probabilities, LOWEST, HIGHEST)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow and with small values to full precision."""
    values: Floats = np.exp(-np.logaddexp(0.0, -logits))
    return values


def platt(logits: Floats, labels: Bools) -> tuple[float, float] | str:
    """Slope and intercept for logits and labels (N,), or why there are none."""
    reason = one_class(labels, "validation image")
    if reason is not None:
        return reason
    if np.ptp(logits) < SAME_LOGIT:
        return SAME_SCORE
    positives, images = int(labels.sum()), len(labels)
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (images - positives + 2))
    # Standardised, so that a narrow range of scores is no harder to fit than a wide one.
    middle, spread = float(logits.mean()), float(logits.std())
    inputs = np.stack([(logits - middle) / spread, np.ones(images)], axis=1)
    steep, level = _least_log_loss(inputs, targets)
    if steep <= 0:
        return FALLING
    return steep / spread, level - steep * middle / spread


def temperature(logits: Floats, labels: Bools) -> float | str:
    """One slope, 1 / temperature, for all logits and labels (N, F), or why there is none."""
    inputs, targets = logits.ravel(), labels.ravel().astype(np.float64)
    # The derivative of the log loss at slope 0: unless negative, the best slope is not positive.
    if inputs @ (0.5 - targets) >= 0:
        return FALLING
    if (inputs * (targets - 0.5) >= 0).all():
        return SEPARATED
    return _least_log_loss(inputs[:, None], targets)[0]


def _least_log_loss(inputs: Floats, targets: Floats) -> list[float]:
    """Weights (K,) that minimise the log loss of sigmoid(inputs @ weights) to targets in 0..1.

    Inputs are of shape (N, K), targets (N,). Newton's method with step halving (Lin, Lin & Weng,
    Machine Learning 2007). The loss is convex, and the callers ensure a minimum at finite weights.
    """
    weights = np.zeros(inputs.shape[1])
    scores = inputs @ weights
    loss = _log_loss(scores, targets)
    for _ in range(100):
        guess = sigmoid(scores)
        gradient = inputs.T @ (guess - targets)
        curved = (inputs * (guess * (1 - guess))[:, None]).T @ inputs
        step = np.linalg.solve(curved + 1e-12 * np.eye(len(weights)), gradient)
        if gradient @ step <= 1e-15 * len(targets):  # twice the remaining gain
            break
        size = 1.0
        while size > 1e-10:
            tried = inputs @ (weights - size * step)
            least = _log_loss(tried, targets)
            if least < loss:
                break
            size /= 2
        else:
            break  # rounding hides any further gain
        weights, scores, loss = weights - size * step, tried, least
    return [float(weight) for weight in weights]


def _log_loss(scores: Floats, targets: Floats) -> float:
    """Summed cross-entropy of the sigmoid of scores (N,) to targets (N,) in 0..1."""
    return float(np.sum(np.logaddexp(0.0, scores) - targets * scores))
