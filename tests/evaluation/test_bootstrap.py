"""Resamples of patients: weights equal repeated rows, and intervals hold what they promise."""

from collections.abc import Callable
from functools import partial
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from predicted import all_or_a_tenth
from sklearn.metrics import average_precision_score, roc_auc_score

from xray_lightning.evaluation.bootstrap import (
    Ranking,
    interval95,
    mean_of_defined,
    patient_draws,
    resampled,
    sums_before,
)
from xray_lightning.runs.predictions import ENOUGH_PATIENTS

Array = npt.NDArray[Any]


def drawn_scores(decimals: int, share: float) -> tuple[Array, Array, Array]:
    """500 scores with ties, labels of both classes, and how often each counts, from 0 to 3."""
    draw = np.random.default_rng(decimals)
    scores = draw.random(500).round(decimals)
    labels = draw.random(500) < share
    labels[:2] = [False, True]
    weights = draw.integers(0, 4, 500)
    weights[:2] = 1
    return scores, labels, weights


@pytest.mark.parametrize("decimals", [0, 1, 2, 16])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_weighted_scores_equal_scikit_learn_on_repeated_rows(decimals: int, share: float) -> None:
    scores, labels, weights = drawn_scores(decimals, share)
    rows = np.repeat(np.arange(500), weights)
    found = Ranking.of(scores, labels).scores(weights)
    assert found.auroc == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-9)
    assert found.average_precision == pytest.approx(
        average_precision_score(labels[rows], scores[rows]), abs=1e-9
    )
    assert Ranking.of(scores, labels).auroc(weights) == found.auroc


def test_weights_need_not_be_whole() -> None:
    scores, labels, weights = drawn_scores(1, 0.3)
    found = Ranking.of(scores, labels).scores(weights * 0.37)
    assert found == pytest.approx(
        (
            roc_auc_score(labels, scores, sample_weight=weights),
            average_precision_score(labels, scores, sample_weight=weights),
        ),
        abs=1e-9,
    )


def test_a_ranking_may_be_of_some_images_or_hold_an_image_several_times() -> None:
    scores, labels, weights = drawn_scores(2, 0.3)
    some = np.flatnonzero(np.arange(500) % 3 == 1)
    part = Ranking.of(scores[some], labels[some], images=some)
    kept = np.repeat(some, weights[some])
    assert part.auroc(weights) == pytest.approx(roc_auc_score(labels[kept], scores[kept]))
    twice = Ranking.of(
        np.tile(scores, 2), np.append(labels, labels), images=np.tile(np.arange(500), 2)
    )
    assert twice.scores(weights) == pytest.approx(Ranking.of(scores, labels).scores(weights))


@pytest.mark.parametrize("counted", ["positives", "negatives", "none"])
def test_without_weight_on_one_class_no_score_exists(counted: str) -> None:
    scores, labels, _ = drawn_scores(2, 0.3)
    weights = {"positives": labels, "negatives": ~labels, "none": np.zeros(500)}[counted]
    ranking = Ranking.of(scores, labels)
    assert np.isnan(ranking.scores(weights.astype(np.int64))).all()
    assert np.isnan(ranking.auroc(weights.astype(np.int64)))


@pytest.mark.parametrize("label", [True, False])
def test_a_ranking_of_one_class_has_no_score(label: bool) -> None:
    ranking = Ranking.of(np.array([0.2, 0.4]), np.array([label, label]))
    assert np.isnan(ranking.scores(np.ones(2))).all()
    assert np.isnan(Ranking.of(np.empty(0), np.empty(0, dtype=bool)).scores(np.ones(0))).all()


def test_sums_before_are_exact() -> None:
    assert sums_before(np.array([3, 0, 4])).tolist() == [0, 3, 3, 7]
    assert sums_before(np.array([], dtype=np.int64)).tolist() == [0]


def test_draws_follow_from_seed_and_number_of_patients_alone() -> None:
    first, again = (list(patient_draws(20, resamples=6, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:2], list(patient_draws(20, resamples=2, seed=3)))
    assert (np.array(first) != list(patient_draws(20, resamples=6, seed=4))).any()


def test_all_statistics_are_of_the_same_draws() -> None:
    plain, draws = resampled(
        lambda drawn: {"first": drawn[:1] * 1.0, "all": drawn * 1.0},
        patients=4,
        resamples=9,
        seed=0,
    )
    assert plain["all"].tolist() == [1, 1, 1, 1]
    assert draws["all"].shape == (9, 4)
    np.testing.assert_array_equal(draws["first"][:, 0], draws["all"][:, 0])
    _, none = resampled(lambda drawn: {"all": drawn * 1.0}, patients=4, resamples=0, seed=0)
    assert none["all"].shape == (0, 4)


def test_undefined_resamples_are_left_out_of_intervals_and_means() -> None:
    values = np.array([[1.0, 3.0], [np.nan, 5.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(mean_of_defined(values), [2.0, 5.0, np.nan])
    assert interval95(np.append(np.arange(101.0), np.nan)) == [2.5, 97.5]
    assert interval95(np.array([np.nan])) is None


def clustered(draw: np.random.Generator, *, patients: int, separation: float) -> Any:
    """Patients of 1 to 4 images each, alike in labels and scores.

    A score is normal with variance 1, half of it the patient's own, and higher by `separation`
    with the finding.
    """
    of = np.repeat(np.arange(patients), draw.integers(1, 5, patients))
    prone = draw.beta(0.6, 1.0, patients)[of]
    labels = draw.random(len(of)) < prone
    shared, own = draw.normal(size=patients)[of], draw.normal(size=len(of))
    return np.sqrt(0.5) * (shared + own) + separation * labels, labels, of


def share_held(sets: int, data: Callable[[], tuple[Array, Array, Array]], *, truth: float) -> float:
    """The share of simulated data sets whose interval of AUROC holds the truth.

    Args:
        data: draws scores, labels and patients of one, each of shape (N,).
    """
    held = 0
    for seed in range(sets):
        scores, labels, of = data()
        ranking = Ranking.of(scores, labels)
        draws = patient_draws(int(of.max()) + 1, resamples=400, seed=seed)
        low, high = interval95(np.array([ranking.auroc(drawn[of]) for drawn in draws])) or (1, 0)
        held += low <= truth <= high
    return held / sets


def true_auroc(separation: float) -> float:
    """Of two images of different patients, whose scores have variance 1."""
    return (1 + erf(separation / 2)) / 2


@all_or_a_tenth(300, low=0.92, high=0.98)
def test_the_interval_holds_the_true_auroc_as_often_as_it_says(
    sets: int, low: float, high: float
) -> None:
    draw = np.random.default_rng(0)
    data = partial(clustered, draw, patients=100, separation=1.0)
    assert low <= share_held(sets, data, truth=true_auroc(1.0)) <= high


@pytest.mark.parametrize("positives", [ENOUGH_PATIENTS, 2 * ENOUGH_PATIENTS])
@all_or_a_tenth(200, low=0.88, high=0.98)
def test_the_interval_of_a_rare_finding_holds_the_truth_nine_times_in_ten(
    sets: int, low: float, high: float, positives: int
) -> None:
    """With fewer patients than have an interval it would not: 73 times in 100 with three."""
    draw, patients = np.random.default_rng(0), np.arange(200)
    labels = patients < positives

    def data() -> tuple[Array, Array, Array]:
        return draw.normal(size=200) + 0.7 * labels, labels, patients

    assert low <= share_held(sets, data, truth=true_auroc(0.7)) <= high
