"""Two runs set side by side: the difference, its interval, and what may not be compared."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import astuple, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import all_or_a_tenth, frame, redrawn

from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import NO_SPREAD
from xray_lightning.evaluation.compare import Comparison, comparable, compare, gain, summarise_seeds
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.resampled_scores import SCORES
from xray_lightning.findings import FINDINGS
from xray_lightning.runs.run_folder import Run, run_of

SAMPLE = Path(__file__).parent.parent / "results_sample.json"
PRESENT = FINDINGS[:4]  # the others are in no image, which costs less time to resample


def predictions(
    seed: int, *, skill: float = 1.0, of: int = 0, images: int = 120, present: int = len(PRESENT)
) -> pd.DataFrame:
    """A model's answers to the images of data set `of`: two a patient, alike in labels and scores.

    The score of an image with the finding is higher by `skill` deviations on the average.
    """
    patients = np.random.default_rng([of, 0]).integers(0, images // 2, images)
    prone = np.random.default_rng([of, 1]).random((images // 2, len(FINDINGS)))
    labels = np.random.default_rng([of, 2]).random((images, len(FINDINGS))) < 0.6 * prone[patients]
    labels[:, present:] = False
    random = np.random.default_rng([of, 3, seed])
    shift = random.normal(0, 0.7, (images // 2, len(FINDINGS)))[patients]
    logits = skill * labels + shift + random.normal(0, 0.7, labels.shape) - 1
    names = np.array([f"{patient:04d}" for patient in patients])
    return frame(1 / (1 + np.exp(-logits)), labels.astype(int), names)


def differences(comparison: Comparison) -> list[Any]:
    return [getattr(comparison, name) for name in SCORES] + list(comparison.per_finding.values())


def test_a_table_compared_with_itself_differs_by_nothing() -> None:
    table = predictions(0)
    comparison = compare(table, table.copy(), resamples=50)
    assert (comparison.images, comparison.findings) == (120, PRESENT)
    assert comparison.patients == table["patient_id"].nunique()
    defined = [found for found in differences(comparison) if found.value is not None]
    assert len(defined) == len(SCORES) + len(PRESENT)
    assert all(
        (found.value, found.ci95, found.reason) == (0.0, None, NO_SPREAD) for found in defined
    )
    assert not any(found.excludes_zero for found in defined)


def test_tables_exchanged_give_the_negative() -> None:
    first, second = predictions(0), predictions(1, skill=1.5)
    forth, back = compare(first, second, resamples=60), compare(second, first, resamples=60)
    assert forth.auroc_macro.value not in (0, None)
    for one, other in zip(differences(forth), differences(back), strict=True):
        if one.value is None:
            assert other == one
            continue
        assert one.value == pytest.approx(-other.value)
        assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert forth.first == back.second


def test_the_order_of_the_rows_changes_nothing() -> None:
    first, second = predictions(0), predictions(1)
    shuffled = second.sample(frac=1, random_state=3)
    assert compare(first, shuffled, resamples=30) == compare(first, second, resamples=30)


def test_both_scores_are_those_of_the_evaluation() -> None:
    first, second = predictions(0), predictions(1, skill=2)
    comparison = compare(first, second, resamples=40, seed=5)
    evaluator = Evaluator(resamples=40, seed=5)
    for table, scores in ((first, comparison.first), (second, comparison.second)):
        metrics = evaluator(table)
        for name in SCORES:
            assert getattr(scores, name) == pytest.approx(metrics[name], abs=1e-12)
        assert scores.always_negative == metrics["always_negative_accuracy"]
        for finding in FINDINGS:
            assert scores.per_finding[finding] == metrics["per_finding"][finding]["auroc"]
    value = comparison.second.auroc_macro - comparison.first.auroc_macro  # type: ignore[operator]
    assert comparison.auroc_macro.value == pytest.approx(value)


def test_the_same_difference_is_found_without_weights() -> None:
    """Against copies of the drawn patients' rows, scored by themselves."""
    first, second = predictions(0, images=40), predictions(1, images=40)
    comparison = compare(first, second, resamples=2, seed=9)
    one, other = (
        [Evaluator(resamples=0)(rows) for rows in redrawn(table, resamples=2, seed=9)]
        for table in (first, second)
    )
    for name in SCORES:
        apart = [after[name] - before[name] for before, after in zip(one, other, strict=True)]
        expected = np.quantile(apart, [0.025, 0.975])
        assert getattr(comparison, name).ci95 == pytest.approx(tuple(expected))


def test_a_better_model_is_found_better() -> None:
    comparison = compare(predictions(0, skill=0.5), predictions(1, skill=3.0), resamples=100)
    found = comparison.auroc_macro
    assert found.value is not None
    assert found.value > 0.1
    assert found.excludes_zero
    assert comparison.average_precision_macro.excludes_zero


