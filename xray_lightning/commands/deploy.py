"""`xray predict`: a trained model put to use."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.errors import check_whole, printable
from xray_lightning.progress import display, unseen

# Each command imports what it needs itself: `xray --help` should not wait for torch.


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT... PATH...",
            help="Checkpoints (.ckpt; several are averaged), and files, folders, patterns or CSVs.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .csv, .jsonl or .parquet; by default CSV to stdout."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where a CSV's images are, if not beside it.")
    ] = None,
    average: Annotated[
        str, typer.Option(help="What several checkpoints average: probabilities, or logits.")
    ] = "probabilities",
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 32,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
) -> None:
    """Predict the findings of image files, from a checkpoint alone.

    One row a file: path, status (ok, unreadable) and reason, flags, then of each finding prob_
    (raw), calibrated_, threshold_ (the operating point) and decision_, which compares the raw
    probability with the threshold. What the checkpoint does not have is left out. A folder stands
    for every file below it, a CSV for the images that it names.

    flags says what makes an image unlike those of the training: tiny, aspect (longer than 1.5
    times its width), colour, blank, inverted, layout (bright and dark not where a frontal chest
    X-ray has them).

    Example: [bold]xray predict runs/a/checkpoints/best.ckpt images/ --out predictions.csv[/bold]
    """
    from xray_lightning.deploy.predict import Options
    from xray_lightning.deploy.predict import predict as predict_files

    check_whole("--batch-size", batch_size, least=1)
    options = Options(
        out=out,
        images=images,
        average=average,
        accelerator=accelerator,
        precision=precision,
        batch_size=batch_size,
    )
    try:
        done = predict_files(arguments, options, progress=unseen if out is None else display)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    console = Console(stderr=out is None)
    lines = [done.note, done.summary() if out is None else f"Written: {out}: {done.summary()}"]
    for line in filter(None, lines):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
