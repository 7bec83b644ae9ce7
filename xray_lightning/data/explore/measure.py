"""Measures of a data set: its findings and patients, and the gray levels of its images."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.decode_resize import Gray, UnreadableImageError, decode_gray
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.splits import IMAGES, PATIENTS, SIDES, Split, split_table
from xray_lightning.findings import NO_FINDING
from xray_lightning.progress import Display
from xray_lightning.workers import in_threads

# Mean and standard deviation of gray, from 0 to 1, in the examples of the paper's Figure 2.
PAPER_OVER, PAPER_UNDER = (0.4149, 0.1402), (0.6200, 0.1834)
PAPER_PADDED, PAPER_CORRECT = (0.2428, 0.2885), (0.4948, 0.2406)

# Halfway between the paper's badly exposed examples and its correct one.
DARK, FLAT_DARK = ((a + b) / 2 for a, b in zip(PAPER_OVER, PAPER_CORRECT, strict=True))
BRIGHT, FLAT_BRIGHT = ((a + b) / 2 for a, b in zip(PAPER_UNDER, PAPER_CORRECT, strict=True))

PADDED = 0.05  # share of the image
NEARLY_BLACK, NEARLY_WHITE = 24, 231  # gray levels of 255
ALIKE, ALIKE_SHARE = 8, 0.98  # gray levels from a line's median; share of the line within them


class Exposure(StrEnum):
    """How an image was exposed, in the paper's four classes."""

    OVER = "over-exposed"
    UNDER = "under-exposed"
    PADDED = "padded"
    CORRECT = "correct"


RULE = (
    f"Padded: plain lines along the edges cover at least {PADDED:.0%} of the image, where a line "
    f"is plain if {ALIKE_SHARE:.0%} of it lie within {ALIKE} gray levels (of 255) of its median, "
    f"and that is nearly black (at most {NEARLY_BLACK}) or white (at least {NEARLY_WHITE}). The "
    "others are judged by mean and standard deviation (of gray from 0 to 1) without such lines. "
    f"Over-exposed, dark and flat: mean below {DARK:.3f} and deviation below {FLAT_DARK:.3f}. "
    f"Under-exposed, bright and flat: mean over {BRIGHT:.3f} and deviation below "
    f"{FLAT_BRIGHT:.3f}. Correct: the rest. The limits lie halfway between the paper's badly "
    "exposed examples and its correct one."
).replace("%", " %")


@dataclass(frozen=True)
class GrayLevels:
    """Statistics of one image's gray levels, from 0 (black) to 1 (white).

    Attributes:
        mean, std: of all pixels.
        padding: share of the image covered by plain lines along its edges.
        inside_mean, inside_std: of the pixels outside the padding; NaN if there are none.
    """

    mean: float
    std: float
    padding: float
    inside_mean: float
    inside_std: float

    @property
    def exposure(self) -> Exposure:
        """The class of this image by the `RULE`."""
        if self.padding >= PADDED:
            return Exposure.PADDED
        if self.inside_mean < DARK and self.inside_std < FLAT_DARK:
            return Exposure.OVER
        if self.inside_mean > BRIGHT and self.inside_std < FLAT_BRIGHT:
            return Exposure.UNDER
        return Exposure.CORRECT


def gray_levels(image: Gray) -> GrayLevels:
    """Measure an image, uint8 (H, W)."""
    inside = _without_padding(image)
    mean, std = _moments(image)
    return GrayLevels(mean, std, 1 - inside.size / image.size, *_moments(inside))


def histogram(image: Gray, *, bins: int = 64) -> npt.NDArray[np.float64]:
    """Share of the pixels in each of `bins` equal ranges of gray: (bins,)."""
    counts = np.bincount(image.ravel(), minlength=256).reshape(bins, -1).sum(axis=1)
    shares: npt.NDArray[np.float64] = counts / image.size
    return shares


def _moments(image: Gray) -> tuple[float, float]:
    if image.size == 0:
        return float("nan"), float("nan")
    counts = np.bincount(image.ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = float(counts @ levels / image.size)
    return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / image.size))


def _without_padding(image: Gray) -> Gray:
    top, bottom = _plain_lines(image), _plain_lines(image[::-1])
    left, right = _plain_lines(image.T), _plain_lines(image.T[::-1])
    height, width = image.shape
    return image[top : max(top, height - bottom), left : max(left, width - right)]


def _plain_lines(lines: Gray) -> int:
    """Number of plain lines before the first one that is not."""
    for count, line in enumerate(lines):
        middle = float(np.median(line))
        if NEARLY_BLACK < middle < NEARLY_WHITE:
            return count
        if np.mean(np.abs(line - middle) <= ALIKE) < ALIKE_SHARE:
            return count
    return len(lines)


