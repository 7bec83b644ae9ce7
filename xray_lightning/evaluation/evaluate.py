"""Evaluation of checkpoints (`xray evaluate`) on one side of a split."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from xray_lightning.data.datamodule import SIDES, XrayDataModule
from xray_lightning.errors import UserError
from xray_lightning.evaluation.abstention import Abstention, AbstentionRule
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.compare import SCORES, gain
from xray_lightning.evaluation.ensemble import Answers, Member, read_members
from xray_lightning.evaluation.evaluation_data import DataChoice, data_for, seen_before
from xray_lightning.evaluation.fitted_in_checkpoint import (
    AGREED,
    AVERAGES,
    Recalibrated,
    abstention_of,
    fits,
    fitted_of,
)
from xray_lightning.evaluation.grouping import SUBGROUPS
from xray_lightning.evaluation.judge import training_prevalences
from xray_lightning.evaluation.label_agreement import ExpertOptions
from xray_lightning.evaluation.metadata_baseline import CombinedModel, MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.evaluation.predictive_values import StatedPrevalence
from xray_lightning.files import check_writable, told_if_unwritable, write_atomically
from xray_lightning.findings import differing
from xray_lightning.hardware import Speed, choose_accelerator, choose_precision
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.predictions import write_predictions
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import finite, predictions_name
from xray_lightning.runs.run_folder import Provenance

FILE_NAME = "evaluation.json"
SCHEMA_VERSION = 1

FROM_CHECKPOINT = "stored in the checkpoint"
FROM_VALIDATION = "fitted on validation predictions of this evaluation"
NOT_FITTED = "none: 0.5 everywhere, since validation itself is scored"


@dataclass(frozen=True)
class Options:
    """How checkpoints are to be scored.

    Attributes:
        side: `test`, `val` or `train`.
        average: `probabilities` or `logits`; of several checkpoints.
        accelerator: `auto`, `cpu` or `cuda`.
        precision: as the configuration's group of that name.
        resamples, seed: of the bootstrap; None for those of the first checkpoint's run.
        prevalence: of the findings at the place of use; None for that in the run's configuration.
        out: the folder to write to; None for `evaluation` in the run folder or, for several
            checkpoints, `ensemble` in the closest folder above all of their runs.
        labels, map: a CSV of other labels for the same images, and the map from its findings to
            the model's; None for none.
        tta: `flip` or `none`; None for the one that the operating points were fitted with.
    """

    data: DataChoice = field(default_factory=DataChoice)
    side: str = "test"
    average: str = "probabilities"
    accelerator: str = "auto"
    precision: str = "32-true"
    resamples: int | None = None
    seed: int | None = None
    prevalence: StatedPrevalence | None = None
    out: Path | None = None
    labels: Path | None = None
    map: Path | None = None
    tta: str | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("side", self.side, SIDES), ("average", self.average, AVERAGES)):
            if value not in known:
                raise UserError(f"--{key} {value} is unknown; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Scored:
    """Results of an evaluation, not yet written.

    Attributes:
        predictions: of the checkpoint or the ensemble, by side, one row per image: the requested
            side, and `val` if something was fitted to it.
        content: of evaluation.json.
        out: the folder to write to.
    """

    predictions: dict[str, pd.DataFrame]
    content: dict[str, Any]
    out: Path


def score(
    checkpoints: Sequence[Path], options: Options, *, command: str, progress: Display = unseen
) -> Scored:
    """Score checkpoints on one side of a split.

    Raises:
        XrayError: checkpoints or data that cannot be used, or a NaN or infinite logit.
    """
    members = read_members(checkpoints, tta=options.tta)
    first = members[0]
    out = folder_for(members, options.out)  # before the work, not after it
    trained = Provenance.of_checkpoint(first.path)
    findings = tuple(first.described["findings"])
    if trained.findings not in (None, findings):
        raise UserError(
            f"{first.path}: the checkpoint's findings, "
            f"{differing(findings, trained.findings or ())}: those of the run that it lies in"
        )
    resamples, seed = trained.bootstrap(options.resamples, options.seed)
    experts = ExpertOptions.of(options.labels, options.map, known=findings)
    stated = StatedPrevalence.chosen(options.prevalence, trained.evaluation, findings)
    accelerator = choose_accelerator(options.accelerator)
    precision = choose_precision(options.precision, accelerator=accelerator)
    Speed().prepare(accelerator=accelerator, local_ranks=1)
    data = data_for(first, trained, options.data, progress=progress)
    with _told_of_map(options.data):
        data.prepare_data()
    data.setup()
    answers = Answers(
        members=members,
        data=data,
        average=options.average,
        device=torch.device(accelerator),
        precision=precision,
        progress=progress,
    )
    whole, each = answers.of(options.side)
    points, calibration, source = _fitted(members, answers, options.side)
    abstention = _abstention(members, answers, points)
    metadata = MetadataModel.from_plain(trained.metadata_model) or MetadataModel.fit(
        data.table("train"), data.findings
    )
    names = SUBGROUPS if trained.subgroups is None else trained.subgroups
    known = [name for name in names if name in (*SUBGROUPS, *data.further_columns)]
    metrics = Evaluator(resamples=resamples, seed=seed, prevalence=stated, subgroups=known)(
        whole,
        operating_points=points,
        calibration=calibration,
        abstention=abstention,
        prevalences=trained.prevalences or training_prevalences(data),
        metadata=metadata,
        combined=_combined(answers, options.side, trained, metadata, own=source),
    )
    note = seen_before(first, trained, data, side=options.side)
    kept = source["operating_points"] == FROM_CHECKPOINT
    record = Recalibrated.in_entry(first.described) if kept else None
    if record is not None:
        note = "; ".join(filter(None, [note, record.told]))
    elif options.side == "val" and kept:
        own = "its operating points and calibration were fitted to the validation images"
        note = "; ".join(filter(None, [note, own]))
    if lacking := [name for name in names if name not in known]:
        none = f"no subgroups by {', '.join(lacking)}, which other data need not have"
        note = "; ".join(filter(None, [note, none]))
    content = {
        **head(members, data, side=options.side, command=command),
        "note": note,
        "precision": precision,
        "average": options.average if len(members) > 1 else None,
        "fitted": source,
        "bootstrap": {"resamples": resamples, "seed": seed},
        "metrics": metrics,
        "expert_labels": None
        if experts is None
        else experts.scored(whole, operating_points=points, resamples=resamples, seed=seed),
        "ensemble": None,
    }
    if len(members) > 1:
        over_mean, over_each = gain(each, whole, resamples=resamples, seed=seed)
        content["ensemble"] = {
            "gain_over_mean": over_mean.to_plain(),
            "members": [
                {
                    "path": str(member.path),
                    **{name: getattr(one.first, name) for name in SCORES},
                    "gain": one.to_plain(),
                }
                for member, one in zip(members, over_each, strict=True)
            ],
        }
    return Scored(answers.given, content, out)


def head(
    members: Sequence[Member], data: XrayDataModule, *, side: str, command: str
) -> dict[str, Any]:
    """The start of evaluation.json: which checkpoints were scored on what."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "tta": members[0].tta,
        "checkpoints": [
            {
                "path": str(member.path),
                "sha256": member.sha256,
                **{key: member.described.get(key) for key in ("model", *AGREED)},
            }
            for member in members
        ],
        "data": {
            **{k: v for k, v in data.describe().items() if k in ("name", "root", "split")},
            "split_sha256": data.usable.split.sha256,
            "side": side,
        },
    }


