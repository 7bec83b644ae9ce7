"""What a checkpoint says of itself, with nothing but its file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.calibration import Calibration
from xray_lightning.evaluation.fitted import fitted_of
from xray_lightning.evaluation.thresholds import OperatingPoints
from xray_lightning.models.checkpoint import read_checkpoint

# What a batch norm keeps beside its weights: state, and no parameter.
_STATE = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass(frozen=True)
class Exported:
    """How a checkpoint has become another file.

    Attributes:
        checkpoint_sha256: of the checkpoint.
        precision: float32 or int8.
        int8: scores beside float32's, as `deploy.int8.quantize` has written them; None of float32.
        int8_cost: the same in words.
    """

    checkpoint_sha256: str
    precision: str
    int8: Mapping[str, Any] | None = None
    int8_cost: str | None = None


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint as it describes itself; None for what it does not say.

    Attributes:
        path: the file, as it was asked for.
        schema_version: of its own description.
        epoch: during which it was saved, from 1.
        steps: optimizer steps until then.
        lightning: the version of Lightning that wrote it.
        parameters: numbers that training has set, those of the loss left out.
        hidden: widths of further fully connected layers.
        points, calibration: what was fitted on validation; None where nothing was.
        exported: how it was exported; None of a checkpoint itself.
    """

    path: Path
    schema_version: int
    epoch: int | None
    steps: int | None
    lightning: str | None
    findings: tuple[str, ...]
    arch: str | None
    hidden: tuple[int, ...]
    dropout: float | None
    parameters: int | None
    image_size: int | None
    normalize: str | None
    split_sha256: str | None
    points: OperatingPoints | None
    calibration: Calibration | None
    exported: Exported | None = None


def facts_of(path: Path) -> CheckpointFacts:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        UserError: it cannot be read, is of another schema, or what was fitted is damaged.
    """
    checkpoint = read_checkpoint(path)
    epoch = _whole(checkpoint.get("epoch"))
    return replace(
        facts_in(checkpoint["xray"], path=path),
        epoch=None if epoch is None else epoch + 1,
        steps=_whole(checkpoint.get("global_step")),
        lightning=_text(checkpoint.get("pytorch-lightning_version")),
        parameters=parameters_in(checkpoint.get("state_dict"), source=path),
    )


def facts_in(
    described: Mapping[str, Any], *, path: Path, exported: Exported | None = None
) -> CheckpointFacts:
    """What is in the description that checkpoints and exported models carry; None for the rest.

    Raises:
        UserError: what was fitted is damaged.
    """
    model = described.get("model")
    model = model if isinstance(model, Mapping) else {}
    try:
        points, calibration = fitted_of(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return CheckpointFacts(
        path=path,
        schema_version=described["schema_version"],
        epoch=None,
        steps=None,
        lightning=None,
        findings=tuple(described["findings"]),
        arch=_text(model.get("arch")),
        hidden=_widths(model.get("hidden")),
        dropout=_fraction(model.get("dropout")),
        parameters=None,
        image_size=_whole(described.get("image_size")),
        normalize=_text(described.get("normalize")),
        split_sha256=_text(described.get("split_sha256")),
        points=points,
        calibration=calibration,
        exported=exported,
    )


def parameters_in(state: Any, *, source: Path) -> int:
    """How many numbers of the backbone training has set.

    Raises:
        UserError: the state is none.
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


def _widths(values: Any) -> tuple[int, ...]:
    several = isinstance(values, list | tuple) and all(_whole(one) is not None for one in values)
    return tuple(values) if several else ()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fraction(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= 1 else None


def _text(value: Any) -> str | None:
    return printable(value)[:200] if isinstance(value, str) else None
