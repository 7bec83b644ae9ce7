"""Page of a data set (`xray data explore`): explore.html, one self-contained file."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xray_lightning.data.csv_table import shown as quoted
from xray_lightning.data.decode_resize import decode_gray
from xray_lightning.data.explore import figures
from xray_lightning.data.explore.figures import COLUMNS, ROWS, Shown
from xray_lightning.data.explore.measure import (
    RULE,
    Exposure,
    Numbers,
    Read,
    count,
    most_frequent,
    read_levels,
)
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import IMAGES, PATIENTS, Split
from xray_lightning.errors import UserError, check_whole
from xray_lightning.files import check_writable, told_if_unwritable, write_atomically
from xray_lightning.html.page import data_uri, rendered
from xray_lightning.progress import Display, unseen
from xray_lightning.workers import threads

MOST_NAMED = 20  # unreadable images that the page lists by name


@dataclass(frozen=True)
class Figure:
    """A PNG with its name and its caption."""

    name: str
    caption: str
    content: bytes

    @property
    def file(self) -> str:
        return f"{self.name}.png"

    @property
    def uri(self) -> str:
        return data_uri(self.content, kind="image/png")


PAGE, LEVELS, FIGURES = "explore.html", "exposure.csv", "figures"


@dataclass(frozen=True)
class Explored:
    """The page, how many PNGs lie beside it, the gray levels, and rows without an image file."""

    page: Path
    figures: int
    read: Read
    missing: int


def explore_data(
    manifest: Manifest,
    split: Split | None,
    out: Path,
    *,
    image: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    jobs: int | None = None,
    progress: Display = unseen,
) -> Explored:
    """Draw what a data set's table and images say, as PNGs and as a page.

    Args:
        manifest: the data set.
        split: its sides, by which positives are counted; None to count them all together.
        out: folder for explore.html, exposure.csv and figures/.
        image: the one that is shown with its gray levels; by default a random one.
        sample: how many images are measured, drawn at random; None for all.
        seed: seed of the random choices of images.
        jobs: threads that decode; None for one a core.

    Raises:
        UserError: no such image, an option out of range, or `out` cannot be written to.
        RunFailedError: the disk is full or fails.
    """
    check_whole("--jobs", threads() if jobs is None else jobs, least=1, most=256)
    check_whole("--sample", 1 if sample is None else sample, least=1)
    check_whole("--seed", seed, least=0)
    check_writable(out, key="--out")
    there = manifest.table[manifest.table["path"] != ""]
    path_of = dict(zip(there["image"], there["path"], strict=True))
    if image is not None and image not in path_of:
        raise UserError(
            f"--image {quoted(image)} is none of the {len(path_of):,} images of "
            f"{manifest.images or manifest.root} that have a row and a file"
        )
    order = np.random.default_rng(seed).permutation(sorted(path_of)).tolist()
    measured = sorted(order[:sample])
    if image is not None and image not in measured:
        measured.append(image)
    numbers = count(manifest, split)
    with _told(out):
        (out / FIGURES).mkdir(parents=True, exist_ok=True)  # before the long work
    read = read_levels(
        {name: path_of[name] for name in measured}, jobs=jobs or threads(), progress=progress
    )
    readable = [name for name in order if name in read.levels]
    drawn = [
        *_of_images(manifest, path_of, read, readable, image),
        *_of_table(manifest, numbers),
    ]
    with _told(out):
        for figure in drawn:
            write_atomically(out / FIGURES / figure.file, figure.content)
        write_atomically(out / LEVELS, read.as_csv())
        missing = len(manifest.table) - len(path_of)
        counts = numbers.counts
        page = rendered(
            "explore.html.jinja",
            title=manifest.root.resolve().name or "data set",
            images=numbers.images,
            patients=manifest.table["patient_id"].nunique(),
            missing=missing,
            split=split,
            seed=seed,
            counts=list(counts.itertuples(name=None)),
            sides=list(counts.columns),
            no_shares=(IMAGES, PATIENTS),
            totals=counts.loc[IMAGES].to_numpy().tolist(),
            measured=len(read.levels),
            exposures={kind.value: len(read.of(kind)) for kind in Exposure},
            rule=RULE,
            unreadable=list(read.unreadable.items())[:MOST_NAMED],
            unreadable_count=len(read.unreadable),
            dropped=manifest.dropped,
            figures={figure.name: figure for figure in drawn},
        )
        write_atomically(out / PAGE, page)
    return Explored(out / PAGE, len(drawn), read, missing)


def _of_images(
    manifest: Manifest,
    path_of: Mapping[str, str],
    read: Read,
    order: list[str],
    image: str | None,
) -> Iterator[Figure]:
    """The figures that show images; none where no image can be shown."""
    if not order:
        return
    findings = np.array(manifest.findings, dtype=object)
    labels = manifest.table[list(manifest.findings)].to_numpy(dtype=bool)
    labels_of = dict(zip(manifest.table["image"], labels, strict=True))

    def shown(name: str) -> Shown:
        return Shown(name, decode_gray(path_of[name]), findings[labels_of[name]].tolist())

    grid = [shown(name) for name in order[: COLUMNS * ROWS]]
    yield Figure("images", f"{len(grid)} images drawn at random.", figures.grid_figure(grid))
    one = order[0] if image is None or image not in read.levels else image
    yield Figure(
        "image",
        "One image with the histogram of its gray levels, their mean (line) and standard deviation "
        "(shaded, to both sides).",
        figures.levels_figure([shown(one)]),
    )
    yield Figure(
        "exposure",
        f"Mean and standard deviation of {len(read.levels):,} images; the dashed lines are the "
        "limits of the two badly exposed classes.",
        figures.exposures_figure(read.levels),
    )
    typical = [_typical(read, kind) for kind in Exposure if read.of(kind)]
    yield Figure(
        "exposures",
        "The typical image of each class, whose mean and deviation are nearest to the class's "
        "medians.",
        figures.levels_figure([shown(name) for name in typical]),
    )


def _typical(read: Read, kind: Exposure) -> str:
    """The image of a class that is nearest to the class's medians of mean and deviation."""
    names = read.of(kind)
    points = np.array([(read.levels[name].mean, read.levels[name].std) for name in names])
    distance = np.abs(points - np.median(points, axis=0)).sum(axis=1)
    return names[int(np.argmin(distance))]