def test_pairing_narrows_the_interval_of_models_that_err_alike() -> None:
    first = predictions(0)
    second = first.copy()
    noise = np.random.default_rng(1).normal(0, 0.02, (len(first), len(FINDINGS)))
    columns = [f"prob_{name}" for name in FINDINGS]
    second[columns] = np.clip(first[columns] + noise, 0, 1)
    paired = compare(first, second, resamples=100).auroc_macro.ci95
    alone = Evaluator(resamples=100)(first)["auroc_macro_ci95"]
    assert paired is not None
    assert paired[1] - paired[0] < (alone[1] - alone[0]) / 3


@all_or_a_tenth(200, low=0.90, high=0.99)
def test_the_interval_holds_no_difference_nineteen_times_in_twenty(
    sets: int, low: float, high: float
) -> None:
    names = ("auroc_macro", "average_precision_macro", "brier_macro")
    held = dict.fromkeys(names, 0)
    for number in range(sets):
        first, second = (predictions(model, of=number, images=100, present=2) for model in (0, 1))
        comparison = compare(first, second, resamples=150, seed=number)
        for name in names:
            held[name] += not getattr(comparison, name).excludes_zero
    shares = {name: count / sets for name, count in held.items()}
    assert all(low <= share <= high for share in shares.values()), shares


def test_what_is_not_defined_says_why() -> None:
    first, second = predictions(0), predictions(1)
    alone = first["patient_id"].iloc[0]
    for table in (first, second):
        table["label_Hernia"] = (table["patient_id"] == alone).astype(int)
        table["label_Mass"] = 1
    comparison = compare(first, second, resamples=20)
    hernia, mass, edema = (comparison.per_finding[name] for name in ("Hernia", "Mass", "Edema"))
    assert hernia.value is not None
    assert hernia.ci95 is None
    assert hernia.reason == "needs at least ten patients with the finding and ten without"
    assert astuple(mass) == (None, None, "every image has the finding")
    assert astuple(edema) == (None, None, "no image has the finding")
    assert comparison.findings == (*PRESENT, "Hernia")
    assert comparison.auroc_macro.ci95 is not None


def test_without_resamples_there_is_the_difference_alone() -> None:
    comparison = compare(predictions(0), predictions(1), resamples=0)
    for name in SCORES:
        found = getattr(comparison, name)
        assert found.value is not None
        assert (found.ci95, found.reason) == (None, "no resamples were asked for")


def test_without_any_finding_there_is_no_macro() -> None:
    comparison = compare(predictions(0, present=0), predictions(1, present=0), resamples=5)
    reason = "no finding has both images with it and images without it"
    assert astuple(comparison.auroc_macro) == (None, None, reason)
    assert comparison.brier_macro.ci95 is not None
    assert comparison.to_plain()["auroc_macro"]["undefined_reason"] == reason


def test_a_comparison_is_plain_json() -> None:
    plain = compare(predictions(0), predictions(1), resamples=10).to_plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["per_finding"].keys() == set(FINDINGS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t[10:], "images: 110 in both, 10 in the first alone, 0 in the second alone"),
        (
            lambda t: t.assign(image=["new.png", *t["image"][1:]]),
            "images: 119 in both, 1 in the first alone, 1 in the second alone",
        ),
        (lambda t: t.assign(label_Mass=[1] * 3 + [0] * 117), "labels of 3 of 120 images"),
        (lambda t: pd.concat([t, t[:4]]), "4 of 124 images are there twice in predictions 2"),
        (
            lambda t: t.assign(patient_id=["9999", *t["patient_id"][1:]]),
            "patients of 1 of 120 images",
        ),
    ],
)
def test_other_images_labels_and_patients_are_refused_with_counts(
    change: Callable[[pd.DataFrame], pd.DataFrame], fault: str
) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        compare(predictions(0), change(predictions(1)), resamples=5)
    assert "\n" not in str(refused.value)


def test_an_ensemble_gains_over_the_mean_of_its_members_in_the_same_resamples() -> None:
    members = [predictions(seed) for seed in range(3)]
    ensemble = members[0].copy()
    columns = [f"prob_{name}" for name in FINDINGS]
    ensemble[columns] = np.mean([table[columns] for table in members], axis=0)
    over_mean, over_each = gain(members, ensemble, resamples=80, seed=2)
    scores = [Evaluator(resamples=0)(table)["auroc_macro"] for table in members]
    whole = Evaluator(resamples=0)(ensemble)["auroc_macro"]
    assert over_mean.value == pytest.approx(whole - np.mean(scores))
    assert over_mean.excludes_zero  # their errors are independent
    for member, one in zip(members, over_each, strict=True):
        assert one == compare(member, ensemble, resamples=80, seed=2)
    alike, _ = gain([members[0]] * 2, members[0], resamples=20)
    assert (alike.value, alike.ci95) == (0.0, None)


