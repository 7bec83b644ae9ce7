"""Checkpoints for tests, made at once: a small ResNet18 that has learned nothing."""

from pathlib import Path
from typing import Any

import torch
from conftest import tiny_classifier

from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.model_entry import describe_best
from xray_lightning.evaluation.thresholds import OperatingPoints
from xray_lightning.findings import FINDINGS
from xray_lightning.models.backbones import build_backbone

SIDE = 32
RECIPE: dict[str, Any] = {
    "model": {"arch": "resnet18", "hidden": [], "dropout": 0.0},
    "normalize": "per_image",
    "image_size": SIDE,
    "split_sha256": "ab" * 32,
}


def checkpoint(path: Path, *, seed: int = 0, fitted: bool = True, **recipe: Any) -> Path:
    """Save one; `fitted` gives it operating points and a calibration."""
    built = tiny_classifier(recipe=RECIPE | recipe)
    torch.manual_seed(seed)
    built.backbone = build_backbone(arch="resnet18").to(memory_format=torch.channels_last)
    content: dict[str, Any] = {"state_dict": built.state_dict()}
    built.on_save_checkpoint(content)
    torch.save(content, path)
    if fitted:
        cuts = {finding: 0.3 + 0.03 * place for place, finding in enumerate(FINDINGS)}
        points = OperatingPoints(rule="youden", target=None, images=40, cuts=cuts)
        calibration = Calibration(
            method="platt",
            images=40,
            slope=dict.fromkeys(FINDINGS, 1.5),
            intercept=dict.fromkeys(FINDINGS, -1.0),
        )
        describe_best(path, operating_points=points, calibration=calibration)
    return path
