"""From the content of results.json to a `Run`: what is there must be well formed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xray_lightning.evaluation.record import (
    Bin,
    Calibrated,
    CalibrationMetrics,
    Epoch,
    FindingMetrics,
    Interval,
    OperatingPoint,
    Run,
    Side,
    Subgroup,
    TestMetrics,
    Timing,
)
from xray_lightning.training.results import flat

Json = Mapping[str, Any]


def run_of(folder: Path, results: Json) -> Run:
    """Take a run from the content of its results.json.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: it is not a run's record.
    """
    config, data = results["config"], results["data"] or {}
    environment, training = results["environment"], results.get("training") or {}
    return Run(
        folder=folder,
        name=str(results["name"]),
        status=str(results["status"]),
        reason=_text(results["reason"]),
        command=str(results.get("command", "")),
        seed=_integer(results.get("seed")),
        git_commit=_text(results.get("git_commit")),
        settings=flat(config),
        paper_row=_integer(config.get("paper_row")),
        model=_model(config),
        data=str(data.get("name", "")),
        root=_text(data.get("root")),
        split=str(data.get("split", "")),
        split_sha256=_text(data.get("split_sha256")),
        sides=_sides(data),
        overlap={pair: int(n["patients"]) for pair, n in data.get("patient_overlap", {}).items()},
        dropped=_counts(data.get("dropped", {})),
        device=_text(environment["device"]),
        accelerator=_text(environment["accelerator"]),
        world_size=_integer(environment["world_size"]),
        strategy=_text(environment["strategy"]),
        precision_asked=_text(environment["precision_asked"]),
        precision_used=_text(environment["precision_used"]),
        versions={
            key: str(environment[key])
            for key in ("python", "torch", "lightning", "xray_lightning", "mpi")
            if environment.get(key) is not None
        },
        timing=_timing(results["timing"]),
        test=_test_metrics(results["metrics"]["test"]),
        history=tuple(
            Epoch(
                int(row["epoch"]),
                _number(row["train_loss"]),
                _number(row["val_loss"]),
                _number(row.get("val_auroc_macro")),
                _number(row.get("lr")),
            )
            for row in results["history"]
        ),
        warnings=tuple(str(text) for text in training.get("warnings", ())),
        skipped_steps=int(training.get("skipped_steps", 0)),
    )


def _model(config: Json) -> str:
    """The backbone's name, and whether further fully connected layers follow it."""
    model = config.get("model") or {}
    return f"{model.get('arch', '')}{' + FC layers' if model.get('hidden') else ''}"


def _sides(data: Json) -> tuple[Side, ...]:
    images, patients = _counts(data.get("images", {})), _counts(data.get("patients", {}))
    positives = {side: _counts(n) for side, n in data.get("positives", {}).items()}
    return tuple(
        Side(name, count, patients.get(name), positives.get(name, {}))
        for name, count in images.items()
    )


def _timing(timing: Json) -> Timing:
    memory = timing.get("peak_memory_bytes") or {}
    return Timing(
        startup=_number(timing.get("startup")),
        cache=_number(timing.get("cache")),
        fit=_number(timing["fit"]),
        test=_number(timing.get("test")),
        total=_number(timing.get("total")),
        fit_images_per_second=_number(timing["fit_images_per_second"]),
        steady_images_per_second=_number(timing.get("steady_images_per_second")),
        data_wait_fraction=_number(timing.get("data_wait_fraction")),
        host_bytes=_number(memory.get("host")),
        device_bytes=_number(memory.get("device")),
    )


