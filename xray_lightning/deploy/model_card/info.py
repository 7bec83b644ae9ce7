"""Model information (`xray info`), from a checkpoint or an export, and from its run."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xray_lightning.deploy.model import EXPORTED, fitted_in
from xray_lightning.deploy.onnx_backend import OnnxMember
from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_in_checkpoint import Recalibrated, tta_of
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.html.page import NOTICE
from xray_lightning.models.checkpoint import BEST, LAST, read_checkpoint
from xray_lightning.report import wording
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import finite
from xray_lightning.runs.run_folder import DamagedResultsError, Run, read_run
from xray_lightning.runs.schema import TestMetrics
from xray_lightning.terminal import NONE, count, counted, readable

# Buffers of a batch norm, which are not parameters.
_STATE = (".running_mean", ".running_var", ".num_batches_tracked")


# Keys of the network and its input. `pool_stages`: how many of the last stages are pooled;
# `hidden`: widths of additional fully connected layers; `parameters`: how many the backbone has,
# without those of the loss.
MODEL = (
    *("arch", "pool_stages", "hidden", "dropout", "parameters"),
    *("image_size", "normalize", "findings"),
)


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint's own description; None for what it does not record."""

    path: Path  # as given by the caller
    schema_version: int  # of its own description
    model: Mapping[str, Any]  # the network and its input, by the keys of `MODEL`
    split_sha256: str | None
    points: OperatingPoints | None
    calibration: Calibration | None
    epoch: int | None = None  # during which it was saved, from 1
    steps: int | None = None  # optimizer steps until then
    lightning: str | None = None  # the version that wrote it
    # For an export: checkpoint_sha256, precision, and int8, the scores compared with float32's.
    exported: Mapping[str, Any] | None = None
    int8_cost: str | None = None  # those scores in words
    recalibrated: Recalibrated | None = None  # on which site's images, if it was
    tta: str | None = None  # `flip`: fitted to logits averaged with those of the mirror image


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint, or an .onnx file that `xray export` has written; nothing is executed.

    Raises:
        UserError: it cannot be read, is of another schema, or its fitted values are damaged.
    """
    further: dict[str, Any]
    parameters = None
    if path.suffix.lower() == EXPORTED:
        described = OnnxMember.read(path).described
        int8 = described.get("int8")
        exported = {
            "checkpoint_sha256": described["checkpoint_sha256"],
            "precision": str(described.get("precision")),
            "int8": int8,
        }
        further = {"exported": exported, "int8_cost": _int8_cost(int8, path)}
    else:
        content = read_checkpoint(path)
        described = content["xray"]
        parameters = parameters_in(content.get("state_dict"), source=path)
        epoch = _whole(content.get("epoch"))
        further = {
            "epoch": None if epoch is None else epoch + 1,
            "steps": _whole(content.get("global_step")),
            "lightning": _text(content.get("pytorch-lightning_version")),
        }
    points, calibration = fitted_in(described, path=path)
    try:
        further["recalibrated"] = Recalibrated.in_entry(described)
        further["tta"] = tta_of(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return CheckpointInfo(
        path=path,
        schema_version=described["schema_version"],
        model=_model(described) | {"parameters": parameters},
        split_sha256=_text(described.get("split_sha256")),
        points=points,
        calibration=calibration,
        **further,
    )


def _model(described: Mapping[str, Any]) -> dict[str, Any]:
    """The network and its input as a checkpoint records them; None for malformed values."""
    recipe: Any = described.get("model")
    if not isinstance(recipe, Mapping):
        recipe = {}
    widths, dropout = recipe.get("hidden"), recipe.get("dropout")
    whole = isinstance(widths, list | tuple) and all(type(width) is int for width in widths)
    share = type(dropout) in (int, float) and 0 <= dropout <= 1
    return dict.fromkeys(MODEL) | {
        "arch": _text(recipe.get("arch")),
        "pool_stages": _whole(recipe.get("pool_stages")),
        "hidden": list(widths) if whole else [],
        "dropout": float(dropout) if share else None,
        "image_size": _whole(described.get("image_size")),
        "normalize": _text(described.get("normalize")),
        "findings": tuple(described["findings"]),
    }


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _text(value: Any) -> str | None:
    return printable(value)[:200] if isinstance(value, str) else None


def parameters_in(state: Any, *, source: Path) -> int:
    """Number of the backbone's parameters in a state dict.

    Raises:
        UserError: `state` is no state dict.
    """
    if not isinstance(state, Mapping):
        raise UserError(f"{source}: the checkpoint holds no weights")
    return sum(
        value.numel()
        for name, value in state.items()
        if str(name).startswith("backbone.")
        and not str(name).endswith(_STATE)
        and isinstance(value, torch.Tensor)
    )


def _int8_cost(said: Any, path: Path) -> str | None:
    """The change in AUROC by int8, in words; None for a model in float32."""
    if said is None:
        return None
    try:
        change = said["auroc_macro_change"]
        if change["value"] is None:
            return f"no macro AUROC: {change['undefined_reason']}"
        ends = change["ci95"]
        interval = f"95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "no interval"
        return (
            f"macro AUROC {said['auroc_macro']:.4f} on {said['images']:,} test images, "
            f"{change['value']:+.4f} beside float32 ({interval})"
        )
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: its metadata are damaged (int8); export it again") from error


# An absolute path within a word of a command line, up to a character that ends it in an override.
_ABSOLUTE = re.compile(r"(?:(?<=[=,\[{('\":])|^)(?:~[^/\\]*|[A-Za-z]:)?[/\\][^,\]})'\"]*")


def without_folders(command: str) -> str:
    """The command line with each absolute path cut to its last part: `data.root=.../nih`."""
    try:
        return shlex.join(map(last_parts, shlex.split(command)))
    except ValueError:  # an open quotation mark
        return "not shown: it cannot be split"


def last_parts(word: str) -> str:
    """A word of a command line with each absolute path in it cut to its last part."""
    return _ABSOLUTE.sub(lambda path: ".../" + re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], word)


@dataclass(frozen=True)
class ModelInfo:
    """All that is known of one model; `checkpoint` and `run` are never both None."""

    checkpoint: CheckpointInfo | None
    run: Run | None  # that has trained or tested the checkpoint
    results: Mapping[str, Any]  # the run's results.json as it is; empty where there is no run
    link: str  # why checkpoint and run are taken to belong together, or why one is missing
    untested: str | None  # why there are no test metrics; None if there are

    @property
    def name(self) -> str:
        """The run's name, else the file's."""
        if self.run is not None:
            return self.run.name
        return "" if self.checkpoint is None else self.checkpoint.path.name

    @property
    def test(self) -> TestMetrics | None:
        """The test metrics of this very checkpoint; None if there are none."""
        return None if self.run is None or self.untested is not None else self.run.test

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """The same test metrics as they are in results.json."""
        return None if self.test is None else self.results["metrics"]["test"]

    @property
    def model(self) -> Mapping[str, Any]:
        """The network and its input, by the keys of `MODEL`: from the checkpoint, else the run."""
        if self.checkpoint is not None:
            return self.checkpoint.model
        size, normalize = self.setting("data.image_size"), self.setting("data.normalize")
        return dict.fromkeys(MODEL) | {
            **{key: self.setting(f"model.{key}") for key in MODEL[:4]},
            "image_size": size if isinstance(size, int) else None,
            "normalize": None if normalize is None else str(normalize),
            "findings": () if self.run is None else self.run.findings,
        }

    def setting(self, key: str) -> Any:
        """A value of the run's configuration; None where there is no run."""
        return None if self.run is None else self.run.settings.get(key)

    @property
    def tested_only(self) -> bool:
        """Whether the run has tested a checkpoint that another run has trained."""
        return self.setting("ckpt_path") is not None

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, that was the best on validation; None where it is not known."""
        return None if self.run is None or self.tested_only else self.run.best_epoch


def model_info(path: Path) -> ModelInfo:
    """What is known of a checkpoint, or of the model of a run folder.

    Raises:
        UserError: no run or checkpoint is there, or it cannot be read.
    """
    if path.name == RESULTS:
        path = path.parent
    if not path.is_dir():
        return info_of_checkpoint(path)
    if (path / RESULTS).is_file():
        return info_of_run(path)
    if (alone := path / "checkpoints" / BEST).is_file():
        return info_of_checkpoint(alone)
    raise UserError(f"{path} is no run folder: it has no {RESULTS}; give one, or a .ckpt file")


def info_of_run(folder: Path) -> ModelInfo:
    """The model of a run: its best checkpoint or else its last, or the one that it has tested.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
    """
    try:
        run, results = _read(folder)
    except DamagedResultsError as error:
        raise UserError(printable(f"{folder / RESULTS}: {error}")) from error
    named = run.settings.get("ckpt_path")
    path, last = (folder / "checkpoints" / name for name in (BEST, LAST))
    if named is not None:
        path = Path(str(named))
    elif run.test is None and last.is_file() and not path.is_file():
        path = last  # no best checkpoint has been saved yet
    if not path.is_file():
        missing = f"checkpoints/{BEST}" if named is None else last_parts(str(named))
        untested = None if run.test else wording.no_test(run)
        return ModelInfo(None, run, results, f"No checkpoint: {missing} is not there.", untested)
    return _joined(read_checkpoint_info(path), run, results)


def info_of_checkpoint(path: Path) -> ModelInfo:
    """A checkpoint, and its run if the file is in RUN/checkpoints and matches that run.

    Raises:
        UserError: the checkpoint, or the exported model, cannot be read.
    """
    checkpoint = read_checkpoint_info(path)
    if checkpoint.exported is not None:
        return _alone(checkpoint, "An exported model names no run: ask its checkpoint.")
    folder = path.absolute().parent.parent
    if not (folder / RESULTS).is_file():
        told = f"the folder above its own has no {RESULTS}"
        return _alone(checkpoint, f"The checkpoint lies in no run folder: {told}.")
    try:
        run, results = _read(folder)
    except DamagedResultsError as error:
        return _alone(checkpoint, printable(f"The run's {RESULTS} cannot be read: {error}."))
    info = _joined(checkpoint, run, results)
    if info.checkpoint is None:  # it does not match the run
        return _alone(checkpoint, info.link)
    return info


def _read(folder: Path) -> tuple[Run, dict[str, Any]]:
    run = read_run(folder)
    return run, json.loads((folder / RESULTS).read_text(encoding="utf-8"))


def _alone(checkpoint: CheckpointInfo, why: str) -> ModelInfo:
    return ModelInfo(checkpoint, None, {}, why, f"Metrics are not known. {why}")


def _joined(checkpoint: CheckpointInfo, run: Run, results: Mapping[str, Any]) -> ModelInfo:
    """Checkpoint and run if they do not contradict each other; else the run alone."""
    untested = None if run.test else wording.no_test(run)
    if other := _differing(checkpoint, run):
        link = f"The checkpoint is not of the run beside it: {'; '.join(other)}."
        return ModelInfo(None, run, results, link, untested)
    alike = "Split, model and findings of the checkpoint are those of the run"
    info = ModelInfo(checkpoint, run, results, f"{alike}; no other sign tells.", untested)
    if run.test is None:
        return info
    if (record := checkpoint.recalibrated) is not None:
        reason = f"The run tested it before it was recalibrated on {record.data}"
        return replace(info, untested=f"{reason}: its operating points are others now.")
    best, own = info.best_epoch, checkpoint.epoch
    if None not in (best, own) and own != best:
        reason = f"The run tested the checkpoint of epoch {best}; this one is of {own}."
        return replace(info, untested=reason)
    if run.test.operating_point is not None:
        if checkpoint.points is None:
            reason = "The run's test is at operating points, and this checkpoint has none"
            return replace(info, untested=f"{reason}: it is not the one that was tested.")
        return replace(info, link=f"{alike}, and so is every operating point, to its last digit.")
    if best is not None and own == best:
        return replace(info, link=f"{alike}, and its epoch is the run's best.")
    return info


def _differing(checkpoint: CheckpointInfo, run: Run) -> list[str]:
    """How a checkpoint and a run contradict each other; values that one lacks do not count."""
    model, settings = checkpoint.model, run.settings
    hidden = None if model["arch"] is None else model["hidden"]
    pairs = [
        ("split", checkpoint.split_sha256, run.split_sha256),
        ("model", model["arch"], settings.get("model.arch")),
        ("model", hidden, settings.get("model.hidden")),
        ("image size", model["image_size"], settings.get("data.image_size")),
        ("normalisation", model["normalize"], settings.get("data.normalize")),
    ]
    found = [f"another {name}" for name, own, of in pairs if None not in (own, of) and own != of]
    # Test metrics list all findings in order; without them, counts in the data may lack some.
    own, of = model["findings"], run.findings
    alike = own == of if run.test else {*of} <= {*own}
    if not alike:
        found.append("other findings")
    fitted_by_run = checkpoint.points is not None and checkpoint.recalibrated is None
    if fitted_by_run and run.test is not None and run.test.operating_point:
        cuts = {row.finding: row.threshold for row in run.test.finding_rows}
        if checkpoint.points is not None and checkpoint.points.cuts != cuts:
            found.append("other operating points")
    return list(dict.fromkeys(found))


INTENDED = (
    "Research and teaching: comparing models, training recipes, hardware and evaluation methods in "
    "multi-label classification of chest X-rays."
)
OUT_OF_SCOPE = (
    "Anything that touches a patient: diagnosis, triage, screening, second reading, ruling out.",
    "Images unlike those it was trained on: it answers all the same (xray predict flags some).",
    "Findings that are not in its list: an image without any of them is not a healthy one.",
    "Taking a probability for a person's risk: it follows how frequent a finding is in the "
    "training images.",
)
_REVIEWED = (
    "a radiologist who looked at a sample found that they often do not say what the image shows "
    "(L. Oakden-Rayner, Exploring Large-scale Public Medical Image Datasets, Academic Radiology "
    "2020)"
)
MINED = (
    "The labels were read out of radiology reports by a program (Wang et al., CVPR 2017), and "
    f"{_REVIEWED}. The figures are against these labels, not against the truth."
)
FEW = 50  # findings with fewer positive training images are named among the limits


class DataSet(NamedTuple):
    """Facts about a public data set: full name, origin of images and labels, and credit."""

    name: str
    told: str
    credit: str | None = None  # None if no credit is due


_NIH = (
    "NIH Clinical Center; X. Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and "
    "Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases, "
    "CVPR 2017."
)
DATA_SETS: Mapping[str, DataSet] = {
    "nih": DataSet("NIH ChestX-ray14", MINED, _NIH),
    "ai4m": DataSet("NIH ChestX-ray14, the tables of the AI for Medicine course", MINED, _NIH),
    "chestmnist": DataSet(
        "ChestMNIST of MedMNIST v2, NIH ChestX-ray14 made small",
        f"It names no patients: whether the sides of its split share some is not known. {MINED}",
        f"J. Yang et al., MedMNIST v2, Scientific Data 2023. {_NIH}",
    ),
    "phantom": DataSet(
        "Chest X-ray phantoms",
        "Drawings, made by a program from a seed, of nobody's chest: the figures show that a "
        "pipeline works, and nothing about medicine.",
    ),
}
_UNTOLD = "Where the images come from, and who labelled them how, is not recorded."


def data_set(run: Run) -> DataSet:
    """Facts about the run's data, looked up by name, which is all that a run records of it."""
    return DATA_SETS.get(run.data) or DataSet(run.data or "not recorded", _UNTOLD)


