"""Evaluation of checkpoints or of predictions (`xray evaluate`) on one side of a split."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xray_lightning.data.datamodule import SIDES, XrayDataModule
from xray_lightning.data.manifest import holds_known_table
from xray_lightning.data.sources.phantom.dataset import PhantomSpec
from xray_lightning.errors import UserError, XrayError
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.compare import SCORES, Comparison, gain
from xray_lightning.evaluation.ensemble import Answers, Member, read_members
from xray_lightning.evaluation.judge import training_prevalences
from xray_lightning.evaluation.metadata_baseline import MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.model_entry import AGREED, AVERAGES, fitted_of
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.files import check_writable, told_if_unwritable, write_atomically
from xray_lightning.findings import differing
from xray_lightning.hardware import Speed, choose_accelerator, choose_precision
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.folder import Provenance
from xray_lightning.runs.predictions import csv_of, metrics_table, read_predictions
from xray_lightning.runs.record import FILE_NAME as RESULTS
from xray_lightning.runs.record import finite, predictions_name
from xray_lightning.terminal import by_reason, decimal, interval, readable, say, signed

log = logging.getLogger(__name__)

# Keys of a run's `data` configuration that say which images it used, and how they are kept.
KEPT = (
    *("name", "root", "images", "findings", "table", "columns", "uncertain", "empty"),
    *("split", "split_seed", "val_fraction", "test_fraction"),
    *("missing", "cache", "cache_dir", "batch_size"),
)


@dataclass(frozen=True)
class DataChoice:
    """What the caller wants otherwise than the first checkpoint's run had it; None for the same."""

    root: Path | None = None
    images: Path | None = None
    split: str | None = None
    missing: str | None = None
    cache_dir: Path | None = None
    batch_size: int | None = None


def data_for(
    member: Member, trained: Provenance, choice: DataChoice, *, progress: Display
) -> XrayDataModule:
    """The data to score on: that of the run unless chosen otherwise, as the model wants its images.

    Raises:
        UserError: no data is named, or its options are out of range.
    """
    chosen = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(choice).items()
        if value is not None
    }
    given, phantom = _kept(trained), trained.data.get("phantom")
    if choice.root is not None:  # other files: what was said of the run's own does not hold there
        given, phantom = _elsewhere(choice.root, given), None
    elif not given:
        raise UserError(
            f"{member.path} does not lie in a run folder whose {RESULTS} names its data; "
            "give --data DIR"
        )
    spec = None
    if isinstance(phantom, Mapping):
        spec = PhantomSpec(**{k: v for k, v in phantom.items() if not k.startswith("_")})
    findings = {"findings": member.described["findings"]}
    return XrayDataModule(
        **({"cache_dir": "data/cache"} | given | chosen | findings),
        image_size=member.described["image_size"],
        normalize=member.described["normalize"],
        allow_patient_overlap=True,  # of training sides; `seen_before` says what that means
        phantom=spec,
        progress=progress,
    )


