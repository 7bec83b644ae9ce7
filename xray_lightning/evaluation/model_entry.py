"""Operating points and calibration fitted on validation, kept in the checkpoint they belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xray_lightning.errors import UserError
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_values import AGAIN
from xray_lightning.evaluation.operating_points import OperatingPoints
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
    from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(path)
    plain = operating_points.to_plain()
    checkpoint["xray"] = {
        **checkpoint["xray"],
        "thresholds": dict(plain["cuts"]),
        "operating_points": plain,
        "calibration": None if calibration is None else calibration.to_plain(),
    }
    write_checkpoint(checkpoint, path)


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


AVERAGES = ("probabilities", "logits")
# What members must have been trained with alike.
AGREED = ("findings", "split_sha256", "image_size", "normalize")


class Described(Protocol):
    """A model's file, its digest, and what it says of itself."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def described(self) -> Mapping[str, Any]: ...


def check_alike(members: Sequence[Described]) -> None:
    """Refuse to average what is there twice or was not trained alike.

    Raises:
        UserError: one is there twice, or was trained with other findings, another split, image
            size or normalisation than the first.
    """
    first = members[0]
    seen = {first.sha256: first.path}
    for member in members[1:]:
        if member.sha256 in seen:
            raise UserError(
                f"{member.path} and {seen[member.sha256]} are the same checkpoint; give each once"
            )
        seen[member.sha256] = member.path
        for key in AGREED:
            was, now = first.described.get(key), member.described.get(key)
            if was != now:
                raise UserError(
                    f"checkpoints that were not trained alike cannot be averaged: {key} is {was} "
                    f"in {first.path} and {now} in {member.path}"
                )