ALL = "all"
AGE_STEP = 5  # years
UNKNOWN = "unknown"
SEXES = {"F": "female", "M": "male", "": UNKNOWN}
VIEWS = {"PA": "PA", "AP": "AP", "": UNKNOWN}
MOST_IMAGES = 11  # images of a patient; patients with more are counted in the same bin


@dataclass(frozen=True)
class Numbers:
    """What is counted of a data set.

    Attributes:
        counts: images, patients and positives (rows) by side (columns) and in total, as of
            `split_table`.
        sides: those that the split has; empty without a split.
        together: int (F, F), images with both of two findings; each one's images on the diagonal.
        ages: images by age, from 0 in steps of `AGE_STEP` years (rows), and sex (columns).
        ages_unknown: images without an age.
        views: images by view (rows) and sex (columns).
        images_of_patients: patients by their number of images, from 1 to `MOST_IMAGES` or more.
    """

    counts: pd.DataFrame
    sides: tuple[str, ...]
    together: npt.NDArray[np.int64]
    ages: pd.DataFrame
    ages_unknown: int
    views: pd.DataFrame
    images_of_patients: npt.NDArray[np.int64]

    @property
    def images(self) -> int:
        return int(self.counts[ALL].loc[IMAGES])


def count(manifest: Manifest, split: Split | None) -> Numbers:
    """Count all that the figures show."""
    table = manifest.table
    labels = table[list(manifest.findings)].to_numpy(dtype=np.int64)
    known = table[table["age"].notna()]
    per_patient = table["patient_id"].value_counts().clip(upper=MOST_IMAGES).to_numpy()
    return Numbers(
        counts=_counts(manifest, split),
        sides=tuple(side for side in SIDES if split and split.sides[side]),
        together=labels.T @ labels,
        ages=_by_sex(known, known["age"] // AGE_STEP * AGE_STEP),
        ages_unknown=len(table) - len(known),
        views=_by_sex(table, table["view"].map(VIEWS)),
        images_of_patients=np.bincount(per_patient, minlength=MOST_IMAGES + 1)[1:],
    )


def _counts(manifest: Manifest, split: Split | None) -> pd.DataFrame:
    """As `split_table`, except that `all` also counts rows that are on no side."""
    everything = Split(ALL, {"train": tuple(manifest.table["image"]), "val": (), "test": ()})
    whole = split_table(manifest, everything)[[ALL]]
    return whole if split is None else split_table(manifest, split)[[*SIDES]].join(whole)


def _by_sex(rows: pd.DataFrame, values: "pd.Series[float] | pd.Series[str]") -> pd.DataFrame:
    """Images by value and sex; sexes that nobody has are left out."""
    counts = pd.crosstab(values, rows["sex"].map(SEXES))
    return counts[[sex for sex in SEXES.values() if sex in counts]]


def most_frequent(numbers: Numbers, *, at_most: int) -> list[str]:
    """The findings by how many images have them, the most frequent first."""
    counts = numbers.counts[ALL].drop([PATIENTS, IMAGES, NO_FINDING])
    return counts.sort_values(ascending=False, kind="stable").index[:at_most].tolist()


@dataclass(frozen=True)
class Read:
    """The gray levels of images by their names, and why others have none."""

    levels: Mapping[str, GrayLevels]
    unreadable: Mapping[str, str]

    def of(self, exposure: Exposure) -> list[str]:
        """The images of this exposure."""
        return [name for name, one in self.levels.items() if one.exposure == exposure]

    def as_csv(self) -> str:
        """A row an image."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        titles = ("mean", "std", "padding", "inside_mean", "inside_std")
        writer.writerow(("image", *titles, "exposure", "error"))
        for name, one in self.levels.items():
            values = [f"{getattr(one, title):.4f}" for title in titles]
            writer.writerow((name, *values, one.exposure.value, ""))
        for name, error in self.unreadable.items():
            writer.writerow((name, *[""] * len(titles), "", error))
        return text.getvalue()


def read_levels(path_of: Mapping[str, str], *, jobs: int, progress: Display) -> Read:
    """Measure images, given as name -> file, in `jobs` threads."""
    levels: dict[str, GrayLevels] = {}
    unreadable: dict[str, str] = {}
    with progress("measuring images", len(path_of)) as advance:
        found = in_threads(_measured, path_of.values(), jobs=jobs)
        for name, one in zip(path_of, found, strict=True):
            if isinstance(one, str):
                unreadable[name] = one
            else:
                levels[name] = one
            advance(1)
    return Read(levels, unreadable)


def _measured(path: str) -> GrayLevels | str:
    """The image's levels, or why it has none."""
    try:
        return gray_levels(decode_gray(path))
    except UnreadableImageError as error:
        return str(error).removeprefix(f"{path}: ")
