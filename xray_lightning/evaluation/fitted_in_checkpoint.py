"""Checkpoint entry of what was fitted on validation: operating points, calibration, abstention."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from xray_lightning.errors import UserError
from xray_lightning.evaluation.abstention import Abstention
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted_value_checks import AGAIN, FittedValues
from xray_lightning.evaluation.operating_points import OperatingPoints
from xray_lightning.findings import FINDINGS


def describe_best(
    path: Path,
    *,
    operating_points: OperatingPoints,
    calibration: Calibration | None,
    abstention: Abstention | None = None,
    tta: str | None = None,
) -> None:
    """Write what was fitted on validation into a saved checkpoint's `xray` entry.

    `thresholds`, 0.5 for each finding before, is set to the cuts; all else is kept. The write is
    atomic: a killed process leaves the old file or the new one.

    Args:
        tta: `flip` where it was fitted to outputs averaged over each image and its mirror image.

    Raises:
        UserError: the file is no checkpoint of this project.
        RunFailedError: it cannot be written; the old one is untouched.
    """
    # Late: reading the fitted values of an exported model must not import torch or Lightning.
    from xray_lightning.models.checkpoint import read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(path)
    checkpoint["xray"] = {
        **{key: value for key, value in checkpoint["xray"].items() if key != "tta"},
        **fitted_entry(operating_points, calibration, abstention),
        **({} if tta is None else {"tta": tta}),
    }
    write_checkpoint(checkpoint, path)


def fitted_entry(
    points: OperatingPoints, calibration: Calibration | None, abstention: Abstention | None = None
) -> dict[str, Any]:
    """The keys of a checkpoint's `xray` entry for these values; None overwrites an older one."""
    plain = points.to_plain()
    return {
        "thresholds": dict(plain["cuts"]),
        "operating_points": plain,
        "calibration": None if calibration is None else calibration.to_plain(),
        "abstention": None if abstention is None else abstention.to_plain(),
    }


def fitted_of(described: Mapping[str, Any]) -> tuple[OperatingPoints | None, Calibration | None]:
    """Operating points and calibration from a checkpoint's `xray` entry.

    Returns:
        None for each that was never fitted: the run has not reached its test, or is an older one.

    Raises:
        UserError: one line, if the entry is not as `describe_best` writes it.
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


def abstention_of(described: Mapping[str, Any]) -> Abstention | None:
    """The lower thresholds of a checkpoint's `xray` entry; None where it has none.

    Raises:
        UserError: one line, if the entry is not as `describe_best` writes it.
    """
    plain, findings = described.get("abstention"), described.get("findings", FINDINGS)
    if plain is None:
        return None
    read = Abstention.from_plain(plain, findings=findings)
    points, _ = fitted_of(described)
    if points is None or any(read.low[finding] > cut for finding, cut in points.cuts.items()):
        raise UserError(
            f"the checkpoint's abstention thresholds do not lie below its operating points; {AGAIN}"
        )
    return read


FLIP, NONE = "flip", "none"


def check_tta(value: object, *, key: str) -> None:
    """Refuse any test-time augmentation but `flip` and none.

    Raises:
        UserError: naming the key.
    """
    if value is not None and value != FLIP:
        raise UserError(f"{key}={value} is unknown; give {FLIP}, or null for none")


def tta_of(described: Mapping[str, Any]) -> str | None:
    """The test-time augmentation that a checkpoint's values were fitted with.

    Raises:
        UserError: the entry names an unknown one.
    """
    own = described.get("tta")
    if own not in (None, FLIP):
        raise UserError(f"the checkpoint's tta is none that is known; {AGAIN}")
    return None if own is None else FLIP


def chosen_tta(asked: str | None, described: Mapping[str, Any]) -> str | None:
    """The test-time augmentation that is asked for; by default the checkpoint's own.

    Raises:
        UserError: an unknown one.
    """
    if asked not in (None, FLIP, NONE):
        raise UserError(f"--tta {asked} is unknown; choose one of {FLIP}, {NONE}")
    own = tta_of(described)
    return own if asked is None else FLIP if asked == FLIP else None


AVERAGES = ("probabilities", "logits")
# Keys whose values all members of an ensemble must share.
AGREED = ("findings", "split_sha256", "image_size", "normalize")


class Described(Protocol):
    """A model file: its path, digest, `xray` entry, and the test-time augmentation in use."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def described(self) -> Mapping[str, Any]: ...
    @property
    def tta(self) -> str | None: ...


