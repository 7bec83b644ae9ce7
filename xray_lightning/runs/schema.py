"""Schema of results.json, the record of a run: its types, which check, bound and document it.

`python -m xray_lightning.runs.schema > docs/results_schema.json` writes it for other programs.
"""

import json
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypeAliasType

from xray_lightning.findings import NO_FINDING


def _not_no_finding(name: str) -> str:
    if name == NO_FINDING:
        raise ValueError(f"{NO_FINDING} is none")
    return name


def _any_text(text: object, check: ValidatorFunctionWrapHandler) -> Any:
    """Text as it is: a path may hold bytes that are no UTF-8, which pydantic's own text may not."""
    if not isinstance(text, str):
        return check(text)
    check(text.encode(errors="replace").decode())
    return text


AnyText = Annotated[str, WrapValidator(_any_text)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Gap = Annotated[float, Field(ge=-1, le=1)]
Text = Annotated[str, Field(min_length=1)]
# Strict types take a list for no tuple, and JSON has lists alone.
_LISTED = Field(strict=False)
Interval = tuple[float, float]
_INTERVAL = "[low, high], at 95 %, by resampling patients"
Interval95 = TypeAliasType(
    "Interval95",
    Annotated[tuple[Fraction, Fraction], _LISTED, Field(description=_INTERVAL)],
)
GapInterval95 = TypeAliasType(
    "GapInterval95", Annotated[tuple[Gap, Gap], _LISTED, Field(description=_INTERVAL)]
)
AnyInterval95 = TypeAliasType(
    "AnyInterval95", Annotated[tuple[float, float], _LISTED, Field(description=_INTERVAL)]
)
Texts = Annotated[tuple[AnyText, ...], _LISTED]
Split = Literal["train", "val", "test"]
Finding = TypeAliasType(
    "Finding",
    Annotated[
        str,
        Field(
            pattern=r"^[^\W_]([\w ./()+-]{0,58}[\w)+])?$",
            description="One of NIH's 14, or of the list that the data set has",
            json_schema_extra={"not": {"const": NO_FINDING}},
        ),
        AfterValidator(_not_no_finding),
    ],
)
Reasons = dict[str, Text]
FindingsLeftOut = dict[Finding, Text]

_REASONS = "Figures beside this that are null, and why"
_GUESSED = "That of giving each image the share of training images with each finding"
_FITTED_ON = "Of validation, that it is fitted on"
_METADATA = (
    "AUROC of logistic regression on view, age, sex and follow-up, fitted on training images"
)
_GAIN = "AUROC minus that of metadata, in the same resamples: what the images have added"
_COMBINED = "AUROC of metadata and the model together, by logistic regression fitted on validation"
_GAIN_OF_COMBINED = "AUROC of both together minus that of metadata, in the same resamples"
_WITHIN_VIEW = "AUROC over pairs of images of the same view, PA or AP, which the view cannot help"
_BAYES = "From sensitivity, specificity and the stated prevalence, by Bayes"
_SECONDS = "Seconds"
_TOGETHER = "Interval that holds at 95 % for the gaps of all subgroups together"
_SMALLEST = "The gap whose simultaneous interval would exclude zero in 80 % of tables like this"


class _Part(BaseModel):
    """A part of the record: keys that are not known here are no fault, and are not read."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        allow_inf_nan=False,  # json reads 1e999 as infinity
        json_schema_extra={"additionalProperties": False},
    )


class _OpenPart(_Part):
    """One that other programs may find further keys in."""

    model_config = ConfigDict(json_schema_extra={})


class Bin(_Part):
    """One bin of a reliability curve: the probabilities in it beside what was true."""

    low: Fraction
    high: Fraction
    images: AtLeastOne
    mean_probability: Fraction
    share_positive: Fraction


class CalibrationMetrics(_Part):
    """How well the probabilities of one finding are calibrated."""

    brier: Fraction
    expected_calibration_error: Fraction
    reliability: Annotated[tuple[Bin, ...], _LISTED] = Field(
        min_length=1, description="The bins of predicted probability that hold images"
    )


class DecisionCurve(_Part):
    """Net benefit of acting on one finding's probabilities, by threshold (Vickers & Elkin 2006)."""

    of: Literal["calibrated", "raw"] = Field(description="The probabilities that are acted on")
    thresholds: Annotated[tuple[Fraction, ...], _LISTED]
    net_benefit: Annotated[tuple[float, ...], _LISTED]
    net_benefit_ci95: Annotated[tuple[AnyInterval95 | None, ...], _LISTED] | None
    treat_all: Annotated[tuple[float, ...], _LISTED] = Field(
        description="The net benefit of acting on every image; of acting on none it is 0"
    )
    useful_from: Fraction | None = Field(
        description="The thresholds at each of which the interval of the gain over the better of "
        "treat_all and 0 excludes 0, and patients are enough; the longest run of them"
    )
    useful_to: Fraction | None
    undefined_reason: Reasons = Field(description=_REASONS)


class AbstentionMetrics(_Part):
    """What the model does if it says no below `low`, yes from `high` on, and else nothing."""

    low: Fraction | None
    high: Fraction
    answered: Fraction | None = Field(description="Share of images that it says yes or no of")
    answered_ci95: Interval95 | None
    misses_among_no: Fraction | None = Field(
        description="Of the patients with an image that it says no of, those of whom one such "
        "image shows the finding"
    )
    misses_among_no_ci95: Interval95 | None
    patients: Count = Field(description="Test patients with an image that it says no of")
    undefined_reason: Reasons = Field(description=_REASONS)


class AbstentionRule(_Part):
    """How the thresholds below which the model says no were chosen on validation."""

    alpha: Fraction = Field(description="The share of misses that `low` stays under")
    confidence: Fraction = Field(description="With which it does, of each finding for itself")
    patients: Count = Field(description="Of validation")


class FindingMetrics(CalibrationMetrics):
    """The test metrics of one finding; the counts are of images at `threshold`."""

    auroc: Fraction | None
    auroc_ci95: Interval95 | None
    average_precision: Fraction | None
    average_precision_ci95: Interval95 | None
    metadata_auroc: Fraction | None = Field(default=None, description=_METADATA)
    metadata_auroc_ci95: Interval95 | None = None
    gain_over_metadata: Gap | None = Field(default=None, description=_GAIN)
    gain_over_metadata_ci95: GapInterval95 | None = None
    combined_auroc: Fraction | None = Field(default=None, description=_COMBINED)
    combined_auroc_ci95: Interval95 | None = None
    gain_of_combined: Gap | None = Field(default=None, description=_GAIN_OF_COMBINED)
    gain_of_combined_ci95: GapInterval95 | None = None
    auroc_within_view: Fraction | None = Field(default=None, description=_WITHIN_VIEW)
    auroc_within_view_ci95: Interval95 | None = None
    positives: Count
    prevalence: Fraction | None = Field(description="Share of these images with the finding")
    threshold: Fraction | None = Field(
        description="At or above which the finding is called present"
    )
    sensitivity: Fraction | None
    sensitivity_ci95: Interval95 | None
    specificity: Fraction | None
    specificity_ci95: Interval95 | None
    ppv: Fraction | None = Field(
        default=None, description="Right calls among the images that are called positive"
    )
    ppv_ci95: Interval95 | None = None
    npv: Fraction | None = Field(
        default=None, description="Right calls among the images that are called negative"
    )
    npv_ci95: Interval95 | None = None
    stated_prevalence: Fraction | None = Field(
        default=None, description="That of where the model is to be used, as its user states it"
    )
    ppv_at_stated_prevalence: Fraction | None = Field(default=None, description=_BAYES)
    ppv_at_stated_prevalence_ci95: Interval95 | None = None
    npv_at_stated_prevalence: Fraction | None = Field(default=None, description=_BAYES)
    npv_at_stated_prevalence_ci95: Interval95 | None = None
    decision_curve: DecisionCurve | None = None
    abstention: AbstentionMetrics | None = None
    true_positives: Count
    false_positives: Count
    false_negatives: Count
    true_negatives: Count
    undefined_reason: Reasons = Field(description=_REASONS)


class FindingRow(FindingMetrics):
    """The test metrics of one finding, with its name.

    Attributes:
        calibrated: those of its calibrated probabilities, as far as there are any.
    """

    finding: Finding
    calibrated: CalibrationMetrics | None


class OperatingPoint(_Part):
    """How the thresholds were chosen: by which rule, on how many validation images."""

    rule: Literal["youden", "f1", "sensitivity", "specificity", "cost", "alerts"]
    target: Amount | None = Field(
        description="The sensitivity or specificity asked for, the false alarms that one missed "
        "finding weighs, or the alerts per 1,000 images"
    )
    images: Count = Field(description=_FITTED_ON)
    undefined: FindingsLeftOut = Field(
        description="Findings that none could be fitted to, which keep 0.5, and why"
    )


class Calibrated(_Part):
    """The macro figures of the calibrated probabilities, and by what they were calibrated."""

    method: Literal["platt", "temperature"]
    images: Count = Field(description=_FITTED_ON)
    undefined: FindingsLeftOut = Field(
        description="Findings that keep their raw probabilities, and why"
    )
    brier_macro: Fraction
    brier_macro_ci95: Interval95 | None
    expected_calibration_error_macro: Fraction
    per_finding: dict[Finding, CalibrationMetrics] = Field(min_length=1)
    undefined_reason: Reasons = Field(description=_REASONS)


class Subgroup(_Part):
    """The scores of one group of images, and its gaps to all others of known group."""

    by: Annotated[str, Field(min_length=1), WrapValidator(_any_text)] = Field(
        description="sex, age, view, visit, or another column of the data"
    )
    group: Annotated[str, Field(min_length=1), WrapValidator(_any_text)]
    images: AtLeastOne
    patients: AtLeastOne
    findings: Count = Field(description="How many the macro AUROC is over")
    auroc_macro: Fraction | None
    auroc_macro_ci95: Interval95 | None
    gap: Gap | None = Field(description="Macro AUROC minus that of all other images of known group")
    gap_ci95: GapInterval95 | None
    gap_ci95_simultaneous: GapInterval95 | None = Field(default=None, description=_TOGETHER)
    smallest_gap: Fraction | None = Field(default=None, description=_SMALLEST)
    sensitivity_macro: Fraction | None = Field(
        default=None, description="Over the findings that at least ten of its patients have"
    )
    sensitivity_macro_ci95: Interval95 | None = None
    sensitivity_gap: Gap | None = None
    sensitivity_gap_ci95: GapInterval95 | None = None
    sensitivity_gap_ci95_simultaneous: GapInterval95 | None = None
    smallest_sensitivity_gap: Fraction | None = None
    specificity_macro: Fraction | None = Field(
        default=None, description="Over the findings that at least ten of its patients lack"
    )
    specificity_macro_ci95: Interval95 | None = None
    specificity_gap: Gap | None = None
    specificity_gap_ci95: GapInterval95 | None = None
    specificity_gap_ci95_simultaneous: GapInterval95 | None = None
    smallest_specificity_gap: Fraction | None = None
    flagged: bool = Field(
        description="Whether some gap's simultaneous interval excludes zero; in records without "
        "any, whether the interval of the AUROC gap does"
    )
    flagged_by: Annotated[tuple[Literal["AUROC", "sensitivity", "specificity"], ...], _LISTED] = ()
    undefined_reason: Reasons = Field(description=_REASONS)

    @property
    def gaps(self) -> tuple[tuple[float | None, Interval | None, float | None], ...]:
        """In AUROC, sensitivity and specificity: gap, its simultaneous interval, the smallest."""
        return (
            (self.gap, self.gap_ci95_simultaneous, self.smallest_gap),
            (
                self.sensitivity_gap,
                self.sensitivity_gap_ci95_simultaneous,
                self.smallest_sensitivity_gap,
            ),
            (
                self.specificity_gap,
                self.specificity_gap_ci95_simultaneous,
                self.smallest_specificity_gap,
            ),
        )


class MetadataModel(_Part):
    """Logistic regressions of the findings on metadata; the follow-up number n is log(1 + n)."""

    images: Count = Field(description="Training images that they are fitted on")
    log_odds: dict[Finding, dict[AnyText, float]] = Field(
        description="What a unit of each feature adds to the log odds of each finding"
    )
    undefined: FindingsLeftOut = Field(description="Findings without a regression, and why")


class CombinedModel(_Part):
    """Logistic regressions of the findings on metadata's log odds and the model's logit."""

    images: Count = Field(description="Validation images that they are fitted on")
    log_odds: dict[Finding, dict[AnyText, float]] = Field(
        description="The intercept, and what a unit of metadata's log odds and of the model's "
        "logit adds"
    )
    undefined: FindingsLeftOut = Field(description="Findings without a regression, and why")


class ShuffledLabels(_Part):
    """The same recipe trained on shuffled labels and tested on the same images: 0.5 is expected."""

    auroc_macro: Fraction | None
    auroc_macro_ci95: Interval95 | None
    gain: Gap | None = Field(description="The run's macro AUROC minus it, in the same resamples")
    gain_ci95: GapInterval95 | None
    epochs: Count = Field(description="That it was trained for, as the run")
    undefined_reason: Reasons = Field(description=_REASONS)


class TestMetrics(_Part):
    """The metrics of a checkpoint on the test images."""

    __test__: ClassVar = False  # not a test class, whatever pytest makes of the name

    images: Count
    patients: Count
    images_without_finding: Count | None = Field(
        default=None, description="Images with none of the findings"
    )
    label_accuracy: Fraction | None = Field(
        description="Correct labels over images x findings, at threshold 0.5"
    )
    label_accuracy_ci95: Interval95 | None
    always_negative_accuracy: Fraction | None = Field(
        description="The label accuracy of a model that never reports a finding"
    )
    prevalence_accuracy: Fraction | None = Field(description=_GUESSED)
    auroc_macro_findings: Count = Field(description="How many findings the macro averages are over")
    auroc_macro: Fraction | None
    auroc_macro_ci95: Interval95 | None
    auroc_micro: Fraction | None
    auroc_micro_ci95: Interval95 | None
    average_precision_macro: Fraction | None
    average_precision_macro_ci95: Interval95 | None
    average_precision_micro: Fraction | None
    metadata_auroc_macro: Fraction | None = Field(default=None, description=_METADATA)
    metadata_auroc_macro_ci95: Interval95 | None = None
    gain_over_metadata_macro: Gap | None = Field(default=None, description=_GAIN)
    gain_over_metadata_macro_ci95: GapInterval95 | None = None
    combined_auroc_macro: Fraction | None = Field(default=None, description=_COMBINED)
    combined_auroc_macro_ci95: Interval95 | None = None
    gain_of_combined_macro: Gap | None = Field(default=None, description=_GAIN_OF_COMBINED)
    gain_of_combined_macro_ci95: GapInterval95 | None = None
    auroc_within_view_macro: Fraction | None = Field(default=None, description=_WITHIN_VIEW)
    auroc_within_view_macro_ci95: Interval95 | None = None
    brier_macro: Fraction | None = Field(
        description="Mean squared error of the probabilities, over all findings"
    )
    brier_macro_ci95: Interval95 | None
    prevalence_brier_macro: Fraction | None = Field(description=_GUESSED)
    expected_calibration_error_macro: Fraction | None
    undefined: FindingsLeftOut = Field(description="Findings without an AUROC, and why")
    undefined_reason: Reasons = Field(description=_REASONS)
    operating_point: OperatingPoint | None = Field(
        description="How the thresholds were chosen on validation; null for 0.5 everywhere"
    )
    abstention: AbstentionRule | None = Field(
        default=None, description="Of the `abstention` of each finding; null where it is off"
    )
    calibrated: Calibrated | None = Field(
        description="What calibration would change; all else is of the raw probabilities"
    )
    subgroups: Annotated[tuple[Subgroup, ...], _LISTED]
    metadata_model: MetadataModel | None = Field(
        default=None, description="The baseline that sees no image; null where it was not fitted"
    )
    combined_model: CombinedModel | None = Field(
        default=None, description="Metadata and the model together; null where it was not fitted"
    )
    shuffled_labels: ShuffledLabels | None = Field(
        default=None,
        description="Null where evaluation.shuffled did not ask for it, or the run ended before",
    )
    per_finding: dict[Finding, FindingMetrics] = Field(min_length=1)

    @cached_property
    def finding_rows(self) -> tuple[FindingRow, ...]:
        """The metrics of each finding with its name, raw and calibrated, in their order."""
        calibrated = self.calibrated.per_finding if self.calibrated else {}
        return tuple(
            FindingRow.model_construct(
                **dict(metrics), finding=finding, calibrated=calibrated.get(finding)
            )
            for finding, metrics in self.per_finding.items()
        )


class Metrics(_Part):
    """What was measured on the test images; null before the test."""

    test: TestMetrics | None


class Epoch(_Part):
    """One row of the history."""

    epoch: Count = Field(description="Counted from 0")
    train_loss: float | None
    val_loss: float | None
    val_auroc_macro: Fraction | None
    lr: Amount | None
    seconds: Amount | None
    images: Count | None = Field(default=None, description="Those trained on")


class Overlap(_Part):
    """Patients who are in two splits, and their images."""

    patients: Count
    images: Count


class Ages(_Part):
    """Age of who is on the images of a split, in years; null where no image's is known."""

    known: Count = Field(description="Images whose age is known")
    median: Amount | None
    quartiles: Annotated[tuple[Amount, Amount], _LISTED] | None


class Demographics(_Part):
    """Who is on the images of a split, by image."""

    sex: dict[Literal["female", "male", "unknown"], Count]
    view: dict[Literal["PA", "AP", "unknown"], Count]
    age: Ages


class DataSummary(_Part):
    """The data set, its split, and what was left out."""

    name: AnyText
    root: AnyText | None
    split: AnyText
    split_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    cache_key: AnyText | None
    patient_overlap: dict[AnyText, Overlap] = Field(
        description="By pair such as train-val; empty when the split is patient-disjoint"
    )
    images: dict[Split, Count] = Field(description="Images per split")
    patients: dict[Split, Count] = Field(description="Patients per split")
    positives: dict[Split, dict[Finding, Count]] = Field(
        description="Positive images per split and finding"
    )
    demographics: dict[Split, Demographics] | None = Field(
        default=None, description="Sex, view and age per split; null in older records"
    )
    dropped: dict[AnyText, Count] = Field(description="Rows left out, by reason")


class SlurmJob(_Part):
    """The job of the cluster that the run is, or was the last time."""

    name: AnyText = Field(description="Its number, with that in its array: 12, 12_3")
    restarts: Count = Field(description="How often it was queued again")


class Environment(_OpenPart):
    """The versions and the machine; null before a device is chosen."""

    python: AnyText
    torch: AnyText
    lightning: AnyText
    xray_lightning: AnyText | None = Field(
        None, description="This project's version; null where it was never installed"
    )
    device: AnyText | None = Field(description="The processor or GPU by its own name")
    accelerator: AnyText | None = Field(description="cpu, cuda, mps: what the run used")
    world_size: AtLeastOne | None
    hosts: Texts
    mpi: AnyText | None = Field(description="Version of the MPI library; null without MPI")
    slurm: SlurmJob | None = Field(default=None, description="Null outside of Slurm")
    strategy: AnyText | None = Field(description="single, ddp or mpi")
    precision_asked: AnyText | None
    precision_used: AnyText | None


class PeakMemory(_Part):
    """The most bytes that were in use at once."""

    host: Amount | None
    device: Amount | None


class Timing(_Part):
    """Where the time went, and rates; null where the run did not get so far."""

    startup: Amount | None = Field(
        description="Seconds from the start of the process to the first training step, without "
        "the cache"
    )
    cache: Amount | None = Field(description=_SECONDS)
    fit: Amount | None = Field(description=_SECONDS)
    test: Amount | None = Field(description=_SECONDS)
    shuffled: Amount | None = Field(
        default=None, description="Seconds of the further training on shuffled labels, and its test"
    )
    total: Amount | None = Field(description=_SECONDS)
    fit_images_per_second: Amount | None = Field(
        description="Training images over the whole of fit, validation included in the time"
    )
    steady_images_per_second: Amount | None = Field(
        description="Training images per second inside fit, without its first epoch's start"
    )
    step_seconds: Amount | None = Field(
        description="Mean of the steady steps, with the wait for their batches"
    )
    data_wait_fraction: Fraction | None = Field(
        description="Share of the training time spent waiting for data"
    )
    peak_memory_bytes: PeakMemory


class TrainingNotes(_OpenPart):
    """What the trainer had to say besides, such as warnings."""

    warnings: Texts = ()
    skipped_steps: Count = Field(
        default=0, description="Steps that fp16's loss scaling has left out"
    )


class Share(_Part):
    """So many tensors, and the numbers in them."""

    tensors: Count
    numbers: Count


class FirstWeights(_Part):
    """What the model began with, of a file of weights."""

    source: AnyText
    matched: AnyText = Field(description="How the file's names were matched to the model's")
    fits: Share = Field(description="Taken over from the file")
    left: Share = Field(description="In the file and not used")
    new: Share = Field(description="In the model and drawn afresh")
    findings: Texts = Field(description="Those whose outputs were taken over")
    seen: Texts = Field(description="The data sets and lists of images that it was trained on")
    seen_test: Texts = Field(description="What of the test images is among them")


class Results(_Part):
    """One run's record, as standard JSON: a number that could not be computed is null."""

    model_config = ConfigDict(
        title="results.json of one run",
        json_schema_extra={
            "additionalProperties": False,
            "if": {
                "properties": {"status": {"enum": ["failed", "interrupted", "skipped", "pruned"]}}
            },
            "then": {"properties": {"reason": {"type": "string", "minLength": 1}}},
        },
    )

    schema_version: Literal[1]
    name: AnyText
    command: AnyText
    status: Literal["running", "finished", "failed", "interrupted", "skipped", "pruned"]
    reason: AnyText | None = Field(description="One line; null only while running or when finished")
    seed: int | None
    git_commit: AnyText | None
    config: dict[AnyText, Any] = Field(
        description="The resolved configuration; paper_row marks a row of the paper's study"
    )
    data: DataSummary | None
    environment: Environment
    timing: Timing
    metrics: Metrics
    history: Annotated[tuple[Epoch, ...], _LISTED]
    training: TrainingNotes = TrainingNotes()
    first_weights: FirstWeights | None = Field(
        default=None, description="Null where the model began with no file of weights"
    )

    @field_validator("config")
    @classmethod
    def _paper_row_is_a_number(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("paper_row"), int | None):
            raise ValueError("paper_row must be a whole number or null")
        return config

    @model_validator(mode="after")
    def _its_end_has_a_reason(self) -> "Results":
        if self.status not in ("running", "finished") and not self.reason:
            raise ValueError(f"{self.status} without a reason")
        return self


class _Untitled(GenerateJsonSchema):
    """JSON schema without a title for each key, which would be the key again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema of results.json, as JSON Schema 2020-12."""
    schema = Results.model_json_schema(schema_generator=_Untitled)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
