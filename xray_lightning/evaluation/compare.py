"""Paired comparison of predictions of the same images: two runs, or an ensemble and its members.

Both sets are scored on the same resamples of the patients, and the difference is taken within each
resample. A resample that is hard for one set is hard for the other, so that the interval of the
difference is usually far narrower than those of the two scores.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd

from xray_lightning.errors import UserError, check_whole
from xray_lightning.evaluation.bootstrap import NAN, Estimate
from xray_lightning.evaluation.resampled_scores import SCORES, Resampled, TableScores
from xray_lightning.findings import differing
from xray_lightning.runs.predictions import LABEL, findings_of, read_predictions
from xray_lightning.runs.results_json import FILE_NAME as RESULTS
from xray_lightning.runs.results_json import FREE_KEYS, leaving_out, predictions_name
from xray_lightning.runs.run_folder import DamagedResultsError, Run, read_run


@dataclass(frozen=True)
class Comparison:
    """Second minus first, over the same images; `findings` are those in the macro averages."""

    images: int
    patients: int
    findings: tuple[str, ...]
    auroc_macro: Estimate
    average_precision_macro: Estimate
    label_accuracy: Estimate
    brier_macro: Estimate
    per_finding: dict[str, Estimate]  # AUROC
    first: TableScores
    second: TableScores

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "patients": self.patients,
            "findings": list(self.findings),
            **{name: getattr(self, name).to_plain() for name in SCORES},
            "per_finding": {name: one.to_plain() for name, one in self.per_finding.items()},
        }


def compare(
    first: pd.DataFrame, second: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Second minus first, with intervals by a paired bootstrap over patients.

    Args:
        first, second: predictions of the same images, in whatever order; see `Evaluator`.
        resamples: of the patients; 0 for no intervals.
        seed: of the resamples.

    Raises:
        UserError: the tables differ in images, findings, labels or patients, or repeat an image.
    """
    tables = aligned([first, second])
    before, after = (Resampled.of(table, resamples=resamples, seed=seed) for table in tables)
    return _between(before, after)