def fits(member: Described) -> bool:
    """Whether a model's values were fitted with the test-time augmentation in use."""
    return member.tta == tta_of(member.described)


def check_alike(members: Sequence[Described]) -> None:
    """Refuse to average models that are given twice or do not match.

    Raises:
        UserError: a model is given twice, or differs from the first in test-time augmentation,
            findings, split, image size or normalisation.
    """
    first = members[0]
    seen = {first.sha256: first.path}
    for member in members[1:]:
        if member.sha256 in seen:
            raise UserError(
                f"{member.path} and {seen[member.sha256]} are the same checkpoint; give each once"
            )
        seen[member.sha256] = member.path
        if member.tta != first.tta:
            raise UserError(
                f"{member.path} and {first.path} were not tested with the same augmentation; give "
                f"--tta {FLIP} or --tta {NONE}"
            )
        for key in AGREED:
            was, now = first.described.get(key), member.described.get(key)
            if was != now:
                raise UserError(
                    f"checkpoints that were not trained alike cannot be averaged: {key} is {was} "
                    f"in {first.path} and {now} in {member.path}"
                )


RECALIBRATED = "recalibrated"  # the key of `Recalibrated` in a checkpoint's `xray` entry


@dataclass(frozen=True)
class Recalibrated:
    """What a checkpoint was recalibrated on, as its `xray` entry records it.

    Attributes:
        data: the name of the data set.
        images, patients: how many they were.
        positives: images with each finding that was refitted.
        kept: the findings that keep the checkpoint's own values, and why.
        checkpoint_sha256: of the checkpoint that was recalibrated; its weights are unchanged.
        split_sha256: hash of the split with all of these images on its test side.
    """

    data: str
    images: int
    patients: int
    positives: dict[str, int]
    kept: dict[str, str]
    checkpoint_sha256: str
    split_sha256: str

    @property
    def told(self) -> str:
        """What to know where a checkpoint's own operating points and calibration are scored."""
        return (
            f"it was recalibrated on {self.images:,} images of {self.data}: on these, what is at "
            "its points is too good"
        )

    def to_plain(self) -> dict[str, Any]:
        """Dicts, text and numbers alone, for the checkpoint."""
        return asdict(self)

    @classmethod
    def in_entry(cls, described: Mapping[str, Any]) -> "Recalibrated | None":
        """Read from an `xray` entry; None for a checkpoint that was never recalibrated.

        Raises:
            UserError: one line, if the entry is not as `to_plain` returns it.
        """
        if (plain := described.get(RECALIBRATED)) is None:
            return None
        findings = described["findings"]
        values = FittedValues(plain, findings, "the checkpoint's recalibration values")
        texts = {key: values.value(key) for key in ("data", "checkpoint_sha256", "split_sha256")}
        positives = values.value("positives")
        kept = FittedValues({"undefined": values.value("kept")}, findings, values.where)
        counted_all = isinstance(positives, Mapping) and all(
            name in findings and type(count) is int for name, count in positives.items()
        )
        if not counted_all or not all(isinstance(text, str) for text in texts.values()):
            raise UserError(f"{values.where} are damaged; recalibrate it again")
        return cls(
            **texts,
            images=values.count("images"),
            patients=values.count("patients"),
            positives=dict(positives),
            kept=kept.undefined(),
        )
