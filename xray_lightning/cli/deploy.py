"""`xray predict`, `export` and `info`: a trained model put to use, and what is known of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.cli.options import (
    Accelerator,
    Average,
    Checkpoint,
    JsonOrStdout,
    Precision,
    Tta,
)
from xray_lightning.cli.output import STDOUT, check_json, print_json, write_json, write_text
from xray_lightning.errors import UserError, check_whole
from xray_lightning.files import let_go
from xray_lightning.progress import display, unseen
from xray_lightning.terminal import say

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
    average: Average = "probabilities",
    tta: Tta = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 32,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse DICOM files of anything but a frontal chest."),
    ] = False,
) -> None:
    """Predict the findings of image files, from a checkpoint alone.

    One row a file: path, status (ok, unreadable) and reason, flags, then of each finding prob_
    (raw), calibrated_, threshold_ (the operating point) and decision_, which compares the raw
    probability with the threshold. What the checkpoint does not have is left out. A folder stands
    for every file below it, a CSV for the images that it names.

    flags says what makes an image unlike those of the training: tiny, aspect (longer than 1.5
    times its width), colour, blank, inverted, layout (bright and dark not where a frontal chest
    X-ray has them); and by what a DICOM file says of itself, modality (no radiograph's), body_part
    (another than the chest) and lateral.

    Example: [bold]xray predict runs/a/checkpoints/best.ckpt images/ --out predictions.csv[/bold]
    """
    from xray_lightning.deploy.predict import predict as predict_files

    check_whole("--batch-size", batch_size, least=1)
    try:
        summary, note = predict_files(
            arguments,
            out=out,
            images=images,
            average=average,
            tta=tta,
            batch_size=batch_size,
            device=accelerator,
            precision=precision,
            strict=strict,
            progress=unseen if out is None else display,
        )
    except BrokenPipeError:  # the reader of stdout, such as `| head`, has closed the pipe
        let_go(sys.stdout)
        raise typer.Exit(1) from None
    told = summary if out is None else f"Written: {out}: {summary}"
    say(*filter(None, (note, told)), console=Console(stderr=out is None))


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .onnx, .pt2 or .safetensors file.")],
    format: Annotated[str, typer.Option(help="onnx, torch-export, or safetensors.")] = "onnx",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Images to compare on: files, folders or patterns."),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="In 8 bits, scored on the test side of this data set."),
    ] = None,
) -> None:
    """Write a model as one graph that other programs run, from uint8 pixels to probabilities.

    Normalisation is in the graph, any number of images goes in at once, and the file says its
    findings, operating points, calibration, split and how images are to be prepared. Its answers
    are compared with torch's first, on up to 200 of --images, or on phantoms; where they differ by
    more than 1e-4, nothing is written.

    xray predict takes the .onnx file in the place of a checkpoint, without torch.

    --format safetensors writes the weights and the same description without pickle; every command
    takes that file in the place of a checkpoint.

    --int8 writes integers of 8 bits in the place of float32, with ranges from up to 200 validation
    images of a data set, and says what that costs in AUROC on its test images.

    Example: [bold]xray export runs/a/checkpoints/best.ckpt --out a.onnx --images data/nih[/bold]
    """
    from xray_lightning.deploy.export import export as export_model

    done = export_model(
        checkpoint, out, format=format, images=images or (), int8=int8, progress=display
    )
    say(*done.told)


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT|RUN", help="A checkpoint (.ckpt), an exported .onnx, or a run folder."
        ),
    ],
    json: JsonOrStdout = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="[FILE]", help="Write the model card, or print it without FILE."),
    ] = None,
) -> None:
    """Say what a model is: trained on what, how good, for what use, and with which limits.

    A checkpoint knows its findings, its input and its operating points; the rest is in results.json
    of its run, and is told where that lies beside it and is of the same run. Of a run folder it is
    the best checkpoint, or the one that the run has tested.

    The model card, model_card.md, is Markdown with the head that model hubs read. A run that was
    tested has one in its folder; --card makes that of an older run.

    Example: [bold]xray info runs/a/checkpoints/best.ckpt --json info.json[/bold]
    """
    if json is not None and card is not None:
        raise UserError("--json and --card: give one of them")
    option, file = ("--json", json) if card is None else ("--card", card)
    to_stdout = str(file) == STDOUT
    check_json(file, option=option)
    from xray_lightning.deploy.model_card.card import card as card_of
    from xray_lightning.deploy.model_card.card import print_info
    from xray_lightning.deploy.model_card.info import as_json, model_info

    found = model_info(path)
    if card is not None and to_stdout:
        sys.stdout.write(card_of(found))
    elif card is not None:
        write_text(card, card_of(found), option=option)
    elif to_stdout:
        print_json(as_json(found))
    else:
        if json is None:
            print_info(found, Console())
        write_json(json, as_json(found))
