"""explore.html: the figures with the numbers behind them, in one file that fetches nothing."""

from dataclasses import dataclass
from pathlib import Path

from xray_lightning.data.explore.gray import RULE, Exposure
from xray_lightning.data.explore.numbers import Numbers
from xray_lightning.data.explore.reading import Read
from xray_lightning.data.manifest import Manifest
from xray_lightning.data.split_table import IMAGES, PATIENTS
from xray_lightning.data.splits import Split
from xray_lightning.page.frame import data_uri, rendered

MOST_NAMED = 20  # unreadable images that are told by name


@dataclass(frozen=True)
class Figure:
    """A PNG, what it is called and what it shows."""

    name: str
    caption: str
    content: bytes

    @property
    def file(self) -> str:
        return f"{self.name}.png"

    @property
    def uri(self) -> str:
        return data_uri(self.content, kind="image/png")


def explore_page(
    manifest: Manifest,
    split: Split | None,
    *,
    numbers: Numbers,
    read: Read,
    figures: list[Figure],
    missing: int,
    seed: int,
) -> str:
    """The page as HTML."""
    counts = numbers.counts
    exposures = {kind.value: len(read.of(kind)) for kind in Exposure}
    return rendered(
        "explore.html.jinja",
        folder=Path(__file__).parent / "templates",
        title=manifest.root.resolve().name or "data set",
        images=numbers.images,
        patients=manifest.table["patient_id"].nunique(),
        missing=missing,
        split=split,
        seed=seed,
        counts=[(name, *row) for name, row in zip(counts.index, counts.to_numpy(), strict=True)],
        sides=list(counts.columns),
        no_shares=(IMAGES, PATIENTS),
        totals=counts.to_numpy()[list(counts.index).index(IMAGES)].tolist(),
        measured=len(read.levels),
        exposures=exposures,
        rule=RULE,
        unreadable=list(read.unreadable.items())[:MOST_NAMED],
        unreadable_count=len(read.unreadable),
        dropped=manifest.dropped,
        figures={figure.name: figure for figure in figures},
    )