def _of_table(manifest: Manifest, numbers: Numbers) -> Iterator[Figure]:
    """The figures that show counts of the table."""
    findings = manifest.findings
    bars = most_frequent(numbers, at_most=figures.MOST_BARS)
    cells = sorted(most_frequent(numbers, at_most=figures.MOST_CELLS), key=findings.index)

    def of(names: list[str]) -> str:
        return f" The {len(names)} most frequent ones." if len(names) < len(findings) else ""

    yield Figure(
        "findings",
        f"Positives of each finding by side, and their share of all images.{of(bars)}",
        figures.findings_figure(numbers, bars),
    )
    yield Figure(
        "together",
        "Findings that occur together: of the images with the row's finding (how many, in "
        f"brackets), the percentage that also has the column's.{of(cells)}",
        figures.together_figure(numbers.together, findings, cells),
    )
    if len(numbers.ages):
        unknown = f"; {numbers.ages_unknown:,} without an age" if numbers.ages_unknown else ""
        yield Figure("ages", f"Images by age and sex{unknown}.", figures.ages_figure(numbers))
    if list(numbers.views.index) != ["unknown"]:
        yield Figure("views", "Images by view and sex.", figures.views_figure(numbers))
    yield Figure(
        "patients", "Patients by their number of images.", figures.patients_figure(numbers)
    )


def _told(out: Path) -> AbstractContextManager[None]:
    return told_if_unwritable(f"--out {out} cannot be written", advice="give another folder")
