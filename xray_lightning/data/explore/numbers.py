"""What a data set's table says: findings by side and with each other, and who was imaged."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.manifest import Manifest
from xray_lightning.data.split_table import IMAGES, PATIENTS, split_table
from xray_lightning.data.splits import SIDES, Split
from xray_lightning.findings import NO_FINDING

ALL = "all"
AGE_STEP = 5  # years
UNKNOWN = "unknown"
SEXES = {"F": "female", "M": "male", "": UNKNOWN}
VIEWS = {"PA": "PA", "AP": "AP", "": UNKNOWN}
MOST_IMAGES = 11  # of a patient; more are counted with these


@dataclass(frozen=True)
class Numbers:
    """What is counted of a data set.

    Attributes:
        counts: images, patients and positives (rows) by side (columns), and of all; `split_table`.
        sides: those that the split has; empty without a split.
        together: int (F, F), images with both of two findings; their own number on the diagonal.
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
        return int(self.counts[ALL].to_numpy()[list(self.counts.index).index(IMAGES)])


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
    """As `split_table`, but that `all` counts every row, on a side or not."""
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