def _test_metrics(test: Json | None) -> TestMetrics | None:
    if test is None:
        return None
    point, calibrated = test.get("operating_point"), test.get("calibrated")
    after = {} if calibrated is None else calibrated.get("per_finding", {})
    groups = test.get("subgroups")
    return TestMetrics(
        images=int(test["images"]),
        patients=_integer(test.get("patients")),
        label_accuracy=_number(test["label_accuracy"]),
        label_accuracy_ci95=_interval(test.get("label_accuracy_ci95")),
        always_negative=_number(test["always_negative_accuracy"]),
        prevalence_accuracy=_number(test.get("prevalence_accuracy")),
        auroc=_number(test["auroc_macro"]),
        auroc_findings=int(test["auroc_macro_findings"]),
        auroc_ci95=_interval(test.get("auroc_macro_ci95")),
        auroc_micro=_number(test.get("auroc_micro")),
        auroc_micro_ci95=_interval(test.get("auroc_micro_ci95")),
        average_precision=_number(test["average_precision_macro"]),
        average_precision_ci95=_interval(test.get("average_precision_macro_ci95")),
        average_precision_micro=_number(test.get("average_precision_micro")),
        brier=_number(test.get("brier_macro")),
        brier_ci95=_interval(test.get("brier_macro_ci95")),
        prevalence_brier=_number(test.get("prevalence_brier_macro")),
        expected_calibration_error=_number(test.get("expected_calibration_error_macro")),
        operating_point=None if point is None else _operating_point(point),
        calibrated=None if calibrated is None else _calibrated(calibrated),
        subgroups=None if groups is None else tuple(_subgroup(group) for group in groups),
        per_finding=tuple(
            _finding_metrics(str(name), row, images=int(test["images"]), after=after.get(name))
            for name, row in test.get("per_finding", {}).items()
        ),
    )


def _operating_point(point: Json) -> OperatingPoint:
    return OperatingPoint(str(point["rule"]), _number(point.get("target")), int(point["images"]))


def _calibrated(calibrated: Json) -> Calibrated:
    return Calibrated(
        method=str(calibrated["method"]),
        images=int(calibrated["images"]),
        brier_macro=_number(calibrated.get("brier_macro")),
        brier_macro_ci95=_interval(calibrated.get("brier_macro_ci95")),
        expected_calibration_error_macro=_number(
            calibrated.get("expected_calibration_error_macro")
        ),
    )


def _subgroup(group: Json) -> Subgroup:
    return Subgroup(
        by=str(group["by"]),
        group=str(group["group"]),
        images=int(group["images"]),
        patients=int(group["patients"]),
        findings=int(group["findings"]),
        auroc=_number(group["auroc_macro"]),
        auroc_ci95=_interval(group.get("auroc_macro_ci95")),
        gap=_number(group.get("gap")),
        gap_ci95=_interval(group.get("gap_ci95")),
        flagged=bool(group.get("flagged")),
        undefined_reason=_reason(group.get("undefined_reason")),
    )


def _finding_metrics(name: str, row: Json, *, images: int, after: Json | None) -> FindingMetrics:
    positives = int(row["positives"])
    prevalence = _number(row.get("prevalence"))
    if prevalence is None and images:
        prevalence = positives / images
    return FindingMetrics(
        finding=name,
        positives=positives,
        prevalence=prevalence,
        auroc=_number(row["auroc"]),
        auroc_ci95=_interval(row.get("auroc_ci95")),
        average_precision=_number(row["average_precision"]),
        average_precision_ci95=_interval(row.get("average_precision_ci95")),
        threshold=_number(row.get("threshold")),
        sensitivity=_number(row.get("sensitivity")),
        sensitivity_ci95=_interval(row.get("sensitivity_ci95")),
        specificity=_number(row.get("specificity")),
        specificity_ci95=_interval(row.get("specificity_ci95")),
        true_positives=_integer(row.get("true_positives")),
        false_positives=_integer(row.get("false_positives")),
        false_negatives=_integer(row.get("false_negatives")),
        true_negatives=_integer(row.get("true_negatives")),
        raw=_calibration(row),
        calibrated=None if after is None else _calibration(after),
        undefined_reason={k: str(v) for k, v in (row.get("undefined_reason") or {}).items()},
    )


def _calibration(row: Json) -> CalibrationMetrics:
    return CalibrationMetrics(
        brier=_number(row.get("brier")),
        expected_calibration_error=_number(row.get("expected_calibration_error")),
        reliability=tuple(
            Bin(int(b["images"]), _finite(b["mean_probability"]), _finite(b["share_positive"]))
            for b in row.get("reliability") or ()
        ),
    )


def _reason(value: Any) -> str | None:
    """A reason, or several by the figure that each is of."""
    if isinstance(value, Mapping):
        return "; ".join(dict.fromkeys(map(str, value.values()))) or None
    return _text(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _integer(value: Any) -> int | None:
    return None if value is None else int(value)


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):  # json reads 1e999 as infinity
        raise ValueError(f"{number} is not a number")
    return number


def _interval(value: Any) -> Interval | None:
    return None if value is None else (_finite(value[0]), _finite(value[1]))


def _counts(values: Json) -> dict[str, int]:
    return {str(key): int(value) for key, value in values.items()}
