"""`xray`: everything that is not training."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xray_lightning.errors import RunFailedError, UserError, XrayError, check_whole, one_line
from xray_lightning.progress import display

# Each command imports what it needs itself: `xray --help` should not wait for torch.

app = typer.Typer(
    name="xray",
    help="Chest X-ray diagnosis, besides training. Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Prepare the images that training reads.", no_args_is_help=True)
app.add_typer(data, name="data")
download = typer.Typer(help="Fetch a public data set.", no_args_is_help=True)
data.add_typer(download, name="download")


@app.command()
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
    from xray_lightning.evaluation.report.collected import build_report
    from xray_lightning.evaluation.report.terminal import print_report
    from xray_lightning.evaluation.report.write import write_report

    console = Console()
    built = build_report(runs or [])
    print_report(built, console)
    page = write_report(built, out)
    for path in (page.with_suffix(".md"), page):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CKPT...", help="One checkpoint, or several to average."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score this predictions CSV; no checkpoint is needed."),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Validation CSV, if not beside --predictions."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the metrics of --predictions.")
    ] = None,
    average: Annotated[
        str, typer.Option(help="What several checkpoints average: probabilities, or logits.")
    ] = "probabilities",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data set, if not that of the first's run.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its images are, if elsewhere.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="As data.split.")] = None,
    side: Annotated[str, typer.Option(help="test, val or train.")] = "test",
    missing: Annotated[str | None, typer.Option(help="As data.missing: error, or skip.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="As data.cache_dir.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    resamples: Annotated[
        int | None, typer.Option(help="Of the intervals; by default the run's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the resamples; by default the run's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write; by default RUN/evaluation, or ensemble."),
    ] = None,
) -> None:
    """Score a checkpoint, several averaged, or a file of predictions, with every metric of a run.

    Operating points and calibration are those in the checkpoint; of an ensemble they are fitted on
    its own validation predictions, and what averaging gains is shown with its interval.

    Example: [bold]xray evaluate runs/a/checkpoints/best.ckpt runs/b/checkpoints/best.ckpt[/bold]
    """
    if (predictions is None) == (not checkpoints):
        raise UserError("xray evaluate needs checkpoints, or --predictions FILE, and not both")
    console = Console()
    if predictions is not None:
        from xray_lightning.evaluation.recompute import recompute
        from xray_lightning.evaluation.shown import show_recomputed

        recomputed = recompute(predictions, val=val, resamples=resamples, seed=seed)
        show_recomputed(recomputed, console)
        write_json(json, recomputed.to_plain(), console)
        return
    if val is not None or json is not None:
        raise UserError("--val and --json belong to --predictions; checkpoints write to --out")

    from xray_lightning.evaluation.score import Options, score, write
    from xray_lightning.evaluation.scored_data import DataChoice
    from xray_lightning.evaluation.shown import show_scored

    chosen = DataChoice(
        root=data,
        images=images,
        split=split,
        missing=missing,
        cache_dir=cache_dir,
        batch_size=batch_size,
    )
    options = Options(
        data=chosen,
        side=side,
        average=average,
        accelerator=accelerator,
        precision=precision,
        resamples=resamples,
        seed=seed,
        out=out,
    )
    scored = score(checkpoints or [], options, command=command_line(), progress=display)
    show_scored(scored, console)
    folder = write(scored)
    console.print(f"Written: {folder}", markup=False, highlight=False, soft_wrap=True)


@app.command()
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
    from xray_lightning.evaluation.run_pair import compare_runs
    from xray_lightning.evaluation.shown import show_comparison

    pair = compare_runs(first, second, resamples=resamples, seed=seed)
    console = Console()
    show_comparison(pair.comparison, console, names=pair.names)
    write_json(json, pair.to_plain() | {"command": command_line()}, console)


def command_line() -> str:
    """This command as a shell takes it."""
    return shlex.join(["xray", *sys.argv[1:]])


def write_json(path: Path | None, content: dict[str, object], console: Console) -> None:
    """Write what a command has found where it was told to, if it was."""
    if path is None:
        return
    from json import dumps

    from xray_lightning.atomic import write_atomically
    from xray_lightning.training.results import finite

    try:
        write_atomically(path, dumps(finite(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from error
    console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
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
        command=shlex.join(["xray", *sys.argv[1:]]),
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


@data.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    images: Annotated[int, typer.Option(help="How many images to draw.")] = 2000,
    size: Annotated[int, typer.Option(help="Their width and height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed draws other patients.")] = 0,
) -> None:
    """Draw chest X-ray phantoms in the layout of NIH ChestX-ray14: images, table, lists, boxes.

    Example: [bold]xray data phantom data/phantom --images 2000 --size 256[/bold]
    """
    from xray_lightning.data.phantom import PhantomSpec, ensure_phantoms

    spec = PhantomSpec(images=images, size=size, seed=seed)
    with display("drawing phantoms", images) as advance:
        drawn = ensure_phantoms(folder, spec, progress=advance)
    state = "Drawn" if drawn else "Already there"
    text = f"{state}: {images} phantoms of {size} x {size} pixels in {folder}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@data.command()
def cache(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data set: its CSV, its images.")],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the images are, if not in there too.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the square images in pixels.")] = 224,
    cache_dir: Annotated[Path, typer.Option(metavar="DIR", help="As data.cache_dir.")] = Path(
        "data/cache"
    ),
    split: Annotated[str, typer.Option(help="As data.split: which images are used.")] = "official",
    missing: Annotated[str, typer.Option(help="As data.missing: error, or skip.")] = "error",
    verify: Annotated[bool, typer.Option("--verify", help="Look at every checksum.")] = False,
) -> None:
    """Decode every image once, ahead of the training that will read them.

    What is there already is kept: start it again after a fault, or with new images. A run finds
    the cache if its data.root, data.images, data.image_size and data.cache_dir are these.

    Example: [bold]xray data cache data/nih --cache-dir data/cache --missing skip[/bold]
    """
    from xray_lightning.data.cache_build import ensure_cache
    from xray_lightning.data.image_set import images_of
    from xray_lightning.data.manifest import read_manifest
    from xray_lightning.data.splits import make_split
    from xray_lightning.data.usable import with_files

    check_whole("--image-size", image_size, least=32)
    manifest = read_manifest(folder, images=images)
    used, _ = with_files(manifest, make_split(manifest, split), missing=missing)
    paths = images_of(manifest, used)
    built = ensure_cache(
        paths, image_size=image_size, cache_dir=cache_dir, progress=display, verify=verify
    )
    text = f"{len(paths)} images of {image_size} x {image_size} pixels in {built.folder}"
    if done := built.decoded + built.copied:
        text = (
            f"Built: {text}: {built.decoded} decoded, {built.copied} copied from another cache, "
            f"{len(paths) - done} kept; {built.seconds:.1f} s, {done / built.seconds:.0f} images/s"
        )
    else:
        text = f"Already there: {text}{'; every checksum is right' if verify else ''}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


@download.command()
def nih(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if missing.")],
    parts: Annotated[
        str, typer.Option(help="Which of the 12 archives: 1,2 or 1-3; by default every one.")
    ] = "",
    jobs: Annotated[int, typer.Option(help="How many archives at once.")] = 2,
    metadata_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A folder that has the table and the lists."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror that has the archives as ID.gz.")
    ] = None,
) -> None:
    """Fetch NIH ChestX-ray14: up to 112,120 images, 45 GB, in twelve archives.

    Each archive is checked, unpacked into DIR/images_001 and so on, and removed. Run it again
    after a fault: it goes on where it was. NIH has no lasting address for the table and the lists
    of the official split; what is missing is named at the end, with where to find it.

    Example: [bold]xray data download nih data/nih --parts 1,2[/bold]
    """
    from xray_lightning.data.download.archives import BASE_URL, HOME, parse_parts
    from xray_lightning.data.download.nih import download_nih
    from xray_lightning.data.download.shown import Transfers

    fetched = download_nih(
        folder,
        parts=parse_parts(parts),
        jobs=jobs,
        base_url=BASE_URL if base_url is None else base_url,
        metadata_url=metadata_url,
        transfers=Transfers(),
    )
    console = Console()
    for state, images in (("Fetched", fetched.new), ("Already there", fetched.kept)):
        if images:
            named = ", ".join(map(str, images))
            text = f"{state}: {sum(images.values())} images of archive {named} in {folder}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    if fetched.missing:
        text = (
            f"Still needed in {folder}: {', '.join(fetched.missing)}. They lie beside the images "
            f"at {HOME} (open it in a browser), or give --metadata-url"
        )
        console.print(text, markup=False, highlight=False, soft_wrap=True)


@download.command()
def chestmnist(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    size: Annotated[int, typer.Option(help="Side of the images: 28, 64, 128 or 224.")] = 64,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A mirror that has the .npz files.")
    ] = None,
) -> None:
    """Fetch ChestMNIST, NIH's images made small, as images, a table and a split.

    Train on it with data=chestmnist. It names no patients: nobody can check whether its training
    and test images share some.

    Example: [bold]xray data download chestmnist data/chestmnist --size 64[/bold]
    """
    from xray_lightning.data.download.chestmnist import BASE_URL, download_chestmnist
    from xray_lightning.data.download.shown import Transfers

    images, new = download_chestmnist(
        folder,
        size=size,
        base_url=BASE_URL if base_url is None else base_url,
        transfers=Transfers(),
        progress=display,
    )
    text = f"{'Fetched' if new else 'Already there'}: {images} images of {size} pixels in {folder}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The console entry: errors that a user can cause are one line, with their exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not valid UTF-8 must not end a command halfway.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        app()
    except XrayError as error:
        if os.environ.get("XRAY_DEBUG") == "1":
            raise
        sys.stderr.write(f"xray: error: {one_line(error)}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
