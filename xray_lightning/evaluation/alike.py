"""Which models may be averaged: those that were trained alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xray_lightning.errors import UserError

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