def limits(info: ModelInfo, *, of_data: bool = True) -> Iterator[str]:
    """Limits of the model and of its metrics, one or two sentences each.

    Args:
        of_data: whether to include what is known of its data set.
    """
    run, test, size = info.run, info.test, info.model["image_size"]
    if run is not None:
        if of_data:
            yield data_set(run).told
        # Warnings may name files, and files may name patients.
        yield from wording.notes(replace(run, warnings=()))
        train = next((side.positives for side in run.sides if side.name == "train"), {})
        if rare := [f"{readable(name)} {count}" for name, count in train.items() if count < FEW]:
            yield f"Findings in fewer than {FEW} training images: {', '.join(rare)}."
    if test is not None:
        yield from wording.verdicts(test)
        yield (
            "The test images come from where the training images come from: how it does "
            "elsewhere is not known."
        )
        yield (
            "The intervals are of the patients drawn, not of the training: another seed may "
            "differ by more."
        )
        if few := [readable(row.finding) for row in test.finding_rows if row.auroc_ci95 is None]:
            yield f"Without an interval of their AUROC: {', '.join(few)}."
        if not test.subgroups:
            yield "How it does by sex, age, view or visit was not asked for, or is not known."
        if flagged := wording.flagged_groups(test.subgroups):
            yield f"Groups that stand apart from the others: {', '.join(flagged)}."
    if size is not None:
        yield f"It sees {size} x {size} pixels: smaller signs are lost."
    if info.checkpoint is not None and info.checkpoint.points is not None:
        images = counted(info.checkpoint.points.images, "validation image")
        if (record := info.checkpoint.recalibrated) is not None:
            images = f"{counted(record.images, 'image')} of {record.data}, as far as refitted"
        yield f"Its operating points are fitted to {images}: fit them anew for other images."


