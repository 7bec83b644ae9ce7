"""Checkpoints and the folder of a tested run, made at once: models that have learned nothing."""

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY, tiny_classifier

from xray_lightning.data.transforms import Normalize
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_in_checkpoint import describe_best
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone

SIDE = 32
RECIPE: dict[str, Any] = {
    "model": {"arch": "resnet18", "hidden": [], "dropout": 0.0},
    "normalize": "per_image",
    "image_size": SIDE,
    "split_sha256": "ab" * 32,
}
CUTS = {finding: 0.3 + 0.03 * place for place, finding in enumerate(FINDINGS)}
SAMPLE = json.loads((REPOSITORY / "tests" / "results_sample.json").read_text(encoding="utf-8"))
BEST = 3  # the epoch, from 1, of four

Results = dict[str, Any]


def checkpoint(
    path: Path,
    *,
    seed: int = 0,
    fitted: bool = True,
    small: bool = False,
    state: Mapping[str, torch.Tensor] | None = None,
    **recipe: Any,
) -> Path:
    """Save a ResNet18.

    Args:
        fitted: with operating points and a calibration.
        small: holding one small layer in its place, where nothing builds it.
        state: further tensors.
        recipe: in the place of `RECIPE`'s.
    """
    described = RECIPE | recipe
    normalize = Normalize(described["normalize"])
    built = tiny_classifier(recipe=described, normalize=normalize)
    if not small:
        torch.manual_seed(seed)
        backbone = build_backbone(**described["model"])
        built.backbone = backbone.to(memory_format=torch.channels_last)
    content: dict[str, Any] = {
        "state_dict": built.state_dict() | dict(state or {}),
        "epoch": BEST - 1,
        "global_step": 92,
    }
    built.on_save_checkpoint(content)
    torch.save(content, path)
    if fitted:
        slope, intercept = dict.fromkeys(FINDINGS, 1.5), dict.fromkeys(FINDINGS, -1.0)
        describe_best(
            path,
            operating_points=OperatingPoints(rule="youden", target=None, images=200, cuts=CUTS),
            calibration=Calibration("platt", images=200, slope=slope, intercept=intercept),
        )
    return path


def without_numbers(ckpt: Path, to: Path) -> Path:
    """A copy of a checkpoint whose answers are all NaN."""
    content = torch.load(ckpt, weights_only=True)
    content["state_dict"]["backbone.fc.bias"].fill_(float("nan"))
    torch.save(content, to)
    return to


class Hostile:
    """What makes a file `hostile` when it is unpickled as pickle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile",)


def results(**changes: Any) -> Results:
    """results.json of the run that has trained and tested a small one."""
    content: Results = copy.deepcopy(SAMPLE)
    content["config"] |= {
        "data": {"image_size": SIDE, "normalize": "per_image", "batch_size": 32},
        "loss": {"_target_": "xray_lightning.models.losses.BinaryCrossEntropy"},
    }
    content["config"]["model"] |= {"dropout": 0.0, "pretrained": False}
    for finding, cut in CUTS.items():
        content["metrics"]["test"]["per_finding"][finding]["threshold"] = cut
    content["history"] = [
        SAMPLE["history"][0]
        | {"epoch": number, "val_auroc_macro": 0.8 if number == BEST - 1 else 0.7}
        for number in range(4)
    ]
    return content | changes


def write(folder: Path, content: Results) -> Path:
    """The folder, with results.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def run_of(folder: Path, best: Path) -> Path:
    """The folder, with results.json and checkpoints/best.ckpt."""
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(best, folder / "checkpoints" / "best.ckpt")
    return write(folder, results())
