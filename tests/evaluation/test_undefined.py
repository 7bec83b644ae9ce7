"""What cannot be computed is null with its reason beside it, never a crash or a number."""

import json
from typing import Any

import numpy as np
import pytest
from predicted import calibration, frame, of_model, points, table

from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.findings import FINDINGS

QUICK = Evaluator(resamples=50)


def nulls(row: dict[str, Any]) -> set[str]:
    return {name for name, value in of_model(row).items() if value is None}


def test_without_prevalences_their_baselines_are_null_with_the_reason() -> None:
    result = QUICK(table())
    assert nulls(result) == {
        *("prevalence_accuracy", "prevalence_brier_macro"),
        *("operating_point", "calibrated"),
    }
    assert of_model(result["undefined_reason"]) == dict.fromkeys(
        ["prevalence_accuracy", "prevalence_brier_macro"],
        "no prevalences of the training images were given",
    )


def test_fault_56_a_finding_of_one_class_is_null_with_its_reason_and_not_in_the_macro() -> None:
    predictions = table()
    predictions["label_Hernia"] = 0
    predictions["label_Mass"] = 1
    result = QUICK(predictions)
    assert result["undefined"] == {
        "Hernia": "no image has the finding",
        "Mass": "every image has the finding",
    }
    assert result["auroc_macro_findings"] == 12
    rest = [f for f in FINDINGS if f not in ("Hernia", "Mass")]
    values = [result["per_finding"][f]["auroc"] for f in rest]
    assert result["auroc_macro"] == pytest.approx(np.mean(values))
    hernia = result["per_finding"]["Hernia"]
    ranks = {"auroc", "auroc_ci95", "average_precision", "average_precision_ci95"}
    empty = ranks | {"sensitivity", "sensitivity_ci95"}
    assert nulls(hernia) == empty
    assert of_model(hernia["undefined_reason"]) == dict.fromkeys(empty, "no image has the finding")
    mass = result["per_finding"]["Mass"]
    empty = ranks | {"specificity", "specificity_ci95"}
    assert nulls(mass) == empty
    assert of_model(mass["undefined_reason"]) == dict.fromkeys(empty, "every image has the finding")


def test_without_any_positive_every_score_is_null_with_a_reason() -> None:
    predictions = table()
    predictions[[f"label_{f}" for f in FINDINGS]] = 0
    result = QUICK(predictions, operating_points=points(), calibration=calibration())
    assert result["always_negative_accuracy"] == 1
    assert result["auroc_macro_findings"] == 0
    assert len(result["undefined"]) == 14
    scores = {"average_precision_micro", "prevalence_accuracy", "prevalence_brier_macro"}
    for name in ("auroc_macro", "auroc_micro", "average_precision_macro"):
        scores |= {name, f"{name}_ci95"}
    assert nulls(result) == scores == of_model(result["undefined_reason"]).keys()
    assert result["undefined_reason"]["auroc_micro_ci95"] == "all labels are the same"


def test_a_finding_of_one_patient_has_no_interval() -> None:
    predictions = table()
    predictions["label_Hernia"] = (predictions["patient_id"] == 5).astype(int)
    row = QUICK(predictions)["per_finding"]["Hernia"]
    assert row["auroc"] is not None
    assert nulls(row) == {"auroc_ci95", "average_precision_ci95", "sensitivity_ci95"}
    assert "ten patients" in row["undefined_reason"]["auroc_ci95"]


def intervals(result: dict[str, Any]) -> dict[str, Any]:
    """Every interval of a result, by place."""
    blocks = {"": result, "calibrated": result["calibrated"], **result["per_finding"]}
    return {
        f"{place} {name}": (value, block["undefined_reason"].get(name))
        for place, block in blocks.items()
        for name, value in of_model(block).items()
        if name.endswith("_ci95")
    }


@pytest.mark.parametrize("patients, resamples, told", [(1, 50, "patients"), (80, 0, "resamples")])
def test_with_one_patient_or_no_resamples_there_are_scores_but_no_interval(
    patients: int, resamples: int, told: str
) -> None:
    result = Evaluator(resamples=resamples)(table(patients=patients), calibration=calibration())
    assert result["auroc_macro"] is not None
    for place, (value, reason) in intervals(result).items():
        assert value is None, place
        assert told in reason, place


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_one_image_is_scored_as_far_as_it_can_be(label: int, score: float) -> None:
    one = frame(np.full((1, 14), score), np.full((1, 14), label), [7], age=50, sex="F", follow_up=0)
    result = QUICK(one, operating_points=points(), calibration=calibration())
    assert result["brier_macro"] == (score - label) ** 2
    assert result["label_accuracy"] == float((score >= 0.5) == label)
    assert nulls(result) - {"prevalence_accuracy", "prevalence_brier_macro"} == {
        *("auroc_macro", "auroc_macro_ci95", "auroc_micro", "auroc_micro_ci95"),
        *("average_precision_macro", "average_precision_macro_ci95", "average_precision_micro"),
        *("label_accuracy_ci95", "brier_macro_ci95"),
    }
    assert all(row["auroc_macro"] is None for row in result["subgroups"])
    json.dumps(result, allow_nan=False)


def test_the_result_is_plain_json_without_nan() -> None:
    predictions = table()
    predictions["label_Hernia"] = 0
    result = QUICK(
        predictions.assign(age=np.nan, sex="M", view="", follow_up=1),
        operating_points=points(Mass=np.float32(0.25)),  # type: ignore[arg-type]
        calibration=calibration(),
        prevalences=dict.fromkeys(FINDINGS, np.float64(0.1)),
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_an_interval_without_width_is_null_since_it_would_claim_certainty() -> None:
    predictions = table()
    predictions["prob_Mass"] = 0.3 + 0.4 * predictions["label_Mass"]  # perfect
    result = QUICK(predictions, operating_points=points())
    mass = result["per_finding"]["Mass"]
    assert (mass["auroc"], mass["sensitivity"], mass["specificity"]) == (1, 1, 1)
    flat = {"auroc_ci95", "average_precision_ci95", "sensitivity_ci95", "specificity_ci95"}
    assert nulls(mass) == flat
    why = "every resample gives the same, which does not tell how sure that is"
    assert of_model(mass["undefined_reason"]) == dict.fromkeys(flat, why)
    assert not nulls(result["per_finding"]["Edema"])