def _elsewhere(root: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What holds of a folder that is not the run's."""
    kept = {key: given[key] for key in ("split_seed", "val_fraction") if key in given}
    kept["name"] = root.absolute().name
    if not holds_known_table(root):  # one's own, as the run's was if it had one
        kept |= {"columns": {}, "split": "patient_random"}
        kept |= {key: given[key] for key in ("columns", "uncertain", "empty") if key in given}
    return kept


def seen_before(
    member: Member, trained: Provenance, data: XrayDataModule, *, side: str
) -> str | None:
    """One line on what the model has been trained on of this side; None where it saw none of it."""
    split, own = data.usable.split.sha256, member.described.get("split_sha256")
    if side == "train" and split == own:
        return "these are the images that it was trained on: the scores say nothing of new ones"
    if split == own:
        return _shared(data, data, side)
    hashes = f"split {data.split_name} {split[:7]} is not the checkpoint's {str(own)[:7]}"
    before = _data_before(trained, own)
    if before is None:
        return f"{hashes}: whether it was trained on some of these patients cannot be told"
    if before.root.resolve() != data.root.resolve():
        return f"{hashes}: it was trained on other data, {before.root}"
    shared = _shared(before, data, side)
    return f"{hashes}: {shared or 'it was trained on none of these patients'}"


def _shared(before: XrayDataModule, data: XrayDataModule, side: str) -> str | None:
    trained = set(before.table("train")["patient_id"])
    scored = set(data.table(side)["patient_id"])
    if not (both := trained & scored):
        return None
    return (
        f"{len(both)} of the {len(scored)} patients scored were trained on, so that the scores "
        "are too good"
    )


def _data_before(trained: Provenance, split_sha256: str | None) -> XrayDataModule | None:
    """The data that a checkpoint was trained on, if it is still there and unchanged."""
    given = _kept(trained)
    if not given:
        return None
    try:
        data = XrayDataModule(**given, allow_patient_overlap=True)
        return data if data.usable.split.sha256 == split_sha256 else None
    except (XrayError, TypeError) as error:
        log.debug("the training data cannot be read: %s", error)
        return None


def _kept(trained: Provenance) -> dict[str, Any]:
    """The options of a run's data that `KEPT` names; none where it does not say which data."""
    given = {key: value for key, value in trained.data.items() if key in KEPT}
    return given if {"name", "root"} <= given.keys() else {}


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
        out: the folder to write to; None for `evaluation` in the run folder, or of several
            checkpoints `ensemble` above them all.
    """

    data: DataChoice = field(default_factory=DataChoice)
    side: str = "test"
    average: str = "probabilities"
    accelerator: str = "auto"
    precision: str = "32-true"
    resamples: int | None = None
    seed: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("side", self.side, SIDES), ("average", self.average, AVERAGES)):
            if value not in known:
                raise UserError(f"--{key} {value} is unknown; choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        predictions: by side, one row an image, of the checkpoint or of the ensemble: the side
            asked for, and `val` where something was fitted to it.
        content: evaluation.json.
        out: the folder that it is to be written to.
    """

    predictions: dict[str, pd.DataFrame]
    content: dict[str, Any]
    out: Path


def score(
    checkpoints: Sequence[Path], options: Options, *, command: str, progress: Display = unseen
) -> Scored:
    """Score checkpoints on one side of a split.

    Raises:
        XrayError: checkpoints or data that cannot be used, or an answer that is no number.
    """
    members = read_members(checkpoints)
    first = members[0]
    out = _folder(members, options.out)  # before the work, not after it
    trained = Provenance.of_checkpoint(first.path)
    findings = tuple(first.described["findings"])
    if trained.findings not in (None, findings):
        raise UserError(
            f"{first.path}: the checkpoint's findings, "
            f"{differing(findings, trained.findings or ())}: those of the run that it lies in"
        )
    resamples, seed = trained.bootstrap(options.resamples, options.seed)
    accelerator = choose_accelerator(options.accelerator)
    precision = choose_precision(options.precision, accelerator=accelerator)
    Speed().prepare(accelerator=accelerator, local_ranks=1)
    data = data_for(first, trained, options.data, progress=progress)
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
    metrics = Evaluator(resamples=resamples, seed=seed)(
        whole,
        operating_points=points,
        calibration=calibration,
        prevalences=trained.prevalences or training_prevalences(data),
        metadata=MetadataModel.from_plain(trained.metadata_model)
        or MetadataModel.fit(data.table("train"), data.findings),
    )
    note = seen_before(first, trained, data, side=options.side)
    if options.side == "val" and source["operating_points"] == FROM_CHECKPOINT:
        own = "its operating points and calibration were fitted to the validation images"
        note = "; ".join(filter(None, [note, own]))
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
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
            "side": options.side,
        },
        "note": note,
        "precision": precision,
        "average": options.average if len(members) > 1 else None,
        "fitted": source,
        "bootstrap": {"resamples": resamples, "seed": seed},
        "metrics": metrics,
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


def write(scored: Scored) -> Path:
    """Write evaluation.json and the predictions_<side>.csv; returns the folder.

    Raises:
        UserError, RunFailedError: it cannot be written to.
    """
    out = scored.out
    text = json.dumps(finite(scored.content), indent=1, allow_nan=False)
    with told_if_unwritable(f"--out {out} cannot be written", advice="give another folder"):
        out.mkdir(parents=True, exist_ok=True)
        for side in set(SIDES) - scored.predictions.keys():
            (out / predictions_name(side)).unlink(missing_ok=True)  # of an earlier evaluation
        for side, predictions in scored.predictions.items():
            write_atomically(out / predictions_name(side), csv_of(predictions))
        write_atomically(out / FILE_NAME, text + "\n")
    return out


def _fitted(
    members: Sequence[Member], answers: Answers, side: str
) -> tuple[OperatingPoints | None, Calibration | None, dict[str, Any]]:
    """Operating points and calibration, and where each is from.

    A checkpoint's own are used. An ensemble is a model of its own: they are fitted anew, by the
    first member's rule, on validation alone.
    """
    try:
        points, calibration = fitted_of(members[0].described)
    except UserError as error:
        raise UserError(f"{members[0].path}: {error}") from error
    sources: dict[str, Any] = {"operating_points": None, "calibration": None}
    if len(members) == 1 and points is not None:
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


