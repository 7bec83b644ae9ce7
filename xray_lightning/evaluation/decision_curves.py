"""Decision curves: net benefit of acting on the probabilities, against acting on all or on none.

Acting at a threshold probability pt weighs one needless action as pt / (1 - pt) of a finding acted
on in time. The net benefit is TP/n - FP/n x pt / (1 - pt). That of acting on all images is computed
alike; that of acting on none is 0 (Vickers & Elkin, Medical Decision Making 2006; 26). A model is
useful where it beats both. Intervals are from the same resamples of patients as all others, and the
gain over the better of the two is taken within each resample. If no patient below pt has the
finding, no resample shows a miss, however few these patients are: a binomial test must exclude
chance, too (`borne_out`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from xray_lightning.evaluation.abstention import misses_allowed
from xray_lightning.evaluation.bootstrap import (
    FEW_PATIENTS,
    NO_RESAMPLES,
    NO_SPREAD,
    patient_draws,
)
from xray_lightning.evaluation.resampled_scores import sums_by_patient
from xray_lightning.runs.predictions import Bools, Floats, ScoredImages, one_class

# 25 thresholds, about evenly spaced in their logarithm and denser below 10 %: prevalences lie
# between 0.2 % (hernia) and 30 %, and a curve says most around the prevalence. Fixed, so that
# runs can be compared; nobody requires more than 80 % before acting.
THRESHOLDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06),
    *(0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
)
DIGITS = 6
_DRAWS = 100  # resamples per matrix product
NOWHERE = "at no threshold does the interval of the gain over acting on all and on none exclude 0"


@dataclass(frozen=True)
class DecisionCurves:
    """Counts behind the decision curves, by patient.

    Attributes:
        counts: a row per patient with the numbers of images, of images with each finding, and of
            images at or above each threshold with and then without each finding, shape
            (patients, 1 + F + 2 x F x T). Whole numbers, whose sums float64 holds exactly in any
            order, so that a matrix product gives the same at any number of threads.
        odds: pt / (1 - pt) of each threshold, shape (T,).
    """

    images: ScoredImages
    counts: Floats
    odds: Floats

    @classmethod
    def of(cls, images: ScoredImages, probabilities: Floats) -> "DecisionCurves":
        """Count images by patient, finding and threshold.

        Args:
            images: the predictions.
            probabilities: to act on, shape (N, findings).
        """
        patients, findings, steps = images.count, len(images.findings), len(THRESHOLDS)
        # How many thresholds each probability reaches; its image counts at each of these.
        reached = np.searchsorted(THRESHOLDS, probabilities, side="right")
        cells = np.zeros((2, patients, findings, steps + 1))
        column = np.broadcast_to(np.arange(findings), reached.shape)
        patient = np.broadcast_to(images.patients[:, None], reached.shape)
        side = np.where(images.labels, 0, 1)
        np.add.at(cells, (side, patient, column, reached), 1.0)
        acted = cells[..., ::-1].cumsum(axis=-1)[..., -2::-1]  # at or above each threshold
        per_image = np.column_stack([np.ones(len(images.labels)), images.labels])
        totals = sums_by_patient(images, per_image)
        true, false = (kind.reshape(patients, -1) for kind in acted)
        odds = np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS))
        return cls(images, np.column_stack([totals, true, false]), odds)

    def net_benefit(self, drawn: Floats) -> tuple[Floats, Floats]:
        """Net benefit of the model and of acting on all, each of shape (R, findings, T).

        Args:
            drawn: how often each patient counts in each of R draws, shape (R, patients).
        """
        findings = len(self.images.findings)
        sums = drawn @ self.counts
        images, positives = sums[:, :1, None], sums[:, 1 : 1 + findings, None]
        true, false = np.split(sums[:, 1 + findings :], 2, axis=1)
        shape = (len(drawn), findings, len(self.odds))
        model = (true.reshape(shape) - false.reshape(shape) * self.odds) / images
        return model, (positives - (images - positives) * self.odds) / images

    def rows(self, *, resamples: int, seed: int, calibrated: Bools) -> dict[str, dict[str, Any]]:
        """The curve of each finding, for JSON.

        Args:
            resamples, seed: see `patient_draws`.
            calibrated: whether each finding's probabilities are calibrated, shape (findings,).
        """
        once = np.ones((1, self.images.count))
        (plain,), (treat_all,) = self.net_benefit(once)
        shape = (resamples, *plain.shape)
        drawn, gains = np.empty(shape), np.empty(shape)
        for rows_of, block in self._blocks(resamples, seed):
            model, everyone = self.net_benefit(block)
            drawn[rows_of], gains[rows_of] = model, model - np.maximum(everyone, 0)
        enough = np.logical_and(*self.images.enough())
        borne_out = self.borne_out()
        rows = {}
        for column, finding in enumerate(self.images.findings):
            why = one_class(self.images.labels[:, column])
            why = why or (None if enough[column] else FEW_PATIENTS)
            why = why or (None if resamples else NO_RESAMPLES)
            rows[finding] = {
                "of": "calibrated" if calibrated[column] else "raw",
                "thresholds": list(THRESHOLDS),
                "net_benefit": _rounded(plain[column]),
                "treat_all": _rounded(treat_all[column]),
                **_intervals(drawn[:, column], gains[:, column], borne_out[column], why),
            }
        return rows

    def borne_out(self) -> Bools:
        """Where a binomial test tells the model from acting on all and on none, shape (F, T).

        Acting on all is better if the finding's share among the images below pt is above pt, acting
        on none if its share among those at or above pt is below pt. Both must be rejected at 2.5 %
        by a binomial test (Clopper & Pearson, Biometrika 1934). As images of one patient are
        dependent, the trials are the patients on that side of pt, with the images' share of errors.
        """
        shape = (self.images.count, len(self.images.findings), len(self.odds))
        images, positives, acted = np.split(self.counts, [1, 1 + shape[1]], axis=1)
        true, false = (part.reshape(shape) for part in np.split(acted, 2, axis=1))
        left, missed = images[..., None] - true - false, positives[..., None] - true
        found = np.ones(shape[1:], dtype=bool)
        worthless = np.array(THRESHOLDS)  # share of errors at which acting so gains nothing
        for of, wrong, shares in (
            (left, missed, worthless),
            (true + false, false, 1 - worthless),
        ):
            patients = (of > 0).sum(axis=0)  # (F, T)
            errors = np.ceil(wrong.sum(axis=0) / np.maximum(of.sum(axis=0), 1) * patients)
            for place, share in enumerate(shares.tolist()):
                allowed = misses_allowed(share, 0.025, shape[0])
                found[:, place] &= errors[:, place] <= allowed[patients[:, place]]
        return found

    def _blocks(self, resamples: int, seed: int) -> Iterator[tuple[slice, Floats]]:
        """The draws in blocks: the slice of their numbers, and the draws, (R, patients)."""
        draws = patient_draws(self.images.count, resamples=resamples, seed=seed)
        for start in range(0, resamples, _DRAWS):
            block = np.array(list(islice(draws, _DRAWS)), dtype=np.float64)
            yield slice(start, start + len(block)), block


def _rounded(values: Floats) -> list[float]:
    return [float(value) for value in values.round(DIGITS) + 0.0]  # no -0.0


def _intervals(drawn: Floats, gains: Floats, borne_out: Bools, why: str | None) -> dict[str, Any]:
    """Intervals of net benefit, and the thresholds where the gain excludes 0, from draws (R, T).

    Args:
        borne_out: where `DecisionCurves.borne_out` allows it, shape (T,).
        why: the reason for no intervals; None to compute them.
    """
    names = ("net_benefit_ci95", "useful_from", "useful_to")
    if why is not None:
        return {**dict.fromkeys(names), "undefined_reason": dict.fromkeys(names, why)}
    ends = np.quantile(drawn, [0.025, 0.975], axis=0).round(DIGITS) + 0.0
    pairs = [[float(low), float(high)] if low < high else None for low, high in ends.T]
    reasons = {names[0]: NO_SPREAD} if None in pairs else {}
    lowest = np.quantile(gains, 0.025, axis=0)
    found = longest_run((lowest > 0) & borne_out)
    useful = (None, None) if found is None else (THRESHOLDS[found[0]], THRESHOLDS[found[1]])
    return {
        "net_benefit_ci95": pairs,
        **dict(zip(names[1:], useful, strict=True)),
        "undefined_reason": reasons | ({} if found else dict.fromkeys(names[1:], NOWHERE)),
    }


def longest_run(flags: Bools) -> tuple[int, int] | None:
    """First and last place of the longest run of true flags (T,), the first of equals."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2] - 1
    if not len(starts):
        return None
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])
