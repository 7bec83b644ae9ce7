"""Decision curves: equal to dcurves', with intervals of the same resamples."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from dcurves import dca
from predicted import arrays, calibration, column, redrawn, table
from scipy.stats import binomtest

from xray_lightning.evaluation.bootstrap import FEW_PATIENTS, NO_RESAMPLES, NO_SPREAD
from xray_lightning.evaluation.decision_curves import (
    NOWHERE,
    THRESHOLDS,
    longest_run,
)
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS

SOME = ("Atelectasis", "Mass", "Hernia")
GRID = np.array(THRESHOLDS)


def judged(scores: Any, labels: Any) -> Any:
    """Net benefit of the model and of treating all, by dcurves, shape (2, T)."""
    data = pd.DataFrame({"label": labels.astype(int), "model": scores})
    found = dca(data=data, outcome="label", modelnames=["model"], thresholds=GRID)
    return np.array(
        [found.loc[found["model"] == name, "net_benefit"].to_numpy() for name in ("model", "all")]
    )


def by_hand(scores: Any, labels: Any) -> Any:
    """The same of all images and of those at or above each threshold, counted one by one."""
    acted = scores >= GRID[:, None]
    odds = GRID / (1 - GRID)
    with_it, without = (
        [(kind & (labels == one)).sum(axis=1) for kind in (acted, np.ones_like(acted))]
        for one in (1, 0)
    )
    return (np.array(with_it) - np.array(without) * odds) / len(labels)


def curves(predictions: pd.DataFrame, **options: Any) -> dict[str, Any]:
    rows = Evaluator(resamples=options.pop("resamples", 40), seed=2)(predictions, **options)
    return {finding: row["decision_curve"] for finding, row in rows["per_finding"].items()}


def test_the_curves_equal_dcurves() -> None:
    predictions = table()
    found = curves(predictions, resamples=0)
    scores, labels = arrays(predictions)
    for finding in SOME:
        place = FINDINGS.index(finding)
        model, treat_all = judged(scores[:, place], labels[:, place])
        by_counts = by_hand(scores[:, place], labels[:, place])
        assert by_counts == pytest.approx(np.array([model, treat_all]), abs=1e-9)
        assert found[finding]["thresholds"] == list(THRESHOLDS)
        assert found[finding]["net_benefit"] == pytest.approx(model, abs=1e-6)
        assert found[finding]["treat_all"] == pytest.approx(treat_all, abs=1e-6)
        assert found[finding]["of"] == "raw"


def test_a_score_on_a_threshold_is_acted_on() -> None:
    predictions = table()
    predictions["prob_Mass"] = 0.25
    curve = curves(predictions, resamples=0)["Mass"]
    at = THRESHOLDS.index(0.25)
    assert curve["net_benefit"][: at + 1] == curve["treat_all"][: at + 1]
    assert set(curve["net_benefit"][at + 1 :]) == {0.0}


def borne_out(predictions: pd.DataFrame, finding: int) -> Any:
    """Where SciPy's binomial test of the patients left, and of those acted on, refuses, (T,)."""
    scores, labels = (part[:, finding] for part in arrays(predictions))
    patients = predictions["patient_id"].to_numpy()
    found = []
    for threshold in THRESHOLDS:
        told = True
        for of, wrong, share in (
            (scores < threshold, labels == 1, threshold),
            (scores >= threshold, labels == 0, 1 - threshold),
        ):
            trials = len(np.unique(patients[of]))
            errors = int(np.ceil(wrong[of].mean() * trials)) if trials else 0
            told &= trials > 0 and binomtest(errors, trials, share, "less").pvalue <= 0.025
        found.append(told)
    return np.array(found)


def test_a_range_in_which_hardly_anybody_is_left_is_not_shown_to_be_useful() -> None:
    draw = np.random.default_rng(3)
    labels = draw.random(400) < 0.3
    scores = np.where(labels, 0.5, 0.3)
    scores[np.flatnonzero(~labels)[:20]] = 0.001  # 20 patients left at 1 %, and none is missed
    predictions = column(table(images=400, patients=400), "Mass", scores, labels.astype(int))
    curve = curves(predictions)["Mass"]
    assert curve["useful_from"] == 0.2  # not 0.002: no miss of 20 goes with a share of up to 17 %
    assert curve["useful_to"] == 0.25