@contextmanager
def _told_of_map(choice: DataChoice) -> Iterator[None]:
    """Add the advice --map to an error about findings that the table of other data lacks."""
    try:
        yield
    except UserError as error:
        if choice.root is None or "data.findings" not in str(error):
            raise
        raise UserError(f"{error}; where they have other names there: --map MAP") from error


def write(scored: Scored) -> Path:
    """Write evaluation.json and the predictions_<side>.csv; returns the folder.

    Raises:
        UserError, RunFailedError: it cannot be written to.
    """
    out = scored.out
    text = json.dumps(finite(scored.content), indent=1, allow_nan=False)
    with told_if_unwritable(f"--out {out} cannot be written", advice="give another folder"):
        out.mkdir(parents=True, exist_ok=True)
        if (out / FILE_NAME).is_file():  # an earlier evaluation, which may have had more sides
            for side in set(SIDES) - scored.predictions.keys():
                (out / predictions_name(side)).unlink(missing_ok=True)
        for side, predictions in scored.predictions.items():
            write_predictions(out, predictions, side=side)
        write_atomically(out / FILE_NAME, text + "\n")
    return out


def _fitted(
    members: Sequence[Member], answers: Answers, side: str
) -> tuple[OperatingPoints | None, Calibration | None, dict[str, Any]]:
    """Operating points and calibration, and where each is from.

    A single checkpoint's own are used. For an ensemble, another test-time augmentation or a
    checkpoint without any, they are fitted on validation by the first member's rule and method;
    both are None if validation is the side to be scored.
    """
    try:
        points, calibration = fitted_of(members[0].described)
    except UserError as error:
        raise UserError(f"{members[0].path}: {error}") from error
    sources: dict[str, Any] = {"operating_points": None, "calibration": None}
    if len(members) == 1 and points is not None and fits(members[0]):
        sources["operating_points"] = FROM_CHECKPOINT
        sources["calibration"] = FROM_CHECKPOINT if calibration else None
        return points, calibration, sources
    if side == "val":
        return None, None, sources | {"operating_points": NOT_FITTED}
    rule = OperatingRule() if points is None else OperatingRule(points.rule, points.target)
    val, _ = answers.of("val")
    sources["operating_points"] = FROM_VALIDATION
    if calibration is not None:
        calibration = Calibrator(calibration.method).fit(val)
        sources["calibration"] = FROM_VALIDATION
    return rule.fit(val), calibration, sources