Terms = list[tuple[str, str]]


def model_terms(info: ModelInfo) -> Terms:
    """What the model is."""
    checkpoint, run, model = info.checkpoint, info.run, info.model
    findings, size = model["findings"], model["image_size"]
    said = [
        ("Backbone", _backbone(info)),
        (
            "Findings",
            f"{len(findings)}: {', '.join(map(readable, findings))}" if findings else NONE,
        ),
        (
            "Input",
            f"{size} x {size} px, gray, normalised {model['normalize']}" if size else NONE,
        ),
    ]
    if checkpoint is None or checkpoint.exported is None:
        said.append(("Precision", NONE if run is None else wording.precision_of(run)))
    if checkpoint is None:
        return said
    file, schema = checkpoint.path.name, f"schema {checkpoint.schema_version}"
    if (exported := checkpoint.exported) is not None:
        cost = "" if checkpoint.int8_cost is None else f": {checkpoint.int8_cost}"
        origin = f"from the checkpoint of SHA-256 {exported['checkpoint_sha256']}"
        said.append(("Precision", f"{exported['precision']}{cost}"))
        said.append(("Exported", f"{file}, {schema}, {origin}"))
    else:
        saved = [] if checkpoint.epoch is None else [f"epoch {checkpoint.epoch}"]
        saved += [] if checkpoint.steps is None else [f"{checkpoint.steps:,} steps"]
        said.append(("Checkpoint", f"{file}: {', '.join([*saved, schema])}"))
    said.append(("Fitted", _fitted(checkpoint)))
    if checkpoint.recalibrated is not None:
        said.append(("Recalibrated", _recalibrated(checkpoint.recalibrated)))
    return said