def _folder(members: Sequence[Member], asked_for: Path | None) -> Path:
    """Where to write: by default `evaluation` in the run folder, or `ensemble` above them all.

    Raises:
        UserError: the files there are a run's, or of other checkpoints where nobody has named it.
    """
    paths = [member.path.absolute() for member in members]
    folders = [Provenance.of_checkpoint(path).folder or path.parent for path in paths]
    several = Path(os.path.commonpath(folders)) / "ensemble"
    out = asked_for or (several if len(members) > 1 else folders[0] / "evaluation")
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
    except (OSError, ValueError, KeyError, TypeError):
        return out  # nothing there that could be lost
    if held != [str(path) for path in paths]:
        raise UserError(
            f"{out / FILE_NAME} is of other checkpoints ({', '.join(held)}); give --out DIR"
        )
    return out


NO_VAL = (
    "no validation predictions: operating points are 0.5 everywhere, and nothing is calibrated; "
    "give them with --val FILE"
)
NO_RESULTS = "no results.json beside the file: without training prevalences there is no baseline"


@dataclass(frozen=True)
class Recomputed:
    """What a file of predictions scores.

    Attributes:
        val: the file that operating points and calibration were fitted to; None for none.
        metrics: as metrics.test of results.json.
        notes: what was not there, or is not what it was in the run.
    """

    predictions: Path
    val: Path | None
    metrics: dict[str, Any]
    notes: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "predictions": str(self.predictions),
            "val": None if self.val is None else str(self.val),
            "notes": list(self.notes),
            "metrics": self.metrics,
        }


def recompute(
    predictions: Path,
    *,
    val: Path | None = None,
    resamples: int | None = None,
    seed: int | None = None,
) -> Recomputed:
    """Score a file of predictions as its run did.

    Args:
        predictions: predictions_test.csv of a run folder, or the like. The results.json beside it,
            if any, gives the training prevalences, and how the run was evaluated.
        val: the validation predictions; by default predictions_val.csv beside predictions_test.csv.
        resamples, seed: of the bootstrap; None for those of the run.

    Raises:
        UserError: a file that is not there, or the first fault in it with its line and column.
    """
    table = read_predictions(predictions)
    trained = Provenance.of_folder(predictions.absolute().parent)
    notes = [] if trained.prevalences else [NO_RESULTS]
    beside = predictions.with_name(predictions.name.replace("test", "val"))
    if val is None and beside.name != predictions.name and beside.is_file():
        val = beside
    if val is not None and val.resolve() == predictions.resolve():
        raise UserError(
            f"--val {val} is the file that is scored: operating points must be fitted to others"
        )
    points, calibration = (None, None) if val is None else _fit(val, trained)
    if val is None:
        notes.append(NO_VAL)
    elif trained.tested_only:
        notes.append(
            f"the run took the operating points that its checkpoint held; these are fitted to {val}"
        )
    resamples, seed = trained.bootstrap(resamples, seed)
    metrics = Evaluator(resamples=resamples, seed=seed)(
        table,
        operating_points=points,
        calibration=calibration,
        prevalences=trained.prevalences,
        metadata=MetadataModel.from_plain(trained.metadata_model),
    )
    return Recomputed(predictions, val, metrics, tuple(notes))


def _fit(val: Path, trained: Provenance) -> tuple[OperatingPoints, Calibration | None]:
    table = read_predictions(val)
    rule = OperatingRule(**_options(trained.evaluation.get("operating_point")))
    given = trained.evaluation.get("calibration", {})
    calibrator = None if given is None else Calibrator(**_options(given))
    return rule.fit(table), None if calibrator is None else calibrator.fit(table)


def _options(given: Any) -> dict[str, Any]:
    """The arguments in a node of the configuration."""
    if not isinstance(given, Mapping):
        return {}
    options = {key: value for key, value in given.items() if not key.startswith("_")}
    unknown = options.keys() - {"rule", "target", "method"}
    if unknown:
        raise UserError(f"results.json beside the predictions: evaluation has {sorted(unknown)}")
    return options


SIDE_TITLES = {"train": "Training", "val": "Validation", "test": "Test"}
EXCLUDES, INCLUDES = "excludes zero", "includes zero"
LABELS = {
    "auroc_macro": "AUROC, macro",
    "average_precision_macro": "AP, macro",
    "label_accuracy": "Label accuracy",
    "brier_macro": "Brier score *",
}
LESS_IS_BETTER = "* less is better"
NOTES = (
    "Where nothing differs, one in twenty of the findings' intervals excludes zero by chance.",
    "The intervals are of the patients drawn, not of the training: another seed may differ more.",
)


