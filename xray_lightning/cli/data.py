"""`xray data`: get, draw, check and prepare the images that training reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from xray_lightning.cli.options import (
    DataFolder,
    ImagesFolder,
    Jobs,
    JsonOrStdout,
    Missing,
    NewFolder,
    Split,
    Table,
    TableFindings,
    findings_of,
)
from xray_lightning.cli.output import STDOUT, FilesOrStdout, check_json, print_json, write_json
from xray_lightning.errors import EXIT_RUN_FAILED, UserError, check_whole
from xray_lightning.progress import display
from xray_lightning.terminal import say

if TYPE_CHECKING:
    from xray_lightning.data.manifest import Manifest

# Each command imports what it needs itself: `xray --help` should not wait for torch.

app = typer.Typer(help="Get, check and prepare the images.", no_args_is_help=True)
download = typer.Typer(help="Fetch a public data set.", no_args_is_help=True)
app.add_typer(download, name="download")


@app.command()
def phantom(
    folder: NewFolder,
    images: Annotated[int, typer.Option(help="How many images to draw.")] = 2000,
    size: Annotated[int, typer.Option(help="Their width and height in pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Another seed draws other patients.")] = 0,
) -> None:
    """Draw chest X-ray phantoms in the layout of NIH ChestX-ray14: images, table, lists, boxes.

    Example: [bold]xray data phantom data/phantom --images 2000 --size 256[/bold]
    """
    from xray_lightning.data.sources.phantom.dataset import PhantomSpec, ensure_phantoms

    spec = PhantomSpec(images=images, size=size, seed=seed)
    with display("drawing phantoms", images) as advance:
        drawn = ensure_phantoms(folder, spec, progress=advance)
    state = "Drawn" if drawn else "Already there"
    say(f"{state}: {images} phantoms of {size} x {size} pixels in {folder}")


@app.command(cls=FilesOrStdout)
def check(
    folder: DataFolder,
    images: ImagesFolder = None,
    split: Annotated[
        str | None, typer.Option(help="Only official, ai4m, column or this CSV, not every split.")
    ] = None,
    table: Table = None,
    findings: TableFindings = None,
    decode: Annotated[
        bool, typer.Option(help="Look into every image, not only whether it is there.")
    ] = True,
    jobs: Jobs = None,
    json: JsonOrStdout = None,
) -> None:
    """Say what a data set is, and everything that is wrong with it.

    A problem is what training refuses, or what would make its result wrong; a note is what it
    copes with. Exit code 0: sound, 1: problems, 2: there is no such folder, or no table in it.

    Example: [bold]xray data check data/nih --json check.json[/bold]
    """
    from xray_lightning.data.check import check_data, show_health
    from xray_lightning.data.sources.custom_csv import OwnTable

    check_json(json)
    named = findings_of(findings)
    own = None
    if table is not None or named is not None:
        own = OwnTable(file=table, uncertain="negative", empty="negative")
    health = check_data(
        folder,
        images=images,
        split=split,
        own=own,
        findings=named,
        decode=decode,
        jobs=jobs,
        progress=display,
    )
    if str(json) == STDOUT:
        print_json(health.as_json())
    else:
        show_health(health, Console())
        write_json(json, health.as_json())
    if health.problems:
        raise typer.Exit(EXIT_RUN_FAILED)


@app.command()
def cache(
    folder: DataFolder,
    images: ImagesFolder = None,
    image_size: Annotated[int, typer.Option(help="Side of the square images in pixels.")] = 224,
    cache_dir: Annotated[Path, typer.Option(metavar="DIR", help="As data.cache_dir.")] = Path(
        "data/cache"
    ),
    split: Annotated[str, typer.Option(help="As data.split: which images are used.")] = "official",
    missing: Missing = "error",
    verify: Annotated[bool, typer.Option("--verify", help="Look at every checksum.")] = False,
) -> None:
    """Decode every image once, ahead of the training that will read them.

    What is there already is kept: start it again after a fault, or with new images. A run finds
    the cache if its data.root, data.images, data.image_size and data.cache_dir are these.

    Example: [bold]xray data cache data/nih --cache-dir data/cache --missing skip[/bold]
    """
    from xray_lightning.data.cache import images_of
    from xray_lightning.data.cache_build import ensure_cache
    from xray_lightning.data.manifest import read_manifest
    from xray_lightning.data.splits import make_split, usable_split

    check_whole("--image-size", image_size, least=32)
    manifest = read_manifest(folder, images=images)
    usable = usable_split(
        manifest, make_split(manifest, split), missing=missing, allow_patient_overlap=True
    )
    paths = images_of(manifest, usable.split)
    built = ensure_cache(
        paths, image_size=image_size, cache_dir=cache_dir, progress=display, verify=verify
    )
    text = f"{len(paths)} images of {image_size} x {image_size} pixels in {built.folder}"
    if done := built.decoded + built.copied:
        say(
            f"Built: {text}: {built.decoded} decoded, {built.copied} copied from another cache, "
            f"{len(paths) - done} kept; {built.seconds:.1f} s, {done / built.seconds:.0f} images/s"
        )
    else:
        say(f"Already there: {text}{'; every checksum is right' if verify else ''}")


@app.command()
def explore(
    folder: DataFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the page and figures go.")] = Path(
        "explore"
    ),
    images: ImagesFolder = None,
    split: Split = None,
    image: Annotated[
        str | None, typer.Option(metavar="NAME", help="The one to show with its gray levels.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="Measure so many images, drawn at random, not all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    table: Table = None,
    findings: TableFindings = None,
    jobs: Jobs = None,
) -> None:
    """Show what a data set holds, as figures and one page: images, exposure, findings, patients.

    In a table of one's own, -1 and empty cells count as negative here.

    Example: [bold]xray data explore data/nih --out explore/nih[/bold]
    """
    from xray_lightning.data.explore.measure import Exposure
    from xray_lightning.data.explore.page import explore_data
    from xray_lightning.data.splits import make_split, own_split

    manifest = _manifest(
        folder,
        images=images,
        table=table,
        findings=findings,
        uncertain="negative",
        empty="negative",
    )
    split = split or own_split(manifest)
    found = explore_data(
        manifest,
        None if split is None else make_split(manifest, split),
        out,
        image=image,
        sample=sample,
        seed=seed,
        jobs=jobs,
        progress=display,
    )
    measured = len(found.read.levels)
    kinds = ", ".join(f"{len(found.read.of(kind)):,} {kind.value}" for kind in Exposure)
    lines = [f"{measured:,} images measured: {kinds}"] if measured else []
    if found.missing:
        lines.append(f"Rows without an image file: {found.missing:,}")
    if found.read.unreadable:
        lines.append(f"Images that cannot be read: {len(found.read.unreadable):,}, named there")
    lines.append(f"Written: {found.page}, with exposure.csv and {found.figures} figures beside it")
    say(*lines)


@app.command("export-folders")
def export_folders(
    folder: DataFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    images: ImagesFolder = None,
    split: Split = None,
    split_seed: Annotated[int, typer.Option(help="As data.split_seed.")] = 0,
    mode: Annotated[str, typer.Option(help="copy, hardlink or symlink.")] = "copy",
    missing: Missing = "error",
    allow_patient_overlap: Annotated[
        bool, typer.Option("--allow-patient-overlap", help="As data.allow_patient_overlap.")
    ] = False,
    table: Table = None,
    findings: TableFindings = None,
    uncertain: Annotated[
        str, typer.Option(help="What -1 means in it: error, negative, positive.")
    ] = "error",
    empty: Annotated[str, typer.Option(help="What an empty cell means: error, negative.")] = (
        "error"
    ),
) -> None:
    """Sort the images of a split into folders train, val and test, with their tables.

    The same command goes on after a fault, and a finished folder is left as it is. NIH's and AI
    for Medicine's tables become the three CSVs of AI for Medicine, for data=ai4m; a table of one's
    own becomes one with a column split, for data=csv.

    Example: [bold]xray data export-folders data/nih data/folders --mode hardlink[/bold]
    """
    from xray_lightning.data.export_folders import export_folders as export
    from xray_lightning.data.splits import make_split, own_split, usable_split

    manifest = _manifest(
        folder, images=images, table=table, findings=findings, uncertain=uncertain, empty=empty
    )
    split = split or own_split(manifest)
    if split is None:
        raise UserError(f"{folder} brings no split along; give --split patient_random, or a CSV")
    usable = usable_split(
        manifest,
        make_split(manifest, split, seed=split_seed),
        missing=missing,
        allow_patient_overlap=allow_patient_overlap,
    )
    done = export(manifest, usable.split, out, mode=mode, progress=display)
    total = sum(done.images.values())
    sides = ", ".join(f"{count:,} {side}" for side, count in done.images.items())
    lines = [f"{total:,} images in {out} ({sides}): {done.new:,} new, {total - done.new:,} there"]
    if skipped := sum(usable.skipped.values()):
        lines.append(f"Left out: {skipped:,} row{'s' * (skipped != 1)} without a file")
    options = [f"data={done.dialect}", f"data.root={out}"]
    if done.dialect == "csv":
        options.append("data.split=column")
        if findings is not None:
            options.append(f"'data.findings=[{findings}]'")
    if usable.patient_overlap:
        options.append("data.allow_patient_overlap=true")
    lines.append(f"Train on it: uv run train.py {' '.join(options)}")
    say(*lines)


def _manifest(
    folder: Path,
    *,
    images: Path | None,
    table: str | None,
    findings: str | None,
    uncertain: str,
    empty: str,
) -> "Manifest":
    """The rows of a data set, of the user's table if `table` is given or none is known."""
    from xray_lightning.data.manifest import check_folder, holds_known_table, read_manifest
    from xray_lightning.data.sources.custom_csv import OwnTable

    check_folder(folder, key="DIR")
    named = findings_of(findings)
    own = None
    if table is not None or not holds_known_table(folder):
        own = OwnTable(file=table, uncertain=uncertain, empty=empty)
    return read_manifest(folder, images=images, findings=named, own=own)


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
    from xray_lightning.data.download.nih import BASE_URL, HOME, download_nih, parse_parts
    from xray_lightning.progress import Transfers

    fetched = download_nih(
        folder,
        parts=parse_parts(parts),
        jobs=jobs,
        base_url=BASE_URL if base_url is None else base_url,
        metadata_url=metadata_url,
        transfers=Transfers(),
    )
    for state, images in (("Fetched", fetched.new), ("Already there", fetched.kept)):
        if images:
            named = ", ".join(map(str, images))
            say(f"{state}: {sum(images.values())} images of archive {named} in {folder}")
    if fetched.missing:
        say(
            f"Still needed in {folder}: {', '.join(fetched.missing)}. They lie beside the images "
            f"at {HOME} (open it in a browser), or give --metadata-url"
        )


@download.command()
def chestmnist(
    folder: NewFolder,
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
    from xray_lightning.progress import Transfers

    images, new = download_chestmnist(
        folder,
        size=size,
        base_url=BASE_URL if base_url is None else base_url,
        transfers=Transfers(),
        progress=display,
    )
    say(f"{'Fetched' if new else 'Already there'}: {images} images of {size} pixels in {folder}")