# -- runs ----------------------------------------------------------------------------------------


def run(number: int = 0, *, auroc: float = 0.8, **changes: Any) -> Run:
    """The sample run with another seed, test AUROC, and configuration by dotted key."""
    results = json.loads(SAMPLE.read_text())
    results |= {"seed": number, "name": changes.pop("name", "sample"), "status": "finished"}
    for key in ("status", "reason"):
        results[key] = changes.pop(key, results[key])
    results["data"] |= changes.pop("data", {})
    results["metrics"]["test"]["auroc_macro"] = auroc
    config = {"seed": number, "trainer": {"max_epochs": 8, "accelerator": "cpu"}, "stages": ["fit"]}
    results["config"] = merged(results["config"] | config, changes)
    return run_of(Path(f"runs/{number}"), results)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(config)
    for key, value in changes.items():
        result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) else value
    return result


def test_runs_of_one_split_may_be_compared() -> None:
    comparable(run(0), run(1, trainer={"max_epochs": 3}))


def test_runs_of_other_splits_are_refused_with_their_names_and_hashes() -> None:
    other = run(1, data={"split": "official", "split_sha256": "cdef" * 16})
    with pytest.raises(UserError, match=r"patient_random \(abababa\) and official \(cdefcde\)"):
        comparable(run(0), other)
    unknown = replace(run(1), split_sha256=None)
    with pytest.raises(UserError, match="no hash"):
        comparable(unknown, unknown)


def test_runs_with_other_numbers_of_test_images_are_refused() -> None:
    fewer = run(1, data={"images": {"train": 1400, "val": 200, "test": 399}})
    with pytest.raises(UserError, match="tested on 400 and 399 images"):
        comparable(run(0), fewer)


def test_seeds_of_one_recipe_are_summarised() -> None:
    scores = [0.80, 0.82, 0.87]
    runs = [run(seed, auroc=auroc, name=f"seed {seed}") for seed, auroc in enumerate(scores)]
    (summary,) = summarise_seeds(runs)
    assert (summary.name, summary.seeds) == ("seed 0", (0, 1, 2))
    found = summary.auroc_macro
    assert found is not None
    assert found.mean == pytest.approx(0.83)
    assert found.spread == pytest.approx(stdev(scores))  # n - 1, not n
    assert (found.lowest, found.highest) == (0.80, 0.87)
    assert summary.label_accuracy is not None
    assert summary.label_accuracy.spread == 0
    (alone,) = summarise_seeds(runs[:1])
    assert alone.auroc_macro is not None
    assert (alone.seeds, alone.auroc_macro.spread) == ((0,), None)


SAME_RECIPE: list[dict[str, Any]] = [
    {"trainer": {"accelerator": "cuda"}},
    {"strategy": {"_target_": "Mpirun", "processes": 2}},
    {"settings": {"data.root": "elsewhere"}},
    {"speed": {"compile": True}},
    {"callbacks": {"best": {"dirpath": "runs/other"}}},
]
ANOTHER: list[dict[str, Any]] = [
    {"data": {"split_sha256": "ef" * 32}},
    {"trainer": {"max_epochs": 9}},
    {"trainer": {"precision": "bf16-mixed"}},
    {"optimizer": {"lr": 0.1}},
    {"model": {"arch": "resnet50"}},
    {"callbacks": {"early_stopping": {"patience": 5}}},
]


@pytest.mark.parametrize("changes", SAME_RECIPE, ids=str)
def test_where_a_run_ran_is_no_part_of_its_recipe(changes: dict[str, Any]) -> None:
    settings = changes.get("settings", {})
    second = run(1, **{key: value for key, value in changes.items() if key != "settings"})
    second.settings.update(settings)
    assert [summary.seeds for summary in summarise_seeds([run(0), second])] == [(0, 1)]


@pytest.mark.parametrize("changes", ANOTHER, ids=str)
def test_another_recipe_is_another_group(changes: dict[str, Any]) -> None:
    groups = summarise_seeds([run(0), run(1, **changes), run(2)])
    assert [group.seeds for group in groups] == [(0, 2), (1,)]


def test_what_is_no_finished_training_is_no_seed() -> None:
    tested_again = run(1, stages=["test"])
    assert [g.seeds for g in summarise_seeds([run(0), tested_again])] == [(0,)]
    assert summarise_seeds([run(0, status="interrupted", reason="Ctrl-C")]) == []