def _combined(
    answers: Answers,
    side: str,
    trained: Provenance,
    metadata: MetadataModel,
    *,
    own: Mapping[str, Any],
) -> CombinedModel | None:
    """Metadata and the model combined: the run's regressions, or fitted on validation if possible.

    Args:
        own: where the operating points are from. If from the checkpoint, it is the one that its
            run has tested, and the run's regressions are for its outputs.
    """
    if side == "val":  # it is fitted to these images
        return None
    kept = CombinedModel.from_plain(trained.combined_model)
    if kept is not None and own["operating_points"] == FROM_CHECKPOINT:
        return kept
    split, digest = answers.data.usable.split, answers.members[0].described.get("split_sha256")
    if "val" not in answers.given and split.sha256 != digest:
        return None
    val = answers.given["val"] if "val" in answers.given else answers.of("val")[0]
    return CombinedModel.fit(val, metadata)


def _abstention(
    members: Sequence[Member], answers: Answers, points: OperatingPoints | None
) -> Abstention | None:
    """The checkpoint's lower thresholds; refitted for an ensemble or another augmentation."""
    try:
        own = abstention_of(members[0].described)
    except UserError as error:
        raise UserError(f"{members[0].path}: {error}") from error
    alone = len(members) == 1 and fits(members[0])
    if own is None or points is None or alone:
        return own if points else None
    val = answers.given["val"]
    return AbstentionRule(own.alpha, own.confidence).fit(val, points)


def folder_for(
    members: Sequence[Member], asked_for: Path | None, *, name: str = "evaluation"
) -> Path:
    """The output folder: `asked_for`, else `name` in the run folder or `ensemble` above all runs.

    Raises:
        UserError: it is a run folder or not writable, or a default with an evaluation of other
            checkpoints.
    """
    paths = [member.path.absolute() for member in members]
    folders = [Provenance.of_checkpoint(path).folder or path.parent for path in paths]
    several = Path(os.path.commonpath(folders)) / "ensemble"
    out = asked_for or (several if len(members) > 1 else folders[0] / name)
    if (out / RESULTS).exists():
        raise UserError(
            f"--out {out} is a run folder, whose own files would be overwritten; give another"
        )
    check_writable(out, key="--out")
    if asked_for is not None:
        return out
    try:
        before = json.loads((out / FILE_NAME).read_text(encoding="utf-8"))["checkpoints"]
        held = [str(Path(one["path"]).absolute()) for one in before]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return out  # nothing there that could be lost
    if held != [str(path) for path in paths]:
        raise UserError(
            f"{out / FILE_NAME} is of other checkpoints ({', '.join(held)}); give --out DIR"
        )
    return out
