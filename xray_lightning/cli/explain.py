"""`xray explain`: maps of where a model saw findings, and their scores against boxes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.cli.options import Accelerator, Checkpoint, ImagesFolder, findings_of
from xray_lightning.cli.output import STDOUT, check_json, print_json, write_json
from xray_lightning.errors import UserError, check_whole, printable
from xray_lightning.progress import display
from xray_lightning.terminal import say

# The command imports what it needs itself: `xray --help` should not wait for torch.


def explain(
    checkpoint: Checkpoint,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Files, folders, patterns or CSVs of images."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for overlays and maps.")
    ] = None,
    method: Annotated[str, typer.Option(help="layercam, or gradcam.")] = "layercam",
    findings: Annotated[
        str | None, typer.Option(help="Only these: Effusion,Mass. By default the most probable.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="How many of the most probable findings; by default 3.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Also DIR/gallery.html, one file.")] = False,
    images: ImagesFolder = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A list of boxes; by default that of the data set."),
    ] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Score the maps against the boxes of a data set.")
    ] = False,
    side: Annotated[
        str | None, typer.Option(help="For --score: test (the official list), or all boxes.")
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(help="For --score: draws of patients; by default 1000.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For --score: of the draws.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="[FILE]", help="For --score: write it, or print it without FILE."),
    ] = None,
    accelerator: Accelerator = "auto",
) -> None:
    """Show where a model saw findings in images, or score whether they are there.

    DIR gets overlays/ (PNG, the map blended into the image), maps/ (NPZ: findings and maps,
    float32, of the model's own size) and explained.csv: a row for each map, and one with the
    reason for each file that cannot be read. The findings are the most probable ones, and those
    that have a box. --html adds a gallery to look at in a browser.

    --score takes one folder, a data set with BBox_List_2017.csv, and plays the pointing game:
    how often the largest value of a map lies in a box of the finding, beside chance and beside
    the maps of other patients; and how much of a box a map covers (IoU).

    A map shows what raised the model's answer. That may lie elsewhere than the finding.

    Example: [bold]xray explain runs/a/checkpoints/best.ckpt images/ --out explained --html[/bold]

    Example: [bold]xray explain runs/a/checkpoints/best.ckpt data/nih --score[/bold]
    """
    of_files = {"--out": out, "--top": top, "--html": html or None, "--boxes": boxes}
    of_scores = {"--side": side, "--resamples": resamples, "--seed": seed, "--json": json}
    for option, value in (of_files if score else of_scores).items():
        if value is not None:
            beside = "cannot stand beside" if score else "needs"
            raise UserError(f"{option} {beside} --score")
    named = findings_of(findings)
    if score:
        _score(
            checkpoint,
            paths,
            method=method,
            findings=named,
            images=images,
            side=side or "test",
            resamples=1000 if resamples is None else resamples,
            seed=seed or 0,
            json=json,
            accelerator=accelerator,
        )
        return
    if out is None:
        raise UserError("--out is missing; give a new folder, or --score")
    if top is not None and named is not None:
        raise UserError("--top and --findings: give one of them")
    check_whole("--top", 3 if top is None else top, least=1)
    from xray_lightning.deploy.saliency.explain import explain as explain_files
    from xray_lightning.deploy.saliency.gallery import PAGE, Choice

    summary = explain_files(
        checkpoint,
        paths,
        out,
        method=method,
        choice=Choice(named, 3 if top is None else top),
        html=html,
        images=images,
        boxes=boxes,
        device=accelerator,
        progress=display,
    )
    say(f"Written: {out}: {summary}")
    if html:
        say(f"Open {out / PAGE} in a browser")


def _score(
    checkpoint: Path,
    paths: list[str],
    *,
    method: str,
    findings: tuple[str, ...] | None,
    images: Path | None,
    side: str,
    resamples: int,
    seed: int,
    json: Path | None,
    accelerator: str,
) -> None:
    check_whole("--resamples", resamples, least=1)
    check_whole("--seed", seed, least=0)
    check_json(json)
    if len(paths) != 1 or not Path(paths[0]).is_dir():
        raise UserError("--score takes one folder, which holds BBox_List_2017.csv and its data set")
    from xray_lightning.deploy.saliency.explain import show_localisation
    from xray_lightning.deploy.saliency.gallery import Choice
    from xray_lightning.deploy.saliency.localisation import boxes_to_score, localise
    from xray_lightning.deploy.saliency.maps import NAMES, Explainer

    root = Path(paths[0])
    boxes = boxes_to_score(root, images=images, side=side)
    explainer = Explainer.load(checkpoint, method=method, device=accelerator)
    Choice(findings).check(explainer.findings)
    if findings is not None:
        boxes = boxes[boxes["finding"].isin(findings)]
    found = localise(explainer, boxes, resamples=resamples, seed=seed, progress=display)
    content: dict[str, object] = {
        "checkpoint": str(checkpoint),
        "sha256": explainer.network.members[0].sha256,
        "method": method,
        "data": str(root),
        "side": side,
        "resamples": resamples,
        "seed": seed,
        **found.as_json(),
    }
    if str(json) == STDOUT:
        print_json(content)
        return
    title = printable(f"{checkpoint}, {NAMES[method]}, boxes of {root} ({side})")
    show_localisation(found, Console(), title=title)
    write_json(json, content)