def _recalibrated(record: Recalibrated) -> str:
    """What was refitted, and on which images."""
    refitted = ", ".join(f"{readable(name)} ({n:,})" for name, n in record.positives.items())
    cases = f"{counted(record.images, 'image')} of {counted(record.patients, 'patient')}"
    same = f"; as they were: {', '.join(map(readable, record.kept))}" if record.kept else ""
    return f"on {cases} of {record.data}; refitted (positives): {refitted}{same}"


def training_terms(info: ModelInfo) -> Terms:
    """What it was trained on, and how long."""
    run = info.run
    if run is None:
        digest = info.checkpoint.split_sha256 if info.checkpoint else None
        return [("Split hash", digest or NONE), ("All else", "not in the file")]
    full = data_set(run).name
    data = run.data or NONE
    said = [
        ("Data", data if full in (data, "not recorded") else f"{data} ({full})"),
        ("Split", split_of(run)),
        ("Split hash", run.split_sha256 or NONE),
    ]
    for split in run.sides:
        people = "" if split.patients is None else f" of {counted(split.patients, 'patient')}"
        said.append((f"Images, {split.name}", f"{count(split.images)}{people}"))
    if info.tested_only:
        return [*said, ("Seed, epochs", "not known: the run tested another run's checkpoint")]
    best = "" if info.best_epoch is None else f", the best on validation {info.best_epoch}"
    ranks = f", {run.world_size} ranks" if run.world_size and run.world_size > 1 else ""
    return [
        *said,
        ("First weights", _first_weights(run)),
        ("Recipe", _recipe(run)),
        ("Seed", NONE if run.seed is None else str(run.seed)),
        ("Epochs", f"{len(run.history)}{best}"),
        ("Device", f"{run.device or NONE}{ranks}"),
    ]


