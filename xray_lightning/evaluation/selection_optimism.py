"""Selection of the best of several models by validation: how optimistic its score is.

The best of many models scores higher on the images that it was chosen by than on others, the more
so the more models and the fewer patients there are. The excess is estimated as in Tsamardinos,
Greasidou & Borboudakis, "Bootstrapping the out-of-sample predictions for efficient and accurate
cross-validation", Machine Learning 107, 2018: on each resample of the patients the best model is
chosen anew and scored on the patients left out. Its mean gain there over the average model is the
true gain of choosing; the chosen model's gain on all patients beyond that is optimism.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_lightning.evaluation.bootstrap import (
    Ranking,
    mean_of_defined,
    patient_draws,
)
from xray_lightning.runs.predictions import (
    LABEL,
    PROBABILITY,
    Floats,
    findings_of,
)

ONE_MODEL = "there is one model, so that nothing was chosen"
OTHER_IMAGES = "their validation predictions are not of the same images and labels"
TOO_FEW = "too few validation patients: no resample has a finding on both its sides"
RESAMPLES = 200


@dataclass(frozen=True)
class Optimism:
    """What choosing the best has added to its validation score.

    Attributes:
        auroc_macro: of the best on all validation images.
        optimism: the part of it that is selection bias; None if unknown, see `reason`.
        chosen: share of the resamples that choose the same model.
    """

    auroc_macro: float | None
    optimism: float | None
    chosen: float | None
    models: int
    patients: int
    reason: str | None = None

    @property
    def corrected(self) -> float | None:
        """The score minus its optimism; None if either is unknown."""
        if self.auroc_macro is None or self.optimism is None:
            return None
        return self.auroc_macro - self.optimism


def optimism_of(
    tables: Sequence[pd.DataFrame], *, best: int, resamples: int = RESAMPLES, seed: int = 0
) -> Optimism:
    """The optimism of having chosen one of several models by its validation macro AUROC.

    Args:
        tables: the validation predictions of each model, see `read_predictions`.
        best: the place of the one that was chosen.
        resamples: of the patients.
    """
    if len(tables) < 2:
        return Optimism(None, None, None, len(tables), 0, ONE_MODEL)
    aligned = [table.set_index("image").sort_index() for table in tables]
    first = aligned[0]
    labels = list(first.filter(like=LABEL))
    if not all(table.filter(like=LABEL).equals(first[labels]) for table in aligned):
        return Optimism(None, None, None, len(tables), 0, OTHER_IMAGES)
    patients, names = pd.factorize(first["patient_id"])
    rankings = [_rankings(table) for table in aligned]
    whole = mean_of_defined(_aurocs(rankings, np.ones(len(first), dtype=np.int64)))
    gains, choices = [], []
    for drawn in patient_draws(len(names), resamples=resamples, seed=seed):
        weights = drawn[patients]
        within = mean_of_defined(_aurocs(rankings, weights))  # (models,)
        outside = mean_of_defined(_aurocs(rankings, (weights == 0).astype(np.int64)))
        if np.isnan(within).any() or np.isnan(outside).any():
            continue
        choice = int(np.argmax(within))
        choices.append(choice)
        gains.append(outside[choice] - outside.mean())
    value = None if np.isnan(whole[best]) else float(whole[best])
    if value is None or not gains:
        return Optimism(value, None, None, len(tables), len(names), TOO_FEW)
    return Optimism(
        auroc_macro=value,
        optimism=float(whole[best] - whole.mean() - np.mean(gains)),
        chosen=float(np.mean(np.array(choices) == best)),
        models=len(tables),
        patients=len(names),
    )


def _rankings(table: pd.DataFrame) -> list[Ranking]:
    return [
        Ranking.of(
            table[f"{PROBABILITY}{finding}"].to_numpy(dtype=np.float64),
            table[f"{LABEL}{finding}"].to_numpy() == 1,
        )
        for finding in findings_of(table.columns, what="the validation predictions")
    ]


def _aurocs(rankings: Sequence[Sequence[Ranking]], weights: np.ndarray) -> Floats:
    """AUROC of each model and finding, shape (models, findings)."""
    return np.array([[ranking.auroc(weights) for ranking in one] for one in rankings])
