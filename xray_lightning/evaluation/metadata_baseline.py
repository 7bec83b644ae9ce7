"""Metadata baseline: what view, age, sex and follow-up tell of each finding without an image.

Ill patients are X-rayed lying down (AP), come back, and are older, so that a few columns of a table
rank images better than chance. What a model adds to that is what its images have added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import NAN, Ranking
from xray_lightning.runs.predictions import Floats, Integers, ScoredImages, one_class

NO_METADATA = "no view, age, sex or follow-up number of training images is known"
NO_TRAINING = "the training images were not given"
STEPS = 50  # of Newton's method, which needs about eight
TOLERANCE = 1e-10

# Of a text column, the value that is 1; the numbers of the others are used as they are named.
_VALUES = {"view": ("AP", "PA"), "sex": ("M", "F")}
_NUMBERS = ("age", "log_follow_up")
FEATURES = (
    *("view_AP", "view_unknown", "sex_M", "sex_unknown"),
    *(name for number in _NUMBERS for name in (number, f"{number}_unknown")),
)


def features_of(table: pd.DataFrame) -> Floats:
    """What the baseline knows of each image, shape (N, 8), in the order of `FEATURES`.

    Args:
        table: with `view`, `sex`, `age` (years) and `follow_up` (0 for a patient's first image),
            as far as they are there; the follow-up number n is taken as log(1 + n). Where a value
            is unknown, its feature is 0 and the one after it 1.
    """
    columns: list[Any] = []
    for name, (one, other) in _VALUES.items():
        texts = table[name].astype(object) if name in table else pd.Series("", index=table.index)
        columns += [texts == one, ~texts.isin((one, other))]
    for name, change in (("age", np.asarray), ("follow_up", np.log1p)):
        given = table[name] if name in table else pd.Series(np.nan, index=table.index)
        numbers = pd.to_numeric(given, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        known = numbers >= 0  # NaN is not
        columns += [change(np.where(known, numbers, 0)), ~known]
    return np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])


@dataclass(frozen=True)
class MetadataModel:
    """Logistic regressions of the findings on metadata, fitted on training images.

    Attributes:
        images: how many they were fitted on.
        weights: of each finding, its log odds where all features are 0, then what a unit of each
            of `FEATURES` adds to them.
        undefined: findings without a regression, and why.
    """

    images: int
    weights: dict[str, tuple[float, ...]]
    undefined: dict[str, str]

    @classmethod
    def fit(cls, table: pd.DataFrame, findings: Sequence[str]) -> "MetadataModel":
        """Fit them, with the L2 penalty of scikit-learn's default (C=1) on standardised features.

        Args:
            table: training images, with a column of 0 and 1 of each finding; see `features_of`.
        """
        features = features_of(table)
        unknown = [FEATURES.index(name) for name in FEATURES if name.endswith("_unknown")]
        if not len(table) or features[:, unknown].all():
            return cls(len(table), {}, dict.fromkeys(findings, NO_METADATA))
        weights, undefined = {}, {}
        for finding in findings:
            labels = table[finding].to_numpy() == 1
            if reason := one_class(labels, "training image"):
                undefined[finding] = reason
            else:
                weights[finding] = _logistic_regression(features, labels.astype(np.float64))
        return cls(len(table), weights, undefined)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "MetadataModel | None":
        """What `to_plain` gave; None of anything else, such as an older run's record."""
        try:
            weights = {
                finding: (float(row["intercept"]), *(float(row[name]) for name in FEATURES))
                for finding, row in content["log_odds"].items()
            }
            return cls(int(content["images"]), weights, dict(content["undefined"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "log_odds": {
                finding: dict(zip(("intercept", *FEATURES), row, strict=True))
                for finding, row in self.weights.items()
            },
            "undefined": self.undefined,
        }

    def log_odds(self, table: pd.DataFrame) -> dict[str, Floats]:
        """Of each finding that has a regression, in each image of a table, shape (N,)."""
        features = features_of(table).T
        found = {}
        for finding, (intercept, *weights) in self.weights.items():
            found[finding] = np.full(len(table), intercept)
            # Not by the matrix product, which may round equal rows differently and break ties.
            for weight, column in zip(weights, features, strict=True):
                found[finding] += weight * column
        return found


def _logistic_regression(features: Floats, labels: Floats) -> tuple[float, ...]:
    """Intercept and weights, by Newton's method (Hastie et al., 2009, section 4.4.1)."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1
    inputs = np.column_stack([np.ones(len(labels)), (features - mean) / spread])
    penalty = np.diag([0.0, *np.ones(features.shape[1])])
    share = labels.mean()
    weights = np.zeros(inputs.shape[1])
    weights[0] = np.log(share / (1 - share))
    for _ in range(STEPS):
        odds = inputs @ weights
        probability = (1 + np.tanh(odds / 2)) / 2  # the logistic function, without overflow
        slope = inputs.T @ (probability - labels) + penalty @ weights
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + penalty
        step = np.linalg.solve(curvature, slope)
        weights -= step
        if np.abs(step).max() < TOLERANCE:
            break
    scaled = weights[1:] / spread
    found = (weights[0] - (scaled * mean).sum(), *scaled)
    return tuple(float(f"{value:.9g}") for value in found)  # further digits vary with the threads


@dataclass(frozen=True)
class MetadataScores:
    """AUROC of the metadata baseline as a function of how often each patient counts.

    Attributes:
        patients: number of each image's patient, shape (N,).
        rankings: one per finding; None where there is no regression.
        undefined: why, of each finding; None where there is one.
    """

    patients: Integers
    rankings: tuple[Ranking | None, ...]
    undefined: tuple[str | None, ...]

    @classmethod
    def of(cls, images: ScoredImages, model: MetadataModel | None) -> "MetadataScores":
        """Rank the images of a table; without a model nothing is defined."""
        model = model or MetadataModel(0, {}, {})
        rankings: list[Ranking | None] = []
        undefined: list[str | None] = []
        odds = model.log_odds(images.table)
        for name, labels in zip(images.findings, images.labels.T, strict=True):
            if name in odds:
                rankings.append(Ranking.of(odds[name], labels))
                undefined.append(one_class(labels))
            else:
                rankings.append(None)
                undefined.append(model.undefined.get(name, NO_TRAINING))
        return cls(images.patients, tuple(rankings), tuple(undefined))

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """AUROC of each finding, shape (findings,); NaN: undefined."""
        weights = drawn[self.patients]
        values = [NAN if one is None else one.auroc(weights) for one in self.rankings]
        return {"metadata_auroc": np.array(values)}
