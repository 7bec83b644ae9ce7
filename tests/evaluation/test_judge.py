"""What the test is judged at comes from validation, and goes into the run's own checkpoint."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from predicted import table

from xray_lightning.evaluation.calibration import Calibrator
from xray_lightning.evaluation.fitted_in_checkpoint import describe_best, fitted_of
from xray_lightning.evaluation.judge import Judge
from xray_lightning.evaluation.operating_points import OperatingRule
from xray_lightning.findings import FINDINGS
from xray_lightning.models.checkpoint import read_checkpoint
from xray_lightning.models.classifier import CHECKPOINT_SCHEMA
from xray_lightning.training.callbacks import AtomicCheckpointIO

VAL, TEST = table(seed=1).assign(split="val"), table(seed=2)
PREVALENCES = dict.fromkeys(FINDINGS, 0.1)
YOUDEN = OperatingRule("youden")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One that describes itself and holds no weights."""
    described = {
        "schema_version": CHECKPOINT_SCHEMA,
        "findings": list(FINDINGS),
        "thresholds": dict.fromkeys(FINDINGS, 0.5),
    }
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"xray": described, "state_dict": {}}, path)
    return path


def judged(judge: Judge, checkpoint: Path, *, fit: bool, test: pd.DataFrame = TEST) -> Any:
    return judge(val=VAL, test=test, checkpoint=checkpoint, fit=fit, prevalences=PREVALENCES)


def cuts(metrics: dict[str, Any]) -> dict[str, float]:
    return {finding: row["threshold"] for finding, row in metrics["per_finding"].items()}


def test_a_runs_own_checkpoint_keeps_what_validation_gave(checkpoint: Path) -> None:
    judge = Judge(operating_point=YOUDEN, calibration=Calibrator("platt"), resamples=0)
    metrics = judged(judge, checkpoint, fit=True)
    points, calibration = YOUDEN.fit(VAL), Calibrator("platt").fit(VAL)
    assert fitted_of(read_checkpoint(checkpoint)["xray"]) == (points, calibration)
    assert cuts(metrics) == points.cuts
    assert len(set(points.cuts.values())) > 1  # and not 0.5 everywhere
    assert metrics["calibrated"]["method"] == "platt"


def test_the_test_images_move_no_operating_point(checkpoint: Path) -> None:
    judge = Judge(operating_point=YOUDEN, resamples=0)
    one = cuts(judged(judge, checkpoint, fit=True))
    assert cuts(judged(judge, checkpoint, fit=True, test=table(seed=3, signal=4.0))) == one


def test_another_runs_checkpoint_is_judged_at_its_own_points_and_not_written(
    checkpoint: Path,
) -> None:
    stored = OperatingRule("sensitivity", 0.9).fit(VAL)
    describe_best(checkpoint, operating_points=stored, calibration=None)
    before = checkpoint.read_bytes()
    metrics = judged(Judge(operating_point=YOUDEN, resamples=0), checkpoint, fit=False)
    assert cuts(metrics) == stored.cuts
    assert metrics["operating_point"]["rule"] == "sensitivity"
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_was_never_fitted_is_judged_at_points_of_this_validation(
    checkpoint: Path,
) -> None:
    before = checkpoint.read_bytes()
    metrics = judged(Judge(operating_point=YOUDEN, resamples=0), checkpoint, fit=False)
    assert cuts(metrics) == YOUDEN.fit(VAL).cuts
    assert metrics["calibrated"] is None
    assert checkpoint.read_bytes() == before
