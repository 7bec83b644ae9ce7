"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint (.ckpt).")]
Average = Annotated[
    str, typer.Option(help="What several checkpoints average: probabilities, or logits.")
]
Tta = Annotated[
    str | None,
    typer.Option(help="flip averages over mirror images, none does not; else as it was tested."),
]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]

LabelMapFile = Annotated[
    Path | None,
    typer.Option("--map", metavar="FILE", help="Their findings in terms of the model's, in YAML."),
]

# Options of data to score or to refit on; the default is the value in the checkpoint's run.
KeptImages = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the images are, if elsewhere.")
]
KeptMissing = Annotated[str | None, typer.Option(help="As data.missing: error, or skip.")]
KeptCache = Annotated[Path | None, typer.Option(metavar="DIR", help="As data.cache_dir.")]
KeptBatch = Annotated[int | None, typer.Option(help="Images at once.")]

NewFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")]
DataFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Data set: its CSV, its images.")]
ImagesFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the images are, if not in there too.")
]
Table = Annotated[
    str | None, typer.Option(metavar="FILE", help="A table of one's own, as data.table.")
]
TableFindings = Annotated[str | None, typer.Option(help="Those of one's own table: Effusion,Mass.")]
Jobs = Annotated[int | None, typer.Option(help="Threads; by default one a core.")]
JsonOrStdout = Annotated[
    Path | None, typer.Option(metavar="[FILE]", help="Write it all, or print it without FILE.")
]
Missing = Annotated[str, typer.Option(help="As data.missing: error, or skip.")]
Split = Annotated[
    str | None, typer.Option(help="As data.split; by default the one that DIR brings along.")
]


def findings_of(names: str | None) -> tuple[str, ...] | None:
    """The findings that --findings names, as in Effusion,Mass; None where it is not given.

    Raises:
        UserError: a name is no valid finding, or is given twice.
    """
    from xray_lightning.findings import check_findings  # `xray --help` should not wait for pandas

    if names is None:
        return None
    return check_findings([name.strip() for name in names.split(",")], what="--findings")