def gain(
    members: Sequence[pd.DataFrame], ensemble: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> tuple[Estimate, list[Comparison]]:
    """What the ensemble's predictions gain over its members', paired as in `compare`.

    Returns:
        The ensemble's macro AUROC minus the members' mean, and its comparison with each member.

    Raises:
        UserError: as `compare`.
    """
    tables = aligned([*members, ensemble])
    *before, after = (Resampled.of(table, resamples=resamples, seed=seed) for table in tables)
    defined = [value for one in before if not np.isnan(value := one.plain["auroc_macro"])]
    over_mean = Estimate.of(
        after.plain["auroc_macro"] - float(np.mean(defined)) if defined else NAN,
        after.drawn["auroc_macro"] - np.mean([one.drawn["auroc_macro"] for one in before], axis=0),
        undefined=after.undefined["auroc_macro"],
        few=after.few["auroc_macro"],
    )
    return over_mean, [_between(one, after) for one in before]


def comparable(first: Run, second: Run) -> None:
    """Refuse runs that were not tested on the same images.

    Raises:
        UserError: the splits differ or are not recorded, or the numbers of test images differ.
    """
    if first.split_sha256 is None or first.split_sha256 != second.split_sha256:
        one, other = (
            f"{run.split or 'unknown'} ({(run.split_sha256 or 'no hash')[:7]})"
            for run in (first, second)
        )
        raise UserError(
            f"{first.folder} and {second.folder} were tested on different splits: "
            f"{one} and {other}; compare runs of the same split"
        )
    counts = [run.images.get("test") for run in (first, second)]
    if counts[0] != counts[1]:
        raise UserError(
            f"{first.folder} and {second.folder} were tested on {counts[0]} and {counts[1]} images"
        )


def aligned(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables, checked to hold the same images, and each sorted by the images' names.

    Raises:
        UserError: tables that are not of the same images, labels and patients.
    """
    sorted_ = []
    for place, table in enumerate(tables, start=1):
        if twice := int(table["image"].duplicated().sum()):
            raise UserError(
                f"{twice} of {len(table)} images are there twice in predictions {place}; each "
                "must count once"
            )
        sorted_.append(table.sort_values("image", ignore_index=True))
    first = sorted_[0]
    findings = findings_of(first.columns, what="predictions")
    labels = [f"{LABEL}{finding}" for finding in findings]
    for table in sorted_[1:]:
        others = findings_of(table.columns, what="predictions")
        if others != findings:
            raise UserError(
                f"the predictions are of different findings: {differing(others, findings)}"
            )
        one, other = set(first["image"]), set(table["image"])
        if one != other:
            raise UserError(
                f"the predictions are of different images: {len(one & other)} in both, "
                f"{len(one - other)} in the first alone, {len(other - one)} in the second alone"
            )
        for what, columns in (("labels", labels), ("patients", ["patient_id"])):
            differ = (first[columns].to_numpy() != table[columns].to_numpy()).any(axis=1)
            if differ.any():
                raise UserError(
                    f"the predictions differ in the {what} of {int(differ.sum())} of {len(first)} "
                    "images: they are of different data"
                )
    return sorted_


def _between(before: Resampled, after: Resampled) -> Comparison:
    def difference(name: str) -> Estimate:
        return Estimate.of(
            after.plain[name] - before.plain[name],
            after.drawn[name] - before.drawn[name],
            undefined=after.undefined[name],
            few=after.few[name],
        )

    return Comparison(
        images=after.images,
        patients=after.patients,
        findings=after.findings,
        **{name: difference(name) for name in SCORES},
        per_finding={finding: difference(finding) for finding in after.scores.per_finding},
        first=before.scores,
        second=after.scores,
    )


SCHEMA_VERSION = 1
PREDICTIONS = predictions_name("test")


@dataclass(frozen=True)
class RunPair:
    """Two runs of one split, and how they differ."""

    first: Run
    second: Run
    comparison: Comparison
    resamples: int
    seed: int

    @property
    def names(self) -> tuple[str, str]:
        """What each run is called: its folder, its name and its seed."""
        first, second = (
            f"{run.folder} ({run.name}, seed {run.seed})" for run in (self.first, self.second)
        )
        return first, second

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        scores = (self.comparison.first, self.comparison.second)
        first, second = (
            {"folder": str(run.folder), "name": run.name, "seed": run.seed} | vars(one)
            for run, one in zip((self.first, self.second), scores, strict=True)
        )
        return {
            "schema_version": SCHEMA_VERSION,
            "first": first,
            "second": second,
            "split": self.first.split,
            "split_sha256": self.first.split_sha256,
            "bootstrap": {"resamples": self.resamples, "seed": self.seed},
            "second_minus_first": self.comparison.to_plain(),
        }


def compare_runs(first: Path, second: Path, *, resamples: int = 1000, seed: int = 0) -> RunPair:
    """Compare two run folders on their test images.

    Raises:
        UserError: a folder that is no run's, one run twice, other splits or images, or predictions
            that cannot be read.
    """
    check_whole("--resamples", resamples, least=0)
    check_whole("--seed", seed, least=0)
    if first.resolve() == second.resolve():
        raise UserError(f"{first} and {second} are the same run; give two")
    one, other = _run(first), _run(second)
    comparable(one, other)
    before, after = (read_predictions(run.folder / PREDICTIONS) for run in (one, other))
    comparison = compare(before, after, resamples=resamples, seed=seed)
    return RunPair(one, other, comparison, resamples, seed)


def _run(folder: Path) -> Run:
    folder = folder.parent if folder.name == RESULTS else folder
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}; name a run folder")
    if not (folder / RESULTS).exists():
        raise UserError(f"no {RESULTS} in {folder}; name a run folder")
    try:
        run = read_run(folder)
    except DamagedResultsError as error:
        raise UserError(f"{folder / RESULTS}: {error}") from error
    if run.status != "finished":
        raise UserError(f"{folder} is {run.status}; only runs that have finished are compared")
    return run


# Settings that may differ between runs of one recipe: names, seeds, and where a run takes place.
# `FREE_KEYS`, which a resumed run may change, include the Trainer and callbacks; these belong to a
# recipe, as they set the epochs, the precision and early stopping.
RECIPE_ANYWAY = ("callbacks", "trainer")
FREE = (
    *(key for key in FREE_KEYS if key not in RECIPE_ANYWAY),
    *("name", "seed", "data.seed", "augment.seed", "mixing.seed", "trainer.accelerator"),
    *("callbacks.best.dirpath", "callbacks.last.path"),
)


@dataclass(frozen=True)
class Spread:
    """A score over several runs; `spread` is the sample standard deviation, None for one run."""

    mean: float
    spread: float | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class SeedSummary:
    """The test scores of runs of one recipe on one split.

    Attributes:
        name: that of the first run.
        seeds: of each run.
        auroc_macro, average_precision_macro, label_accuracy: None where a run lacks the score.
    """

    name: str
    seeds: tuple[int | None, ...]
    auroc_macro: Spread | None
    average_precision_macro: Spread | None
    label_accuracy: Spread | None


def of_one_recipe(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs grouped by recipe and split; the groups are in the order of their first runs.

    Runs that are not finished, that have no test, or that only tested another run's checkpoint are
    left out. A group may hold a single run.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        stages = run.settings.get("stages", ["fit", "test"])
        trained = "fit" in ([stages] if isinstance(stages, str) else stages)
        if run.status == "finished" and run.test is not None and trained:
            groups.setdefault(_recipe(run), []).append(run)
    return list(groups.values())


def summarise_seeds(runs: Sequence[Run]) -> list[SeedSummary]:
    """The scores of each recipe's runs, see `of_one_recipe`."""
    return [
        SeedSummary(
            group[0].name,
            tuple(run.seed for run in group),
            **{name: _spread([getattr(run.test, name) for run in group]) for name in SCORES[:3]},
        )
        for group in of_one_recipe(runs)
    ]


def _recipe(run: Run) -> str:
    """A key that is equal for runs of the same recipe on the same split."""
    kept = leaving_out(run.settings, FREE)
    return json.dumps([run.split_sha256, kept], sort_keys=True, default=str)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, min(known), max(known))
