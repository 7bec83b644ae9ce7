"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint (.ckpt).")]
Average = Annotated[
    str, typer.Option(help="What several checkpoints average: probabilities, or logits.")
]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]


def findings_of(names: str | None) -> tuple[str, ...] | None:
    """The findings that --findings names, as in Effusion,Mass; None where it is not given.

    Raises:
        UserError: a name that is none, or is there twice.
    """
    from xray_lightning.findings import check_findings  # `xray --help` should not wait for pandas

    if names is None:
        return None
    return check_findings([name.strip() for name in names.split(",")], what="--findings")