def version_terms(info: ModelInfo) -> Terms:
    """What it was made with."""
    return [(_VERSIONS.get(name, name), one) for name, one in versions(info).items() if one]


_VERSIONS = {"xray_lightning": "xray-lightning", "git_commit": "Git commit"}


def versions(info: ModelInfo) -> dict[str, str | None]:
    """What it was made with, by name; None for what was not recorded."""
    return {
        **dict.fromkeys(("python", "torch", "lightning", "xray_lightning")),
        **_said(info.checkpoint, "lightning"),
        **({} if info.run is None else info.run.versions),
        **_said(info.run, "git_commit"),
    }


def split_of(run: Run) -> str:
    """The split's name, or the file that it was read from."""
    return last_parts(run.split) or NONE


def _backbone(info: ModelInfo) -> str:
    if info.checkpoint is None:
        return info.run.model if info.run and info.run.model else NONE
    arch, stages, hidden, _, parameters = (info.model[key] for key in MODEL[:5])
    layers = f", last {stages} stages pooled" if stages else ""
    layers += f" + FC layers {', '.join(map(str, hidden))}" if hidden else ""
    size = "" if parameters is None else f", {parameters:,} parameters"
    return f"{arch or 'not recorded'}{layers}{size}"


def _fitted(checkpoint: CheckpointInfo) -> str:
    said = []
    whose = "validation image" if checkpoint.recalibrated is None else "image"
    if (points := checkpoint.points) is not None:
        target = "" if points.target is None else f" {points.target:g}"
        images = counted(points.images, whose)
        said.append(f"operating points by {points.rule}{target} on {images}")
    if (calibration := checkpoint.calibration) is not None:
        images = counted(calibration.images, whose)
        said.append(f"calibration by {calibration.method} on {images}")
    if checkpoint.tta is not None:
        said.append(f"tta {checkpoint.tta}")
    return "; ".join(said) or "no operating points, no calibration"


