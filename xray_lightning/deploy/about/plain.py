"""What is known of a model as plain values, for JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xray_lightning.deploy.about.facts import name_of, versions
from xray_lightning.deploy.about.known import Known
from xray_lightning.deploy.about.paths import last_parts, without_folders
from xray_lightning.deploy.about.use import INTENDED, OUT_OF_SCOPE, limits
from xray_lightning.page.frame import NOTICE
from xray_lightning.training.results import finite

SCHEMA_VERSION = 1


def as_plain(known: Known) -> dict[str, object]:
    """All that is known, in plain values.

    Keys: schema_version; name; status and reason of the run; link: how it is known that run and
    checkpoint belong together; model; checkpoint, the file; exported, how that was exported;
    training; metrics: metrics.test of results.json,
    as it is there; metrics_unknown: why there are none; operating_points and calibration of the
    checkpoint; versions; notice, intended_use, out_of_scope, limits: sentences. What is not known
    is null.
    """
    facts, run = known.checkpoint, known.run
    points = calibration = checkpoint = exported = None
    if facts is not None:
        points = None if facts.points is None else facts.points.to_plain()
        calibration = None if facts.calibration is None else facts.calibration.to_plain()
        checkpoint = {
            "path": str(facts.path),
            "schema_version": facts.schema_version,
            "epoch": facts.epoch,
            "steps": facts.steps,
        }
        if facts.exported is not None:
            exported = asdict(facts.exported)
            del exported["int8_cost"]
    content: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "name": name_of(known),
        "status": None if run is None else run.status,
        "reason": None if run is None else run.reason,
        "link": known.link,
        "model": _model(known),
        "checkpoint": checkpoint,
        "exported": exported,
        "training": _training(known),
        "metrics": known.metrics,
        "metrics_unknown": known.untested,
        "operating_points": points,
        "calibration": calibration,
        "versions": versions(known),
        "notice": NOTICE,
        "intended_use": INTENDED,
        "out_of_scope": list(OUT_OF_SCOPE),
        "limits": limits(known),
    }
    return dict(finite(content))  # json reads 1e999 as infinity, and nobody else does


def _model(known: Known) -> dict[str, object]:
    facts, run = known.checkpoint, known.run
    settings: Mapping[str, Any] = {} if run is None else run.settings
    built: dict[str, object] = {
        key: settings.get(f"model.{key}") for key in ("arch", "hidden", "dropout")
    }
    if facts is not None:
        built = {"arch": facts.arch, "hidden": list(facts.hidden), "dropout": facts.dropout}
    return built | {
        "parameters": None if facts is None else facts.parameters,
        "image_size": known.image_size,
        "normalize": known.normalize,
        "findings": list(known.findings),
        "precision_asked": None if run is None else run.precision_asked,
        "precision_used": None if run is None else run.precision_used,
    }


def _training(known: Known) -> dict[str, object]:
    run = known.run
    if run is None:
        digest = known.checkpoint.split_sha256 if known.checkpoint else None
        return dict.fromkeys(_TRAINING) | {"split_sha256": digest}
    trained = not known.tested_only
    return {
        "data": run.data or None,
        "split": last_parts(run.split) or None,
        "split_sha256": run.split_sha256,
        "images": run.images,
        "patients": {side.name: side.patients for side in run.sides},
        "positives": {side.name: side.positives for side in run.sides},
        "patient_overlap": run.overlap,
        "dropped": run.dropped,
        "seed": run.seed if trained else None,
        "epochs": len(run.history) if trained else None,
        "best_epoch": known.best_epoch,
        "device": run.device,
        "world_size": run.world_size,
        "strategy": run.strategy,
        "seconds": run.timing.fit,
        "command": without_folders(run.command),
    }


_TRAINING = (
    *("data", "split", "split_sha256", "images", "patients", "positives", "patient_overlap"),
    *("dropped", "seed", "epochs", "best_epoch", "device", "world_size", "strategy", "seconds"),
    "command",
)
