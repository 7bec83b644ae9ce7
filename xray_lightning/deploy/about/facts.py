"""What a model is and what it was trained on, as terms and values."""

from xray_lightning.deploy.about.known import Known
from xray_lightning.deploy.about.paths import last_parts
from xray_lightning.deploy.about.tables import count, plain
from xray_lightning.deploy.about.use import data_set
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.report.page import words
from xray_lightning.evaluation.report.table import NONE

Facts = list[tuple[str, str]]


def name_of(known: Known) -> str:
    """The run's name, else the file's."""
    if known.run is not None:
        return known.run.name
    return "" if known.checkpoint is None else known.checkpoint.path.name


def model_facts(known: Known) -> Facts:
    """What the model is."""
    facts, run = known.checkpoint, known.run
    findings = ", ".join(map(plain, known.findings))
    said = [
        ("Backbone", _backbone(known)),
        ("Findings", f"{len(known.findings)}: {findings}" if findings else NONE),
        ("Input", _input(known)),
    ]
    if facts is None or facts.exported is None:
        said.append(("Precision", NONE if run is None else words.precision_of(run)))
    else:
        precision, cost = facts.exported.precision, facts.exported.int8_cost
        said.append(("Precision", precision if cost is None else f"{precision}: {cost}"))
        origin = f"from the checkpoint of SHA-256 {facts.exported.checkpoint_sha256}"
        said.append(("Exported", f"{facts.path.name}, schema {facts.schema_version}, {origin}"))
    if facts is not None and facts.exported is None:
        saved = [] if facts.epoch is None else [f"epoch {facts.epoch}"]
        saved += [] if facts.steps is None else [f"{facts.steps:,} steps"]
        saved.append(f"schema {facts.schema_version}")
        said.append(("Checkpoint", f"{facts.path.name}: {', '.join(saved)}"))
    if facts is not None:
        said.append(("Fitted", _fitted(known)))
    return said


def training_facts(known: Known) -> Facts:
    """What it was trained on, and how long."""
    run = known.run
    if run is None:
        digest = known.checkpoint.split_sha256 if known.checkpoint else None
        return [("Split hash", digest or NONE), ("All else", "not in the file")]
    full = data_set(run).name
    data = run.data or NONE
    said = [
        ("Data", data if full in (data, "not recorded") else f"{data} ({full})"),
        ("Split", split_of(run)),
        ("Split hash", run.split_sha256 or NONE),
    ]
    said += [(f"Images, {side.name}", _side(side.images, side.patients)) for side in run.sides]
    seed = NONE if run.seed is None else str(run.seed)
    if known.tested_only:
        return [*said, ("Seed, epochs", "not known: the run tested another run's checkpoint")]
    return [
        *said,
        ("First weights", _start(run)),
        ("Recipe", _recipe(run)),
        ("Seed", seed),
        ("Epochs", _epochs(known, run)),
        ("Device", _device(run)),
    ]


def version_facts(known: Known) -> Facts:
    """What it was made with."""
    said = [(name, version) for name, version in versions(known).items() if version is not None]
    return [(_VERSIONS.get(name, name), version) for name, version in said]


_VERSIONS = {"xray_lightning": "xray-lightning", "git_commit": "Git commit"}


def versions(known: Known) -> dict[str, str | None]:
    """What it was made with, by name; None for what was not recorded."""
    named: dict[str, str | None] = dict.fromkeys(("python", "torch", "lightning", "xray_lightning"))
    if known.checkpoint is not None:
        named["lightning"] = known.checkpoint.lightning
    if known.run is not None:
        named |= known.run.versions
    return {**named, "git_commit": None if known.run is None else known.run.git_commit}


def split_of(run: Run) -> str:
    """The split's name, or the file that it was read from."""
    return last_parts(run.split) or NONE


def _backbone(known: Known) -> str:
    facts = known.checkpoint
    if facts is None:
        return known.run.model if known.run and known.run.model else NONE
    layers = f" + FC layers {', '.join(map(str, facts.hidden))}" if facts.hidden else ""
    size = "" if facts.parameters is None else f", {facts.parameters:,} parameters"
    return f"{facts.arch or 'not recorded'}{layers}{size}"


def _input(known: Known) -> str:
    size = known.image_size
    return f"{size} x {size} px, gray, normalised {known.normalize}" if size else NONE


def _fitted(known: Known) -> str:
    facts = known.checkpoint
    if facts is None or (facts.points is None and facts.calibration is None):
        return "no operating points, no calibration"
    said = []
    if facts.points is not None:
        target = "" if facts.points.target is None else f" {facts.points.target:g}"
        images = words.counted(facts.points.images, "validation image")
        said.append(f"operating points by {facts.points.rule}{target} on {images}")
    if facts.calibration is not None:
        images = words.counted(facts.calibration.images, "validation image")
        said.append(f"calibration by {facts.calibration.method} on {images}")
    return "; ".join(said)


def _side(images: int, patients: int | None) -> str:
    people = "" if patients is None else f" of {words.counted(patients, 'patient')}"
    return f"{count(images)}{people}"


def _epochs(known: Known, run: Run) -> str:
    best = "" if known.best_epoch is None else f", the best on validation {known.best_epoch}"
    return f"{len(run.history)}{best}"


def _start(run: Run) -> str:
    """The weights that training began with."""
    if (path := run.settings.get("model.weights_path")) is not None:
        return f"weights of {last_parts(str(path))}"
    pretrained = run.settings.get("model.pretrained")
    names = {True: "torchvision's ImageNet weights", False: "random weights"}
    return names.get(pretrained, NONE) if isinstance(pretrained, bool) else NONE


def _recipe(run: Run) -> str:
    """The parts of the training by their names in the configuration."""
    named = {
        key: str(run.settings.get(f"{key}._target_", "")).rpartition(".")[2]
        for key in ("loss", "optimizer", "augment")
    }
    rate, batch = run.settings.get("optimizer.lr"), run.settings.get("data.batch_size")
    parts = [
        named["loss"],
        named["optimizer"] + ("" if rate is None else f" at {rate}"),
        "" if batch is None else f"{batch} images a step",
        f"augmented by {named['augment']}" if named["augment"] else "not augmented",
    ]
    return ", ".join(filter(None, parts)) if named["loss"] else NONE


def _device(run: Run) -> str:
    ranks = f", {run.world_size} ranks" if run.world_size and run.world_size > 1 else ""
    return f"{run.device or NONE}{ranks}"