def _first_weights(run: Run) -> str:
    """The weights that training began with."""
    if run.weights_files:
        return f"weights of {' and '.join(map(last_parts, run.weights_files))}"
    pretrained = run.settings.get("model.pretrained")
    library = run.settings.get("model.library") or "torchvision"
    names = {True: f"{library}'s pretrained weights", False: "random weights"}
    return names.get(pretrained, NONE) if isinstance(pretrained, bool) else NONE


def _recipe(run: Run) -> str:
    """The parts of the training by their names in the configuration."""
    named = {
        key: str(run.settings.get(f"{key}._target_", "")).rpartition(".")[2]
        for key in ("loss", "optimizer", "augment", "mixing")
    }
    rate, batch = run.settings.get("optimizer.lr"), run.settings.get("data.batch_size")
    parts = [
        named["loss"],
        named["optimizer"] + ("" if rate is None else f" at {rate}"),
        "" if batch is None else f"{batch} images a step",
        f"augmented by {named['augment']}" if named["augment"] else "not augmented",
        f"mixed by {named['mixing']}" if named["mixing"] else "",
    ]
    return ", ".join(filter(None, parts)) if named["loss"] else NONE


SCHEMA_VERSION = 1  # of the JSON


def as_json(info: ModelInfo) -> dict[str, object]:
    """All that is known, in plain values.

    Keys: schema_version; name; status and reason of the run; link: why run and checkpoint are taken
    to belong together; model; checkpoint: its file; exported: how that was exported; training;
    metrics: metrics.test of results.json, unchanged; metrics_unknown: why there are none;
    operating_points and calibration of the checkpoint; recalibrated: on which images; versions;
    notice, intended_use, out_of_scope, limits: sentences. Unknown values are null.
    """
    checkpoint, run = info.checkpoint, info.run
    file = points = calibration = record = None
    if checkpoint is not None:
        points, calibration = checkpoint.points, checkpoint.calibration
        record = checkpoint.recalibrated
        file = {"path": str(checkpoint.path)}
        file |= _said(checkpoint, "schema_version", "epoch", "steps")
    content: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "name": info.name,
        **_said(run, "status", "reason"),
        "link": info.link,
        "model": {**info.model, **_said(run, "precision_asked", "precision_used")},
        "checkpoint": file,
        **_said(checkpoint, "exported"),
        "training": _training_json(info),
        "metrics": info.metrics,
        "metrics_unknown": info.untested,
        "operating_points": None if points is None else points.to_plain(),
        "calibration": None if calibration is None else calibration.to_plain(),
        "recalibrated": None if record is None else record.to_plain(),
        "versions": versions(info),
        "notice": NOTICE,
        "intended_use": INTENDED,
        "out_of_scope": list(OUT_OF_SCOPE),
        "limits": list(limits(info)),
    }
    return dict(finite(content))  # Python reads 1e999 as infinity, which is no valid JSON


def _said(source: Run | CheckpointInfo | None, *keys: str) -> dict[str, Any]:
    """These attributes of a run or a checkpoint; None for those it lacks, or if it is None."""
    return {key: getattr(source, key, None) for key in keys}


def _training_json(info: ModelInfo) -> dict[str, object]:
    run, known = info.run, _said(info.run, *_TRAINING)
    if run is None:
        return known | _said(info.checkpoint, "split_sha256")
    known |= {
        "data": run.data or None,
        "split": last_parts(run.split) or None,
        "patients": {split.name: split.patients for split in run.sides},
        "positives": {split.name: split.positives for split in run.sides},
        "patient_overlap": run.overlap,
        "best_epoch": info.best_epoch,
        "seconds": run.timing.fit,
        "command": without_folders(run.command),
    }
    return known | ({"seed": None} if info.tested_only else {"epochs": len(run.history)})


_TRAINING = (
    *("data", "split", "split_sha256", "images", "patients", "positives", "patient_overlap"),
    *("dropped", "seed", "epochs", "best_epoch", "device", "world_size", "strategy", "seconds"),
    "command",
)
