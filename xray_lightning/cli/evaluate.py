"""`xray report`, `evaluate`, `recalibrate`, `compare`: scores of runs, with their uncertainty."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.cli.options import (
    Accelerator,
    Average,
    Checkpoint,
    KeptBatch,
    KeptCache,
    KeptImages,
    KeptMissing,
    LabelMapFile,
    Precision,
    Tta,
)
from xray_lightning.cli.output import check_json, command_line, write_json
from xray_lightning.errors import UserError
from xray_lightning.progress import display
from xray_lightning.terminal import say

# Each command imports what it needs itself: `xray --help` should not wait for torch.

_OF_PREDICTIONS = {  # options of `evaluate` that may be given with --predictions
    "predictions",
    "val",
    "json",
    "resamples",
    "seed",
    "labels",
    "map",
    "prevalence",
}


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Run folders, or folders above them (a sweep)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; by default the run's folder, or report/ above several."),
    ] = None,
) -> None:
    """Show what runs have reached, beside the paper's tables, and write it as pages with plots.

    report.html holds it all in one file, report.md the tables alone. Without RUN, the newest run or
    sweep under runs/ is shown.

    Example: [bold]xray report runs/2026-01-31_12-00-00_study --out report[/bold]
    """
    from xray_lightning.report.write import build_report, print_report, write_report

    console = Console()
    built = build_report(runs or [])
    print_report(built, console)
    page = write_report(built, out)
    say(*(f"Written: {path}" for path in (page.with_suffix(".md"), page)), console=console)


def evaluate(
    context: typer.Context,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CKPT...", help="One checkpoint, or several to average."),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score this predictions CSV, without a checkpoint; repeat it for all folds of a "
            "cross-validation.",
        ),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Validation CSV, if not beside --predictions."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the metrics of --predictions.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV of other labels for the same images."),
    ] = None,
    map: LabelMapFile = None,
    average: Average = "probabilities",
    tta: Tta = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set, if not that of the first's run.")
    ] = None,
    images: KeptImages = None,
    split: Annotated[str | None, typer.Option(help="As data.split.")] = None,
    side: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    missing: KeptMissing = None,
    cache_dir: KeptCache = None,
    batch_size: KeptBatch = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
    resamples: Annotated[
        int | None, typer.Option(help="Of the intervals; by default the run's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the resamples; by default the run's.")
    ] = None,
    prevalence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FINDING=]SHARE",
            help="Where it is to be used, for PPV and NPV: 0.02, or Mass=0.02; repeat it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write; by default RUN/evaluation, or ensemble."),
    ] = None,
) -> None:
    """Score a checkpoint, several averaged, or a file of predictions, with every metric of a run.

    Operating points and calibration are those in the checkpoint; of an ensemble they are fitted on
    its own validation predictions, and what averaging gains is shown with its interval.

    --labels scores on other labels, too, such as those of experts, and says what the data set's own
    are worth against them; --map says what they mean in terms of the model's findings.

    --data with --map scores another site's images, whose findings have other names: without --split
    all of them, at the checkpoint's operating points and calibration, beside both refitted there.

    Example: [bold]xray evaluate runs/a/checkpoints/best.ckpt runs/b/checkpoints/best.ckpt[/bold]
    """
    if (not predictions) == (not checkpoints):
        raise UserError("xray evaluate needs checkpoints, or --predictions FILE, and not both")
    from xray_lightning.evaluation.predictive_values import StatedPrevalence

    stated = StatedPrevalence.of_options(prevalence) if prevalence else None
    console = Console()
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    if map is not None and labels is None and data is None:
        raise UserError("--map is of --labels, or of --data; give one of them with it")
    if predictions:
        if of_checkpoints := sorted(given - _OF_PREDICTIONS):
            named = ", ".join("--" + name.replace("_", "-") for name in of_checkpoints)
            raise UserError(f"{named}: of checkpoints, not of --predictions; leave it out")
        check_json(json)
        from xray_lightning.evaluation.evaluate_predictions import recompute
        from xray_lightning.evaluation.tables import show_recomputed

        recomputed = recompute(
            predictions,
            val=val,
            resamples=resamples,
            seed=seed,
            prevalence=stated,
            labels=labels,
            map=map,
        )
        show_recomputed(recomputed, console)
        write_json(json, recomputed.to_plain())
        return
    if val is not None or json is not None:
        raise UserError("--val and --json belong to --predictions; checkpoints write to --out")
    if "average" in given and len(checkpoints or []) == 1:
        raise UserError("--average is of several checkpoints; give more than one, or leave it out")

    from xray_lightning.evaluation.evaluate import DataChoice, Options, score, write
    from xray_lightning.evaluation.external_validation import validate
    from xray_lightning.evaluation.tables import show_scored

    options = Options(
        data=DataChoice(
            root=data,
            images=images,
            split=split,
            missing=missing,
            cache_dir=cache_dir,
            batch_size=batch_size,
        ),
        side=side,
        average=average,
        tta=tta,
        accelerator=accelerator,
        precision=precision,
        resamples=resamples,
        seed=seed,
        prevalence=stated,
        out=out,
        labels=labels,
        map=map,
    )
    external = map is not None and labels is None
    judge = validate if external else score
    scored = judge(checkpoints or [], options, command=command_line(), progress=display)
    show_scored(scored, console)
    say(f"Written: {write(scored)}", console=console)


def recalibrate(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="The site's labelled images, with their CSV.")
    ],
    out: Annotated[Path, typer.Option(metavar="CKPT", help="The new checkpoint to write.")],
    map: LabelMapFile = None,
    rule: Annotated[
        str | None, typer.Option(help="Of the operating points; by default the checkpoint's.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="The sensitivity or specificity that the rule aims at.")
    ] = None,
    images: KeptImages = None,
    missing: KeptMissing = None,
    cache_dir: KeptCache = None,
    batch_size: KeptBatch = None,
    accelerator: Accelerator = "auto",
    precision: Precision = "32-true",
) -> None:
    """Refit a checkpoint's operating points and calibration to a site's own labelled images.

    All images of the folder are used, and the weights stay as they are. A finding that fewer than
    ten patients have, or lack, keeps the checkpoint's own. What was refitted to what is recorded in
    the new checkpoint, which xray info shows; the old one is not touched.

    Example: [bold]xray recalibrate best.ckpt --data /data/site --out site.ckpt[/bold]
    """
    from xray_lightning.evaluation.evaluation_data import DataChoice
    from xray_lightning.evaluation.recalibration import recalibrate as refit
    from xray_lightning.evaluation.recalibration import show_recalibration

    done = refit(
        checkpoint,
        out,
        DataChoice(
            root=data, images=images, missing=missing, cache_dir=cache_dir, batch_size=batch_size
        ),
        map=map,
        rule=rule,
        target=target,
        accelerator=accelerator,
        precision=precision,
        progress=display,
    )
    show_recalibration(done, Console())


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another, of the same split.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results.")] = None,
    resamples: Annotated[int, typer.Option(help="Of the patients; 0 for no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
) -> None:
    """Show how much better the second run is than the first on the same test images.

    Both are scored in the same resamples of the patients, so that the interval of the difference
    is that of the difference itself.

    Example: [bold]xray compare runs/a runs/b --json difference.json[/bold]
    """
    from xray_lightning.evaluation.compare import compare_runs
    from xray_lightning.evaluation.tables import show_comparison

    check_json(json)
    pair = compare_runs(first, second, resamples=resamples, seed=seed)
    console = Console()
    show_comparison(pair.comparison, console, names=pair.names)
    write_json(json, pair.to_plain() | {"command": command_line()})
