"""Runs of one recipe that differ in their seed alone, as mean and spread."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from xray_lightning.evaluation.record import Run
from xray_lightning.training.results import FREE_KEYS

# What may differ between runs of one recipe: what it is called, its draws of random numbers, and
# where it runs. A resumed run may change its Trainer and callbacks, too; but the epochs, the
# precision and early stopping are part of a recipe.
RECIPE_ANYWAY = ("callbacks", "trainer")
FREE = (
    *(key for key in FREE_KEYS if key not in RECIPE_ANYWAY),
    *("name", "seed", "data.seed", "augment.seed", "trainer.accelerator"),
    *("callbacks.best.dirpath", "callbacks.last.path"),
)


@dataclass(frozen=True)
class Spread:
    """A score over several runs; `spread` is the sample standard deviation, None of one run."""

    mean: float
    spread: float | None
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        spread = stdev(values) if len(values) > 1 else None
        return cls(fmean(values), spread, min(values), max(values))


@dataclass(frozen=True)
class SeedSummary:
    """The test scores of runs of one recipe on one split.

    Attributes:
        name: that of the first run.
        runs: how many there are.
        seeds: theirs, in the order of `folders`.
        auroc_macro, average_precision_macro, label_accuracy: None where a run lacks the score.
    """

    name: str
    runs: int
    seeds: tuple[int | None, ...]
    folders: tuple[Path, ...]
    auroc_macro: Spread | None
    average_precision_macro: Spread | None
    label_accuracy: Spread | None


def summarise_seeds(runs: Sequence[Run]) -> list[SeedSummary]:
    """Group runs of one recipe on one split, in the order of the first of each.

    Runs that are not finished, that have no test, or that only tested another run's checkpoint are
    left out. A group may hold a single run.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.status == "finished" and run.test is not None and _trained(run):
            groups.setdefault(_recipe(run), []).append(run)
    return [_summary(group) for group in groups.values()]


def _trained(run: Run) -> bool:
    stages = run.settings.get("stages", ["fit", "test"])
    return "fit" in ([stages] if isinstance(stages, str) else stages)


def _recipe(run: Run) -> str:
    """The same text for runs of the same recipe on the same split."""
    kept = {
        key: value
        for key, value in run.settings.items()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    }
    return json.dumps([run.split_sha256, kept], sort_keys=True, default=str)


def _summary(group: Sequence[Run]) -> SeedSummary:
    tests = [run.test for run in group if run.test is not None]
    return SeedSummary(
        name=group[0].name,
        runs=len(group),
        seeds=tuple(run.seed for run in group),
        folders=tuple(run.folder for run in group),
        auroc_macro=_spread([test.auroc for test in tests]),
        average_precision_macro=_spread([test.average_precision for test in tests]),
        label_accuracy=_spread([test.label_accuracy for test in tests]),
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if len(known) == len(values) else None
