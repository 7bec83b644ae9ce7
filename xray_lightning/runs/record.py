"""Record of a run, results.json: written whole at every moment, and read back checked.

`results_schema.json` beside this file is its written form."""

import json
import logging
import math
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError, printable
from xray_lightning.files import write_atomically

SCHEMA_VERSION = 1
FILE_NAME = "results.json"
RUNNING = "running"
MOST_WARNINGS = 100

EMPTY_TIMING: dict[str, Any] = {
    "startup": None,
    "cache": None,
    "fit": None,
    "test": None,
    "total": None,
    "fit_images_per_second": None,
    "steady_images_per_second": None,
    "step_seconds": None,
    "data_wait_fraction": None,
    "peak_memory_bytes": {"host": None, "device": None},
}


def predictions_name(side: str) -> str:
    """The file in a run folder that has a side's predictions."""
    return f"predictions_{side}.csv"


def finite(value: Any) -> Any:
    """The same nested value with null for every float that is no number: standard JSON."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def git_commit() -> str | None:
    """The commit of the project's checkout; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# What a resumed run may change: how and where it runs, not what it computes.
FREE_KEYS = (
    "accelerator",
    "callbacks",
    "ckpt_path",
    "data.cache",
    "data.cache_dir",
    "data.device_memory_share",
    "data.images",
    "data.root",
    "evaluation",
    "logger",
    "report",
    "resume",
    "speed",
    "stages",
    "strategy",
    "trainer",
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key: {"a": {"b": 1}} as {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Every key whose value differs, as `key: was -> now`."""
    old, new = flat(was), flat(now)
    keys = sorted(old.keys() | new.keys())
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)
    ]


def refuse_other_configuration(
    folder: Path, *, was: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to go on with a run under another configuration.

    Raises:
        UserError: every difference that changes what is computed.
    """
    changed = [
        line
        for line in differences(was, finite(now))
        if not any(line.startswith((f"{key}.", f"{key}:")) for key in FREE_KEYS)
    ]
    if changed:
        raise UserError(
            f"resume={folder} with another configuration ({'; '.join(changed)}); undo the change, "
            "or start a new run"
        )


class RunRecord:
    """results.json of one run folder, rewritten at each `write`."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        self.content = content

    @classmethod
    def start(
        cls, folder: Path, *, name: str, command: str, seed: int | None, config: dict[str, Any]
    ) -> "RunRecord":
        """A new record with status `running`, not yet written."""
        return cls(
            folder,
            {
                "schema_version": SCHEMA_VERSION,
                "name": name,
                "command": command,
                "status": RUNNING,
                "reason": None,
                "seed": seed,
                "git_commit": git_commit(),
                "config": config,
                "data": None,
                "environment": bare_environment(),
                "timing": deepcopy(EMPTY_TIMING),
                "metrics": {"test": None},
                "history": [],
                "training": {"warnings": [], "skipped_steps": 0},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "RunRecord | None":
        """The folder's record; None where there is none that can be read."""
        try:
            return cls(folder, json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def write(self) -> None:
        text = json.dumps(finite(self.content), indent=1, allow_nan=False, default=str)
        write_atomically(self.folder / FILE_NAME, text + "\n")

    def end(self, status: str, reason: str | None = None) -> None:
        """Write the final status."""
        self.content["status"], self.content["reason"] = status, reason
        self.write()

    @property
    def status(self) -> str:
        return str(self.content["status"])


@contextmanager
def kept_warnings(kept: list[str]) -> Iterator[None]:
    """Add what is logged as a warning or worse to `kept`, each text once."""
    handler = logging.Handler(logging.WARNING)

    def keep(record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == "py.warnings":  # "FILE:LINE: Category: text", then the line of code
            text = re.sub(r"^.*?:\d+: ", "", text.splitlines()[0])
        if text not in kept and len(kept) < MOST_WARNINGS:
            kept.append(text)

    handler.emit = keep  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def bare_environment() -> dict[str, Any]:
    """The `environment` block before a device is chosen, without importing torch."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("xray-lightning")
    except PackageNotFoundError:  # a checkout that was never installed: git_commit tells
        own = None
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "xray_lightning": own,
        "device": None,
        "accelerator": None,
        "world_size": None,
        "hosts": [socket.gethostname()],
        "mpi": None,
        "strategy": None,
        "precision_asked": None,
        "precision_used": None,
    }


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


LONGEST = 60  # characters of a value in a message
AGAIN = "evaluate the run again, or use another checkpoint"


def entry(plain: object, key: str, *, where: str) -> Any:
    """The value of a key; raises UserError where there is none, or no mapping."""
    if not isinstance(plain, Mapping) or key not in plain:
        raise UserError(f"{where} are damaged: no {key}; {AGAIN}")
    return plain[key]


def count(plain: object, key: str, *, where: str) -> int:
    """A whole number above 0."""
    value = entry(plain, key, where=where)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where} are damaged: {key} is {_shown(value)}; {AGAIN}")
    return value


def by_finding(
    plain: object,
    key: str,
    *,
    findings: Sequence[str],
    where: str,
    low: float = -math.inf,
    high: float = math.inf,
) -> dict[str, float]:
    """A finite number from low to high for each of these findings."""
    values = entry(plain, key, where=where)
    if not isinstance(values, Mapping) or set(values) != set(findings):
        raise UserError(f"{where} are damaged: {key} has not the {len(findings)} findings; {AGAIN}")
    for finding, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{where} are damaged: {key} of {finding} is {_shown(value)}; {AGAIN}")
    return {finding: float(values[finding]) for finding in findings}


def reasons(plain: object, *, findings: Sequence[str], where: str) -> dict[str, str]:
    """The reason of each finding that nothing was fitted to."""
    values = entry(plain, "undefined", where=where)
    if not isinstance(values, Mapping) or not all(
        finding in findings and isinstance(reason, str) for finding, reason in values.items()
    ):
        raise UserError(f"{where} are damaged: undefined is {_shown(values)}; {AGAIN}")
    return dict(values)


def _shown(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
