"""Intervals of all gaps together: their parts by other judges, and what they hold, simulated."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from xray_lightning.evaluation.bootstrap import resampled
from xray_lightning.evaluation.gap_intervals import (
    Gap,
    Part,
    auroc_part,
    joint_intervals,
    share_part,
)
from xray_lightning.evaluation.subgroups import Subgroups
from xray_lightning.runs.predictions import ScoredImages

AGES = np.array([9.0, 30.0, 50.0, 70.0, 85.0])
# Patients, prevalences, shares of the age bands, images a patient, likeness of a patient's images.
SCENARIOS: dict[str, dict[str, Any]] = {
    "usual": {"patients": 300, "prevalences": (0.1, 0.2, 0.3, 0.15)},
    "small": {"patients": 120, "prevalences": (0.15, 0.2, 0.3)},
    "rare": {
        "patients": 500,
        "prevalences": (0.02, 0.03, 0.05, 0.1, 0.15, 0.08),
        "bands": (0.03, 0.17, 0.4, 0.36, 0.04),
    },
    "clustered": {
        "patients": 250,
        "prevalences": (0.05, 0.1, 0.2, 0.1, 0.05),
        "likeness": 0.8,
        "images": 2.5,
    },
    "good": {
        "patients": 150,
        "prevalences": (0.06, 0.08, 0.1, 0.12),
        "signal": 2.2,
        "bands": (0.1, 0.2, 0.3, 0.3, 0.1),
    },
}


def drawn(
    seed: Any,
    *,
    patients: int,
    prevalences: tuple[float, ...],
    bands: tuple[float, ...] = (0.06, 0.2, 0.3, 0.36, 0.08),
    images: float = 1.5,
    likeness: float = 0.5,
    signal: float = 1.2,
    lost: float = 0.0,
) -> pd.DataFrame:
    """Predictions without any gap, but of AP images, whose findings raise scores by `lost` less.

    A patient's images share sex, age, and a part of their findings and of their scores.
    """
    draw = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), draw.geometric(1 / images, patients))
    size, findings = len(of), len(prevalences)
    illness = draw.normal(size=(patients, findings))[of] + draw.normal(size=(size, findings))
    cuts = [NormalDist().inv_cdf(1 - share) for share in prevalences]
    labels = illness / np.sqrt(2) > cuts
    sex = draw.choice(["M", "F"], patients, p=[0.55, 0.45])[of]
    age = AGES[draw.choice(5, patients, p=bands)][of]
    view = np.where(draw.random(size) < (0.2 + 0.5 * draw.random(patients))[of], "AP", "PA")
    own = draw.normal(size=(patients, findings))[of] * likeness
    noise = own + draw.normal(size=(size, findings)) * np.sqrt(1 - likeness**2)
    raised = signal - lost * (view == "AP")
    scores = 1 / (1 + np.exp(-(noise + raised[:, None] * labels - signal / 2)))
    table = {"image": [f"{row:07d}" for row in range(size)], "patient_id": of}
    table |= {f"prob_F{i}": scores[:, i] for i in range(findings)}
    table |= {f"label_F{i}": labels[:, i].astype(int) for i in range(findings)}
    table |= {"age": age, "sex": sex, "view": view}
    return pd.DataFrame(table | {"follow_up": (np.r_[-1, of[:-1]] == of).astype(int)})


def groups_of(table: pd.DataFrame, *, resamples: int) -> list[dict[str, Any]]:
    """The subgroups of a table, its findings called present from 0.5 on."""
    images = ScoredImages.of(table)
    subgroups = Subgroups.of(images, called=images.scores >= 0.5)
    found = resampled(subgroups, patients=images.count, resamples=resamples, seed=0)
    return subgroups.rows(*found)


def flagged(sets: int, *, resamples: int) -> int:
    """How many of so many data sets without any gap, of all scenarios in turn, have a flag."""
    names = list(SCENARIOS)
    return sum(
        any(
            row["flagged"]
            for row in groups_of(
                drawn([seed, 7], **SCENARIOS[names[seed % len(names)]]), resamples=resamples
            )
        )
        for seed in range(sets)
    )


@pytest.mark.slow
def test_without_any_gap_at_most_one_data_set_in_twenty_has_a_flag() -> None:
    assert flagged(500, resamples=300) <= 0.05 * 500


def test_without_any_gap_a_tenth_of_the_data_sets_has_no_more_flags_than_chance_would_give() -> (
    None
):
    # Were one in twenty flagged, more would be in 0.5 % of all draws of 50.
    assert flagged(50, resamples=60) <= stats.binom.isf(0.005, 50, 0.05)


VIEWS: dict[str, Any] = {"patients": 250, "prevalences": (0.2, 0.3, 0.25)}
SIGNAL = 1.2  # of `drawn`, where nothing is lost
NORMAL = NormalDist()


def of_view_ap(seed: int, *, lost: float, resamples: int) -> dict[str, Any]:
    groups = groups_of(drawn([seed, 9], **VIEWS, lost=lost), resamples=resamples)
    return next(row for row in groups if row["group"] == "AP")


def lost_by(name: str, gap: float) -> float:
    """How much less a finding raises the scores of AP images where their gap is so large."""
    if name == "AUROC":  # of normal scores: Phi(difference of their means / sqrt 2)
        return SIGNAL - NORMAL.inv_cdf(NORMAL.cdf(SIGNAL / 2**0.5) - gap) * 2**0.5
    return SIGNAL / 2 - NORMAL.inv_cdf(NORMAL.cdf(SIGNAL / 2) - gap)


def share_found(name: str, *, sets: int, tried: int, resamples: int) -> float:
    """In how many of so many data sets a gap is flagged that is as large as could be shown."""
    key = {"AUROC": "smallest_gap", "sensitivity": "smallest_sensitivity_gap"}[name]
    lost = 0.0
    for _ in range(3):  # the smallest gap itself depends on how large the gap is
        rows = [of_view_ap(seed, lost=lost, resamples=resamples) for seed in range(tried)]
        lost = lost_by(name, float(np.mean([row[key] for row in rows])))
    seeds = range(1000, 1000 + sets)
    rows = [of_view_ap(seed, lost=lost, resamples=resamples) for seed in seeds]
    return float(np.mean([name in row["flagged_by"] for row in rows]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AUROC", "sensitivity"])
def test_four_in_five_gaps_of_the_smallest_size_that_could_be_shown_are_found(name: str) -> None:
    assert share_found(name, sets=200, tried=20, resamples=300) == pytest.approx(0.8, abs=0.08)


def test_most_gaps_of_the_smallest_size_that_could_be_shown_are_found() -> None:
    low, high = stats.binom.ppf([0.005, 0.995], 20, 0.8) / 20
    assert low <= share_found("AUROC", sets=20, tried=4, resamples=100) <= high


def images(seed: int = 0) -> tuple[Any, Any, Any]:
    """Scores with ties, labels and patients of 120 images."""
    draw = np.random.default_rng(seed)
    labels = draw.random(120) < 0.4
    return np.round(draw.normal(size=120) + labels, 1), labels, draw.integers(0, 40, 120)


def test_the_influence_of_a_patient_is_how_the_score_changes_with_its_weight() -> None:
    scores, labels, patients = images()
    ranks = np.unique(scores, return_inverse=True)[1]
    calls = scores >= 0.5
    part = auroc_part(ranks, labels, patients, 40)
    share = share_part(calls[labels], patients[labels], 40)
    step = 1e-6
    for patient in range(40):
        weights = 1 + step * (patients == patient)
        raised = roc_auc_score(labels, scores, sample_weight=weights)
        change = (raised - roc_auc_score(labels, scores)) / step
        assert part.influence[patient] == pytest.approx(change, abs=1e-5)
        raised = np.average(calls[labels], weights=weights[labels])
        change = (raised - calls[labels].mean()) / step
        assert share.influence[patient] == pytest.approx(change, abs=1e-5)


def test_of_one_image_a_patient_the_unbiased_variance_of_auroc_is_delongs() -> None:
    scores, labels, _ = images()
    part = auroc_part(np.unique(scores, return_inverse=True)[1], labels, np.arange(120), 120)
    wins = np.sign(scores[labels][:, None] - scores[~labels]) / 2 + 0.5
    judge = sum(np.var(wins.mean(axis=axis), ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    assert np.square(part.unbiased).sum() == pytest.approx(judge)
    assert np.square(part.influence).sum() < judge


def gaps_of(drawn: Any, *, patients: int = 100_000) -> list[Gap]:
    """Gaps of no size whose resamples are given, (R, gaps), each of very many patients."""
    nothing = Part(np.zeros(patients), np.zeros(patients))
    even = np.full(patients, 1 / patients)
    part = Part(even, even)
    return [Gap.of(0.0, column, [(part, nothing)]) for column in drawn.T]


def test_the_intervals_of_independent_gaps_are_sidaks_and_of_equal_ones_are_their_own() -> None:
    draws = np.random.default_rng(0).normal(scale=0.1, size=(20_000, 10))
    apart = joint_intervals(gaps_of(draws))
    sidak = 0.1 * stats.norm.isf((1 - 0.95**0.1) / 2)
    for one in apart:
        assert one is not None
        assert one.ci95[1] == pytest.approx(sidak, rel=0.03)
        assert one.smallest == pytest.approx(sidak + 0.1 * stats.norm.ppf(0.8), rel=0.03)
    alike = joint_intervals(gaps_of(np.repeat(draws[:, :1], 10, axis=1)))
    assert alike[0] is not None
    assert alike[0].ci95[1] == pytest.approx(0.1 * stats.norm.isf(0.025), rel=0.03)


@pytest.mark.parametrize("patients", [8, 13, 30])
def test_of_few_patients_the_intervals_are_those_of_students_t(patients: int) -> None:
    draws = np.random.default_rng(0).normal(scale=0.01, size=(20_000, 1))
    influence = np.random.default_rng(1).normal(size=patients)
    part, nothing = (Part(values, values) for values in (influence, np.zeros(patients)))
    gap = Gap.of(0.0, draws[:, 0], [(part, nothing)])
    (one,) = joint_intervals([gap])
    assert one is not None
    assert one.ci95[1] == pytest.approx(0.01 * stats.t.isf(0.025, gap.freedom), rel=0.03)
    squares = np.square(influence) / np.square(influence).sum()
    assert gap.freedom == pytest.approx(2 / (np.square(squares).sum() - 1 / patients))


def test_fewer_than_19_resamples_or_no_spread_give_no_interval() -> None:
    draws = np.random.default_rng(0).normal(scale=0.1, size=(19, 2))
    assert joint_intervals(gaps_of(draws[:18])) == [None, None]
    draws[:, 1] = 0.0
    first, second = joint_intervals(gaps_of(draws))
    assert first is not None
    assert second is None
    assert first.ci95[1] > np.abs(draws[:, 0]).max()  # the largest of 19, and Student's t


def test_where_all_of_a_few_patients_are_found_the_variance_is_not_none() -> None:
    hits = share_part(np.ones(10, dtype=bool), np.arange(10), 10)
    assert not hits.influence.any()
    assert hits.added == pytest.approx(1 / 10**2)  # of one more who is missed
