"""Recomputation of every metric from files of predictions (`xray evaluate --predictions`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError
from xray_lightning.evaluation.abstention import Abstention, AbstentionRule
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.cross_validation import OutOfFold, OutOfFoldMetadata
from xray_lightning.evaluation.evaluate import SCHEMA_VERSION
from xray_lightning.evaluation.grouping import subgroups_in
from xray_lightning.evaluation.label_agreement import ExpertOptions
from xray_lightning.evaluation.metadata_baseline import CombinedModel, MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.evaluation.predictive_values import StatedPrevalence
from xray_lightning.runs.predictions import VALIDATION, findings_of, read_predictions
from xray_lightning.runs.run_folder import Provenance

NO_VAL = (
    "no validation predictions: operating points are 0.5 everywhere, and nothing is calibrated; "
    "give them with --val FILE"
)
NO_RESULTS = "no results.json beside the file: without training prevalences there is no baseline"


@dataclass(frozen=True)
class Recomputed:
    """Metrics recomputed from files of predictions.

    Attributes:
        predictions: the file; for a cross-validation, one per fold.
        val: the file that operating points and calibration were fitted to; None for none.
        metrics: as metrics.test of results.json.
        notes: one line for each thing that was missing, or that differs from the run's own test.
        expert_labels: as in evaluation.json; None if none were given.
    """

    predictions: tuple[Path, ...]
    val: Path | None
    metrics: dict[str, Any]
    notes: tuple[str, ...]
    expert_labels: dict[str, Any] | None = None
    side: str = ""  # of its rows; empty where it is not known, or of several

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        files = [str(file) for file in self.predictions]
        return {
            "schema_version": SCHEMA_VERSION,
            "predictions": files[0] if len(files) == 1 else files,
            "val": None if self.val is None else str(self.val),
            "notes": list(self.notes),
            "metrics": self.metrics,
            "expert_labels": self.expert_labels,
        }


def recompute(
    predictions: Path | Sequence[Path],
    *,
    val: Path | None = None,
    resamples: int | None = None,
    seed: int | None = None,
    labels: Path | None = None,
    map: Path | None = None,
    prevalence: StatedPrevalence | None = None,
) -> Recomputed:
    """Score a file of predictions as its run did.

    Args:
        predictions: predictions_test.csv of a run folder, or the like. The results.json beside it,
            if any, gives the training prevalences and the evaluation options. Several files are
            the folds of a cross-validation; the results.json of the first is used.
        val: the validation predictions; by default predictions_val.csv beside predictions_test.csv.
        resamples, seed: of the bootstrap; None for those of the run.
        labels, map: a CSV of other labels for the same images, and the map from its findings to
            the model's; None for none.
        prevalence: of the findings at the place of use; None for that in the run's configuration.

    Raises:
        UserError: a file that is not there, or the first fault in it with its line and column.
    """
    files = (predictions,) if isinstance(predictions, Path) else tuple(predictions)
    folds = OutOfFold.read(files) if len(files) > 1 else None
    table = read_predictions(files[0]) if folds is None else folds.table
    known = findings_of(table.columns, what=str(files[0]))
    experts = ExpertOptions.of(labels, map, known=known)
    trained = Provenance.of_folder(files[0].absolute().parent)
    notes = [] if trained.prevalences else [NO_RESULTS]
    if folds is not None:
        notes.append(folds.spread)
    if val is None and folds is None:
        val = _beside(files[0])
    if val is not None and val.resolve() in [file.resolve() for file in files]:
        raise UserError(
            f"--val {val} is the file that is scored: operating points must be fitted to others"
        )
    points, calibration, abstention = (None,) * 3 if val is None else _fit(val, trained)
    if val is None:
        notes.append(NO_VAL)
    elif trained.tested_only:
        notes.append(
            f"the run took the operating points that its checkpoint held; these are fitted to {val}"
        )
    if folds is None:
        metadata = MetadataModel.from_plain(trained.metadata_model)
        combined = CombinedModel.from_plain(trained.combined_model)
        if "split" in table and (table["split"] == VALIDATION).any():
            combined = None  # it was fitted to these images
    else:
        metadata, combined = OutOfFoldMetadata.of(folds), None
    if folds is None and combined is None and val is not None and metadata is not None:
        combined = CombinedModel.fit(read_predictions(val), metadata)
    resamples, seed = trained.bootstrap(resamples, seed)
    findings = findings_of(table.columns, what="predictions")
    stated = StatedPrevalence.chosen(prevalence, trained.evaluation, findings)
    subgroups = subgroups_in(table) if trained.subgroups is None else trained.subgroups
    metrics = Evaluator(resamples=resamples, seed=seed, prevalence=stated, subgroups=subgroups)(
        table,
        operating_points=points,
        calibration=calibration,
        abstention=abstention,
        prevalences=trained.prevalences,
        metadata=metadata,
        combined=combined,
    )
    both = None
    if experts is not None:
        both = experts.scored(table, operating_points=points, resamples=resamples, seed=seed)
    sides = set(table["split"]) if "split" in table else set()
    side = sides.pop() if len(sides) == 1 else ""
    return Recomputed(files, val, metrics, tuple(notes), both, side)


def _beside(predictions: Path) -> Path | None:
    """The validation predictions beside those of the test images, if they are there."""
    beside = predictions.with_name(re.sub(r"(?<![a-z])test(?![a-z])", "val", predictions.name))
    return beside if beside.name != predictions.name and beside.is_file() else None


def _fit(
    val: Path, trained: Provenance
) -> tuple[OperatingPoints, Calibration | None, Abstention | None]:
    table = read_predictions(val)
    rule = OperatingRule(**_options(trained.evaluation.get("operating_point")))
    given = trained.evaluation.get("calibration", {})
    calibrator = None if given is None else Calibrator(**_options(given))
    given = trained.evaluation.get("abstention", {})
    abstention = None if given is None else AbstentionRule(**_options(given))
    points = rule.fit(table)
    return (
        points,
        None if calibrator is None else calibrator.fit(table),
        None if abstention is None else abstention.fit(table, points),
    )


def _options(given: Any) -> dict[str, Any]:
    """The arguments in a node of the configuration."""
    if not isinstance(given, Mapping):
        return {}
    options = {key: value for key, value in given.items() if not key.startswith("_")}
    unknown = options.keys() - {"rule", "target", "method", "alpha", "confidence"}
    if unknown:
        raise UserError(f"results.json beside the predictions: evaluation has {sorted(unknown)}")
    return options
