"""What an exported model says of itself, with nothing but its file."""

from pathlib import Path
from typing import Any

from xray_lightning.deploy.about.checkpoint import CheckpointFacts, Exported, facts_in
from xray_lightning.deploy.onnx_network import OnnxMember
from xray_lightning.errors import UserError


def facts_of_exported(path: Path) -> CheckpointFacts:
    """Read an .onnx file that `xray export` has written.

    Raises:
        UserError: it cannot be read, is of another schema, or what was fitted is damaged.
    """
    described = OnnxMember.read(path).described
    exported = Exported(
        checkpoint_sha256=described["checkpoint_sha256"],
        precision=str(described.get("precision")),
        int8=described.get("int8"),
        int8_cost=_cost(described.get("int8"), path),
    )
    return facts_in(described, path=path, exported=exported)


def _cost(said: Any, path: Path) -> str | None:
    """What int8 has cost, in words; None of a model in float32."""
    if said is None:
        return None
    try:
        change = said["auroc_macro_change"]
        if change["value"] is None:
            return f"no macro AUROC: {change['undefined_reason']}"
        ends = change["ci95"]
        interval = f"95 % interval {ends[0]:+.4f} to {ends[1]:+.4f}" if ends else "no interval"
        return (
            f"macro AUROC {said['auroc_macro']:.4f} on {said['images']:,} test images, "
            f"{change['value']:+.4f} beside float32 ({interval})"
        )
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: its metadata are damaged (int8); export it again") from error
