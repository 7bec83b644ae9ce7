"""Metadata baseline: what view, age, sex and follow-up tell of each finding without an image.

Ill patients are X-rayed lying down (AP), come back, and are older, so that a few columns of a table
rank images better than chance. What the images add is measured against this baseline: the gain of
the model alone, and that of metadata and model together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import NAN, Ranking
from xray_lightning.evaluation.calibration import FARTHEST, logit
from xray_lightning.runs.predictions import Floats, Integers, ScoredImages, one_class

NO_METADATA = "no view, age, sex or follow-up number of training images is known"
NO_TRAINING = "the training images were not given"
NO_VALIDATION = "no validation predictions to combine metadata and model on"
FEW_VALIDATION = "needs at least ten validation patients with the finding and ten without"
STEPS = 50  # of Newton's method, which needs about eight
TOLERANCE = 1e-10

# Text columns with the values coded as 1 and as 0; then the features of numeric columns.
_VALUES = {"view": ("AP", "PA"), "sex": ("M", "F")}
_NUMBERS = ("age", "log_follow_up")
FEATURES = (
    *("view_AP", "view_unknown", "sex_M", "sex_unknown"),
    *(name for number in _NUMBERS for name in (number, f"{number}_unknown")),
)


def features_of(table: pd.DataFrame) -> Floats:
    """The baseline's features of each image, shape (N, 8), in the order of `FEATURES`.

    Args:
        table: with `view`, `sex`, `age` (years) and `follow_up` (0 for a patient's first image),
            as far as it has them; the follow-up number n is taken as log(1 + n). For an unknown
            value, its feature is 0 and the next one, `..._unknown`, is 1.
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
class _Regressions:
    """Logistic regressions of the findings.

    Attributes:
        images: how many they were fitted on.
        weights: of each finding, the intercept in log odds, then the coefficient of each of
            `features`.
        undefined: findings without a regression, and why.
    """

    features: ClassVar[tuple[str, ...]]

    images: int
    weights: dict[str, tuple[float, ...]]
    undefined: dict[str, str]

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Self | None:
        """Restore what `to_plain` returned; None for anything else, such as an older record."""
        try:
            weights = {
                finding: tuple(float(row[name]) for name in ("intercept", *cls.features))
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
                finding: dict(zip(("intercept", *self.features), row, strict=True))
                for finding, row in self.weights.items()
            },
            "undefined": self.undefined,
        }


class MetadataModel(_Regressions):
    """Logistic regressions of the findings on metadata (`FEATURES`), fitted on training images."""

    features = FEATURES

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

    def log_odds(self, table: pd.DataFrame) -> dict[str, Floats]:
        """Log odds of each image of a table, shape (N,), for each finding with a regression."""
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


class CombinedModel(_Regressions):
    """Logistic regressions on metadata's log odds and the logit of a model's probability.

    They show what a model adds where metadata is known anyway, as in a clinic. They are fitted on
    validation images, on which neither the model nor the metadata's regressions were fitted.
    """

    features = ("metadata", "model")

    @classmethod
    def fit(cls, predictions: pd.DataFrame, metadata: MetadataModel) -> "CombinedModel":
        """Fit them, with the penalty of `MetadataModel.fit`.

        Args:
            predictions: of the validation images; see `Evaluator` and `features_of`.
            metadata: the baseline that gives the log odds of their metadata.
        """
        images = ScoredImages.of(predictions)
        enough = np.logical_and(*images.enough())
        odds = metadata.log_odds(images.table)
        weights, undefined = {}, {}
        for place, finding in enumerate(images.findings):
            if finding not in odds:
                undefined[finding] = metadata.undefined.get(finding, NO_TRAINING)
            elif not enough[place]:
                undefined[finding] = FEW_VALIDATION
            else:
                both = np.column_stack([odds[finding], _logits(images, place)])
                labels = images.labels[:, place].astype(np.float64)
                weights[finding] = _logistic_regression(both, labels)
        return cls(len(images.labels), weights, undefined)

    def log_odds(self, images: ScoredImages, metadata: Mapping[str, Floats]) -> dict[str, Floats]:
        """Log odds of each image of a table, shape (N,), for each finding with a regression.

        Args:
            images: with the model's probabilities.
            metadata: the log odds that metadata give these images, by finding.
        """
        found = {}
        for place, finding in enumerate(images.findings):
            if finding in self.weights and finding in metadata:
                intercept, of_metadata, of_model = self.weights[finding]
                both = of_metadata * metadata[finding] + of_model * _logits(images, place)
                found[finding] = intercept + both
        return found


def _logits(images: ScoredImages, place: int) -> Floats:
    """Logits of one finding's probabilities, clipped to +-`FARTHEST`, shape (N,)."""
    return np.clip(logit(images.scores[:, place]), -FARTHEST, FARTHEST)


Ranked = tuple[tuple[Ranking | None, ...], tuple[str | None, ...]]


@dataclass(frozen=True)
class MetadataScores:
    """AUROC of metadata, alone and with the model, as a function of how often a patient counts.

    Attributes:
        patients: number of each image's patient, shape (N,).
        alone, combined: one ranking per finding, None where there is no regression; and why there
            is none, of each finding.
    """

    patients: Integers
    alone: Ranked
    combined: Ranked

    @classmethod
    def of(
        cls,
        images: ScoredImages,
        model: MetadataModel | None,
        combined: CombinedModel | None = None,
    ) -> "MetadataScores":
        """Rank the images of a table; without a model nothing is defined."""
        model = model or MetadataModel(0, {}, dict.fromkeys(images.findings, NO_TRAINING))
        odds = model.log_odds(images.table)
        alone = _ranked(images, odds, model.undefined, lacking=NO_TRAINING)
        # Without a combined model, findings that the baseline lacks keep its reason.
        combined = combined or CombinedModel(0, {}, model.undefined)
        both = combined.log_odds(images, odds)
        return cls(
            images.patients,
            alone,
            _ranked(images, both, combined.undefined, lacking=NO_VALIDATION),
        )

    @property
    def undefined(self) -> dict[str, tuple[str | None, ...]]:
        """Why a score of a finding does not exist, by score; None where it does."""
        return {
            **dict.fromkeys(("metadata_auroc", "gain_over_metadata"), self.alone[1]),
            **dict.fromkeys(("combined_auroc", "gain_of_combined"), self.combined[1]),
        }

    def __call__(self, drawn: Integers) -> dict[str, Floats]:
        """AUROC of each finding, shape (findings,); NaN: undefined."""
        weights = drawn[self.patients]
        return {
            name: np.array([NAN if one is None else one.auroc(weights) for one in rankings])
            for name, (rankings, _) in (
                ("metadata_auroc", self.alone),
                ("combined_auroc", self.combined),
            )
        }


def _ranked(
    images: ScoredImages, odds: Mapping[str, Floats], why: Mapping[str, str], *, lacking: str
) -> Ranked:
    """Rank images by the log odds of each finding; `lacking` where `why` has no reason."""
    rankings: list[Ranking | None] = []
    undefined: list[str | None] = []
    for name, labels in zip(images.findings, images.labels.T, strict=True):
        ranked = name in odds
        rankings.append(Ranking.of(odds[name], labels) if ranked else None)
        undefined.append(one_class(labels) if ranked else why.get(name, lacking))
    return tuple(rankings), tuple(undefined)
