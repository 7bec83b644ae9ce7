"""The folder of a run that was tested, made at once: its checkpoint has learned nothing."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from checkpoints import RECIPE, SIDE
from conftest import REPOSITORY, tiny_classifier

from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.model_entry import describe_best
from xray_lightning.evaluation.thresholds import OperatingPoints
from xray_lightning.findings import FINDINGS

SAMPLE = json.loads((REPOSITORY / "tests" / "results_sample.json").read_text(encoding="utf-8"))
BEST = 3  # the epoch, from 1, of four
CUTS = {finding: 0.3 + 0.03 * place for place, finding in enumerate(FINDINGS)}

Results = dict[str, Any]


def results(**changes: Any) -> Results:
    """results.json of the run."""
    content: Results = copy.deepcopy(SAMPLE)
    content["config"] |= {
        "data": {"image_size": SIDE, "normalize": "per_image", "batch_size": 32},
        "loss": {"_target_": "xray_lightning.models.losses.BinaryCrossEntropy"},
    }
    content["config"]["model"] |= {"dropout": 0.0, "pretrained": False}
    for finding, cut in CUTS.items():
        content["metrics"]["test"]["per_finding"][finding]["threshold"] = cut
    content["history"] = [
        {
            "epoch": number,
            "train_loss": 0.2,
            "val_loss": 0.2,
            "val_auroc_macro": 0.8 if number == BEST - 1 else 0.7,
            "lr": 0.001,
            "seconds": 1.0,
        }
        for number in range(4)
    ]
    return content | changes


def write(folder: Path, content: Results) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def saved(path: Path, *, epoch: int = BEST) -> Path:
    """A checkpoint that says it is a ResNet18 and holds one small layer: nothing here builds it."""
    content: dict[str, Any] = {"epoch": epoch - 1, "global_step": 92}
    built = tiny_classifier(recipe=RECIPE)
    built.on_save_checkpoint(content)
    torch.save(content | {"state_dict": built.state_dict()}, path)
    describe_best(
        path,
        operating_points=OperatingPoints(rule="youden", target=None, images=200, cuts=CUTS),
        calibration=Calibration(
            method="platt",
            images=200,
            slope=dict.fromkeys(FINDINGS, 1.5),
            intercept=dict.fromkeys(FINDINGS, -1.0),
        ),
    )
    return path


def run_of(folder: Path, best: Path, **changes: Any) -> Path:
    """The folder with results.json and checkpoints/best.ckpt."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(best, folder / "checkpoints" / "best.ckpt")
    return write(folder, results(**changes))