def show_comparison(comparison: Comparison, console: Console, *, names: Sequence[str]) -> None:
    """Print both runs' scores, their difference with its interval, and what it says."""
    one, other = comparison.first, comparison.second
    table = _table("", "first", "second", "difference", "95 % interval", "")
    for key, label in LABELS.items():
        found = getattr(comparison, key).to_plain()
        _add(table, label, getattr(one, key), getattr(other, key), found)
    table.add_section()
    for finding, found in comparison.per_finding.items():
        scores = one.per_finding[finding], other.per_finding[finding]
        _add(table, readable(finding), *scores, found.to_plain())
    say(f"first   {names[0]}", f"second  {names[1]}", console=console)
    images = f"{comparison.images:,} test images of {comparison.patients:,} patients"
    say(f"{images}; difference: second minus first", console=console)
    console.print(table)
    lacking = {readable(name): found.reason for name, found in comparison.per_finding.items()}
    say(
        LESS_IS_BETTER,
        *by_reason((name, reason) for name, reason in lacking.items() if reason is not None),
        f"Label accuracy of always answering no finding: {one.always_negative:.4f}.",
        sentence(comparison),
        *NOTES,
        console=console,
    )


def sentence(comparison: Comparison) -> str:
    """What the difference in macro AUROC says."""
    found = comparison.auroc_macro
    if found.value is None:
        return f"Macro AUROC: not defined, {found.reason}."
    start = f"Macro AUROC over {len(comparison.findings)} findings, second - first: "
    if found.ci95 is None:
        return f"{start}{found.value:+.4f}, without an interval: {found.reason}."
    ends = interval(found.ci95, "{:+.4f}".format, joint=" to ")
    numbers = f"{found.value:+.4f} (95 % interval {ends})"
    if not found.excludes_zero:
        return f"{start}{numbers}. It includes zero: these images do not tell them apart."
    better = "second" if found.value > 0 else "first"
    return f"{start}{numbers}. It excludes zero: the {better} is better on these images."


def show_scored(scored: Scored, console: Console) -> None:
    """Print what checkpoints score, and for an ensemble what averaging gains."""
    content = scored.content
    data, metrics = content["data"], content["metrics"]
    table = metrics_table(metrics)
    where = SIDE_TITLES[data["side"]]
    table.title = f"{where}: {metrics['images']:,} images of {metrics['patients']:,} patients"
    console.print(table)
    split = f"split {data['split']} ({data['split_sha256'][:7]})"
    say(f"{data['name']}, {split}, {data['side']} side, in {content['precision']}", console=console)
    for name, source in content["fitted"].items():
        words = readable(name)
        if source is not None:
            say(f"{words[0].upper()}{words[1:]}: {source}", console=console)
    _show_baselines(metrics, console)
    if content["ensemble"] is not None:
        _show_gain(content, console)
    if content["note"] is not None:
        say(f"Note: {content['note']}", console=console, style="yellow")


def show_recomputed(recomputed: Recomputed, console: Console) -> None:
    """Print what a file of predictions scores."""
    console.print(metrics_table(recomputed.metrics))
    if recomputed.val is not None:
        say(f"Operating points and calibration: fitted to {recomputed.val}", console=console)
    _show_baselines(recomputed.metrics, console)
    for note in recomputed.notes:
        say(f"Note: {note}", console=console, style="yellow")


def _show_baselines(metrics: Mapping[str, Any], console: Console) -> None:
    """Print raw beside calibrated, and beside what knows no image."""
    parts = [f"raw {decimal(metrics['brier_macro'])}"]
    if (calibrated := metrics["calibrated"]) is not None:
        parts.append(f"calibrated by {calibrated['method']} {decimal(calibrated['brier_macro'])}")
    if metrics["prevalence_brier_macro"] is not None:
        parts.append(f"training prevalences {decimal(metrics['prevalence_brier_macro'])}")
    say(f"Brier score, less is better: {', '.join(parts)}", console=console)


def _show_gain(content: Mapping[str, Any], console: Console) -> None:
    ensemble = content["ensemble"]
    table = _table("Macro AUROC", "member", "ensemble", "gain", "95 % interval", "")
    whole = content["metrics"]["auroc_macro"]
    say(f"Ensemble: the mean of the {content['average']} of", console=console)
    for number, member in enumerate(ensemble["members"], start=1):
        say(f"  {number}  {member['path']}", console=console)
        gain = member["gain"]["auroc_macro"]
        _add(table, f"checkpoint {number}", member["auroc_macro"], whole, gain)
    over = ensemble["gain_over_mean"]
    mean = None if over["value"] is None else whole - over["value"]
    table.add_section()
    _add(table, "their mean", mean, whole, over)
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        words = place in (0, len(headings) - 1)
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    return table


def _add(
    table: Table, label: str, first: float | None, second: float | None, found: Mapping[str, Any]
) -> None:
    """Add a row; `found` is the plain difference of two scores."""
    excludes = found["excludes_zero"]
    table.add_row(
        Text(label),
        decimal(first),
        decimal(second),
        signed(found["value"]),
        interval(found["ci95"], signed, joint=" to "),
        "" if found["ci95"] is None else EXCLUDES if excludes else INCLUDES,
        style="bold" if excludes else "",
    )