def test_the_intervals_and_the_useful_range_are_of_the_resampled_rows() -> None:
    predictions = table(images=600, patients=300, signal=1.5)
    found = curves(predictions)
    drawn = []
    for rows in redrawn(predictions, resamples=40, seed=2):
        scores, labels = arrays(rows)
        columns = [FINDINGS.index(finding) for finding in SOME]
        drawn.append([by_hand(scores[:, one], labels[:, one]) for one in columns])
    many = np.array(drawn)  # (R, findings, 2, T)
    gains = many[:, :, 0] - np.maximum(many[:, :, 1], 0)
    several = 0
    for place, finding in enumerate(SOME):
        curve = found[finding]
        ends = np.quantile(many[:, place, 0], [0.025, 0.975], axis=0).T
        for pair, expected in zip(curve["net_benefit_ci95"], ends, strict=True):
            if pair is None:
                assert expected[0] == expected[1]
            else:
                assert pair == pytest.approx(expected, abs=1e-6)
        better = np.quantile(gains[:, place], 0.025, axis=0) > 1e-12
        run = longest_run(better & borne_out(predictions, FINDINGS.index(finding)))
        expected = (None, None) if run is None else tuple(THRESHOLDS[end] for end in run)
        assert (curve["useful_from"], curve["useful_to"]) == expected
        several += run is not None and run[1] > run[0]
    assert several >= 1


def test_calibrated_probabilities_are_acted_on_where_there_are_some() -> None:
    predictions, fitted = table(), calibration()
    left = fitted.undefined | {"Mass": "left as it is"}
    slope, intercept = fitted.slope | {"Mass": 1.0}, fitted.intercept | {"Mass": 0.0}
    own = type(fitted)(fitted.method, fitted.images, slope, intercept, left)
    found = curves(predictions, calibration=own, resamples=0)
    scores, labels = arrays(predictions)
    after = fitted.apply(scores)
    edema = FINDINGS.index("Edema")
    model, _ = judged(after[:, edema], labels[:, edema])
    assert found["Edema"]["net_benefit"] == pytest.approx(model, abs=1e-6)
    assert (found["Edema"]["of"], found["Mass"]["of"]) == ("calibrated", "raw")
    assert found["Mass"] == curves(predictions, resamples=0)["Mass"]


def test_a_model_that_knows_nothing_is_nowhere_shown_to_be_useful() -> None:
    predictions = table()
    predictions["prob_Mass"] = 0.25
    curve = curves(predictions)["Mass"]
    assert curve["useful_from"] is curve["useful_to"] is None
    told = curve["undefined_reason"]
    assert told["useful_from"] == told["useful_to"] == NOWHERE
    assert curve["net_benefit_ci95"][-1] is None
    assert told["net_benefit_ci95"] == NO_SPREAD


def test_without_intervals_nothing_is_shown_to_be_useful_and_the_reason_is_told() -> None:
    few = table(patients=80)
    few.loc[few["patient_id"] >= 8, "label_Mass"] = 0
    none = table().assign(label_Mass=0)
    for rows, resamples, why in (
        (few, 20, FEW_PATIENTS),
        (none, 20, "no image has the finding"),
        (table(), 0, NO_RESAMPLES),
    ):
        curve = curves(rows, resamples=resamples)["Mass"]
        names = ("net_benefit_ci95", "useful_from", "useful_to")
        assert [curve[name] for name in names] == [None] * 3
        assert curve["undefined_reason"] == dict.fromkeys(names, why)
        assert len(curve["net_benefit"]) == len(THRESHOLDS)


def test_the_longest_run_is_taken_and_the_first_of_equals() -> None:
    for flags, expected in (
        ([0, 1, 1, 0, 1, 1, 1], (4, 6)),
        ([1, 0, 1], (0, 0)),
        ([0, 0], None),
        ([1, 1], (0, 1)),
    ):
        assert longest_run(np.array(flags, dtype=bool)) == expected
