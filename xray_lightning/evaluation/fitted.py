"""What was fitted on validation, kept in the checkpoint whose predictions it was fitted to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.plain import AGAIN
from xray_lightning.evaluation.thresholds import OperatingPoints
from xray_lightning.findings import FINDINGS


def describe_best(
    path: Path, *, operating_points: OperatingPoints, calibration: Calibration | None
) -> None:
    """Write operating points and calibration into a saved checkpoint's `xray` entry.

    `thresholds`, which was 0.5 for each finding, becomes the cuts. All else stays as it is, and a
    kill leaves the old file or the new.

    Raises:
        UserError: no checkpoint of this project.
        RunFailedError: it cannot be written; the old one is untouched.
    """
    # What reads the fitted values of an exported model imports neither torch nor Lightning.
    from xray_lightning.models.checkpoint import read_checkpoint
    from xray_lightning.training.checkpoints import AtomicCheckpointIO

    checkpoint = read_checkpoint(path)
    plain = operating_points.to_plain()
    checkpoint["xray"] = {
        **checkpoint["xray"],
        "thresholds": dict(plain["cuts"]),
        "operating_points": plain,
        "calibration": None if calibration is None else calibration.to_plain(),
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def fitted_of(described: Mapping[str, Any]) -> tuple[OperatingPoints | None, Calibration | None]:
    """Operating points and calibration of a checkpoint's `xray` entry.

    Returns:
        None for what was never fitted: a run that has not come to its test, or an older one.

    Raises:
        UserError: one line, where what is there is not what `describe_best` has written.
    """
    points, calibration = described.get("operating_points"), described.get("calibration")
    findings = described.get("findings", FINDINGS)
    read = None if points is None else OperatingPoints.from_plain(points, findings=findings)
    if read is not None and described.get("thresholds") != read.cuts:
        raise UserError(
            f"the checkpoint's thresholds are not the cuts of its operating points; {AGAIN}"
        )
    if calibration is None:
        return read, None
    return read, Calibration.from_plain(calibration, findings=findings)
