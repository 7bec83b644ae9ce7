"""What results.json says of a run, as the report reads it.

Whatever an older version did not write is None or empty here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability curve: the probabilities in it beside what was true."""

    images: int
    mean_probability: float
    share_positive: float


@dataclass(frozen=True)
class CalibrationMetrics:
    """How well probabilities are calibrated; `reliability` holds the bins that have images."""

    brier: float | None
    expected_calibration_error: float | None
    reliability: tuple[Bin, ...]


@dataclass(frozen=True)
class FindingMetrics:
    """The test metrics of one finding; the counts are of images at `threshold`."""

    finding: str
    positives: int
    prevalence: float | None
    auroc: float | None
    auroc_ci95: Interval | None
    average_precision: float | None
    average_precision_ci95: Interval | None
    threshold: float | None
    sensitivity: float | None
    sensitivity_ci95: Interval | None
    specificity: float | None
    specificity_ci95: Interval | None
    true_positives: int | None
    false_positives: int | None
    false_negatives: int | None
    true_negatives: int | None
    raw: CalibrationMetrics
    calibrated: CalibrationMetrics | None
    undefined_reason: dict[str, str]


@dataclass(frozen=True)
class OperatingPoint:
    """How the thresholds were chosen: by which rule, on how many validation images."""

    rule: str
    target: float | None
    images: int


@dataclass(frozen=True)
class Calibrated:
    """The macro figures of the calibrated probabilities, and by what they were calibrated."""

    method: str
    images: int
    brier_macro: float | None
    brier_macro_ci95: Interval | None
    expected_calibration_error_macro: float | None


@dataclass(frozen=True)
class Subgroup:
    """The macro AUROC of one group of images, and its gap to all others of known group."""

    by: str
    group: str
    images: int
    patients: int
    findings: int
    auroc: float | None
    auroc_ci95: Interval | None
    gap: float | None
    gap_ci95: Interval | None
    flagged: bool
    undefined_reason: str | None


@dataclass(frozen=True)
class TestMetrics:
    """metrics.test; fractions in 0..1, None where not computed or not recorded."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    images: int
    patients: int | None
    label_accuracy: float | None
    label_accuracy_ci95: Interval | None
    always_negative: float | None
    prevalence_accuracy: float | None
    auroc: float | None
    auroc_findings: int
    auroc_ci95: Interval | None
    auroc_micro: float | None
    auroc_micro_ci95: Interval | None
    average_precision: float | None
    average_precision_ci95: Interval | None
    average_precision_micro: float | None
    brier: float | None
    brier_ci95: Interval | None
    prevalence_brier: float | None
    expected_calibration_error: float | None
    operating_point: OperatingPoint | None
    calibrated: Calibrated | None
    subgroups: tuple[Subgroup, ...] | None
    per_finding: tuple[FindingMetrics, ...]


@dataclass(frozen=True)
class Epoch:
    """One row of the history; `number` counts from 0."""

    number: int
    train_loss: float | None
    val_loss: float | None
    val_auroc: float | None
    lr: float | None


@dataclass(frozen=True)
class Side:
    """What one side of the split holds; positives by finding, as far as they were recorded."""

    name: str
    images: int
    patients: int | None
    positives: dict[str, int]


@dataclass(frozen=True)
class Timing:
    """Where the time went in seconds, and rates; None where the run did not get so far."""

    startup: float | None
    cache: float | None
    fit: float | None
    test: float | None
    total: float | None
    fit_images_per_second: float | None
    steady_images_per_second: float | None
    data_wait_fraction: float | None
    host_bytes: float | None
    device_bytes: float | None


@dataclass(frozen=True)
class Run:
    """One run as the report shows it; None where the run did not get so far.

    Attributes:
        settings: the resolved configuration by dotted key, such as `trainer.max_epochs`.
        versions: what else is known of the environment, by name.
    """

    folder: Path
    name: str
    status: str
    reason: str | None
    command: str
    seed: int | None
    git_commit: str | None
    settings: dict[str, Any]
    paper_row: int | None
    model: str
    data: str
    root: str | None
    split: str
    split_sha256: str | None
    sides: tuple[Side, ...]
    overlap: dict[str, int]
    dropped: dict[str, int]
    device: str | None
    accelerator: str | None
    world_size: int | None
    strategy: str | None
    precision_asked: str | None
    precision_used: str | None
    versions: dict[str, str]
    timing: Timing
    test: TestMetrics | None
    history: tuple[Epoch, ...]
    warnings: tuple[str, ...]
    skipped_steps: int

    @property
    def findings(self) -> tuple[str, ...]:
        """Those of its test, else of its data; empty where neither is known."""
        if self.test and self.test.per_finding:
            return tuple(row.finding for row in self.test.per_finding)
        return tuple(dict.fromkeys(name for side in self.sides for name in side.positives))

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, whose checkpoint was kept, if it is kept by the validation AUROC."""
        monitor = self.settings.get("callbacks.best.monitor", "val/auroc_macro")
        known = [e for e in self.history if e.val_auroc is not None]
        if monitor != "val/auroc_macro" or not known:
            return None
        return max(known, key=lambda e: (e.val_auroc or 0.0, -e.number)).number + 1

    @property
    def images(self) -> dict[str, int]:
        """Images by side of the split."""
        return {side.name: side.images for side in self.sides}
