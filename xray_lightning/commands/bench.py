"""`xray bench`: training, timed beside others."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.commands.output import command_line
from xray_lightning.errors import RunFailedError, UserError

# Each command imports what it needs itself: `xray --help` should not wait for torch.


def bench(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set: a CSV as NIH's, and its images.")
    ] = None,
    arms: Annotated[str, typer.Option(help="Which to time: A,B,...; by default every one.")] = "",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results.")] = None,
    model: Annotated[str, typer.Option(help="resnet18, resnet50, densenet121, ...")] = "resnet18",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    precision: Annotated[str, typer.Option(help="One or both.")] = "32-true,bf16-mixed",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of each arm.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds over all arms.")] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Steps to time in a run: at least so many, whole epochs.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Use at most so many images.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write README.md of DIR's JSON files.")
    ] = None,
) -> None:
    """Time training side by side: ours, its switches, its limit, and what others load images with.

    The peers (timm, MONAI) come with `uv sync --extra bench`; those that are missing are named.

    Example: [bold]xray bench --arms paper_loop,ours,compute_only --data DIR --json FILE[/bold]
    """
    from xray_lightning.benchmark.readme import print_table, write_readme

    console = Console()
    if readme is not None:
        page = write_readme(readme)
        console.print(f"Written: {page}", markup=False, highlight=False, soft_wrap=True)
        return
    if data is None:
        raise UserError("xray bench needs --data DIR, the folder of a data set")

    from xray_lightning.benchmark.options import Options

    options = Options(
        data=data,
        command=command_line(),
        arms=split_names(arms),
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        precisions=split_names(precision),
        accelerator=accelerator,
        threads=threads,
        repeats=repeats,
        steps=steps,
        images=images,
        json=json,
    )
    options.check()

    from xray_lightning.benchmark.bench import bench as time_arms

    content = time_arms(options)
    print_table(content, console)
    if content["failed"]:
        raise RunFailedError("; ".join(content["failed"].values()))


def split_names(text: str) -> list[str]:
    """The names of a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
