"""`xray compare`: two runs' test predictions, read and set side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError, check_whole
from xray_lightning.evaluation.comparison import Comparison, comparable, compare
from xray_lightning.evaluation.prediction_file import read_predictions
from xray_lightning.evaluation.record import Run
from xray_lightning.evaluation.runs import DamagedResultsError, read_run
from xray_lightning.training.results import FILE_NAME as RESULTS
from xray_lightning.training.results import predictions_name

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
        runs = {"first": self.first, "second": self.second}
        scores = {"first": self.comparison.first, "second": self.comparison.second}
        return {
            "schema_version": SCHEMA_VERSION,
            **{
                key: {"folder": str(run.folder), "name": run.name, "seed": run.seed}
                | vars(scores[key])
                for key, run in runs.items()
            },
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
