"""What a checkpoint file says of itself, read without running code, and without Lightning."""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xray_lightning.errors import UserError, printable
from xray_lightning.findings import check_findings, differing

CHECKPOINT_SCHEMA = 1  # of the `xray` entry; the only one that there has been
BEST = "best.ckpt"
LAST = "last.ckpt"
CHUNK = 1 << 20  # bytes


def read_checkpoint(path: Path, *, findings: Sequence[str] | None = None) -> dict[str, Any]:
    """A checkpoint of this project, its tensors on the CPU; nothing in it is executed.

    Args:
        path: the file.
        findings: those it must have, in this order; None for whatever it has.

    Raises:
        UserError: it is missing, damaged, holds more than plain values, or is another project's;
            or it has other findings.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; give the path of a .ckpt file in it")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file")
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange pickles: the errors below say it
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file fails in as many ways as pickle and zip know.
    except Exception as error:
        lines = str(error).splitlines() or ["it holds nothing"]
        raise UserError(
            f"checkpoint {path} is damaged, or holds more than weights and plain values, and is "
            f"not loaded ({lines[0]}); use another one, such as {BEST} or {LAST} of the same run"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"checkpoint {path} holds no state")
    try:
        check_checkpoint(checkpoint, findings=findings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return dict(checkpoint)


def _check_sums(path: Path) -> None:
    """Compare every record with the CRC-32 that torch.save wrote beside it; torch.load does not.

    Raises:
        zipfile.BadZipFile: one differs.
    """
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            # torch compresses nothing; what another has packed could unpack without end.
            if record.compress_type == zipfile.ZIP_STORED:
                with archive.open(record) as stream:
                    while stream.read(CHUNK):
                        pass


def check_checkpoint(
    checkpoint: Mapping[str, Any], *, findings: Sequence[str] | None = None
) -> None:
    """Refuse a checkpoint of another kind, schema, or list of findings.

    Args:
        checkpoint: its content.
        findings: those it must have, in this order; None for whatever it has.

    Raises:
        UserError: one line that shows what was expected beside what was found.
    """
    described = checkpoint.get("xray")
    if not isinstance(described, Mapping):
        raise UserError("the checkpoint was not written by xray-lightning: it has no `xray` entry")
    if described.get("schema_version") != CHECKPOINT_SCHEMA:
        raise UserError(_other_schema(described.get("schema_version")))
    own = check_findings(described.get("findings"), what="the checkpoint's findings")
    if findings is not None and own != tuple(findings):
        raise UserError(f"the checkpoint's findings, {differing(own, findings)}")


def _other_schema(version: object) -> str:
    """What is wrong with a checkpoint of another schema, and what to do."""
    shown = printable(repr(version))[:40]
    newer = isinstance(version, int) and version > CHECKPOINT_SCHEMA
    return (
        f"the checkpoint has schema_version {shown}, and this version reads {CHECKPOINT_SCHEMA}; "
        f"use {'a newer xray-lightning' if newer else 'one that xray-lightning has written'}"
    )
