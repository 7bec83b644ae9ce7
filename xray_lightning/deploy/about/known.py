"""What is known of a model: its checkpoint, the run that made it, and whether these two agree."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xray_lightning.deploy.about.checkpoint import CheckpointFacts, facts_of
from xray_lightning.deploy.about.exported import facts_of_exported
from xray_lightning.deploy.about.paths import last_parts
from xray_lightning.deploy.model import EXPORTED
from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.record import Run, TestMetrics
from xray_lightning.evaluation.report.page import words
from xray_lightning.evaluation.runs import DamagedResultsError, read_run
from xray_lightning.models.checkpoint import BEST, LAST
from xray_lightning.training.results import FILE_NAME as RESULTS


@dataclass(frozen=True)
class Known:
    """All that is known of one model; at least one of checkpoint and run is there.

    Attributes:
        checkpoint: what the file says of itself; None where a run has none.
        run: the run that has trained or tested the checkpoint; None where it is not known.
        results: the run's results.json as it is; empty where there is no run.
        link: how it is known that the two belong together, or why one of them is missing.
        untested: why there are no figures of a test; None where there are.
    """

    checkpoint: CheckpointFacts | None
    run: Run | None
    results: Mapping[str, Any]
    link: str
    untested: str | None

    @property
    def test(self) -> TestMetrics | None:
        """The figures of this very checkpoint."""
        return None if self.run is None or self.untested is not None else self.run.test

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """The same as they stand in results.json."""
        return None if self.test is None else self.results["metrics"]["test"]

    @property
    def findings(self) -> tuple[str, ...]:
        """What the model tells of; empty where neither file says it."""
        if self.checkpoint is not None:
            return self.checkpoint.findings
        return () if self.run is None else self.run.findings

    @property
    def image_size(self) -> int | None:
        """The side of the images inside the model, in pixels."""
        if self.checkpoint is not None:
            return self.checkpoint.image_size
        size = self.run.settings.get("data.image_size") if self.run else None
        return size if isinstance(size, int) else None

    @property
    def normalize(self) -> str | None:
        """How its pixels are normalised."""
        if self.checkpoint is not None:
            return self.checkpoint.normalize
        value = self.run.settings.get("data.normalize") if self.run else None
        return None if value is None else str(value)

    @property
    def tested_only(self) -> bool:
        """Whether the run has tested a checkpoint that another run has trained."""
        return self.run is not None and self.run.settings.get("ckpt_path") is not None

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, that was the best on validation; None where it is not known."""
        return None if self.run is None or self.tested_only else self.run.best_epoch


def look(path: Path) -> Known:
    """What is known of a checkpoint, or of the model of a run folder.

    Raises:
        UserError: there is nothing, or it cannot be read.
    """
    if path.name == RESULTS:
        path = path.parent
    if not path.is_dir():
        return of_checkpoint(path)
    if (path / RESULTS).is_file():
        return of_run(path)
    if (alone := path / "checkpoints" / BEST).is_file():
        return of_checkpoint(alone)
    raise UserError(f"{path} is no run folder: it has no {RESULTS}; give one, or a .ckpt file")


def of_run(folder: Path) -> Known:
    """The model of a run: its best checkpoint or else its last, or the one that it has tested.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
    """
    try:
        run, results = _read(folder)
    except DamagedResultsError as error:
        raise UserError(printable(f"{folder / RESULTS}: {error}")) from error
    named = run.settings.get("ckpt_path")
    path = _kept(folder, tested=run.test is not None) if named is None else Path(str(named))
    if not path.is_file():
        missing = f"checkpoints/{BEST}" if named is None else last_parts(str(named))
        untested = None if run.test else words.no_test(run)
        return Known(None, run, results, f"No checkpoint: {missing} is not there.", untested)
    return _joined(facts_of(path), run, results)


def of_checkpoint(path: Path) -> Known:
    """A checkpoint, and its run where the file lies in RUN/checkpoints and is of that run.

    Raises:
        UserError: the checkpoint, or the exported model, cannot be read.
    """
    if path.suffix.lower() == EXPORTED:
        return _alone(
            facts_of_exported(path), "An exported model names no run: ask its checkpoint."
        )
    facts = facts_of(path)
    folder = path.absolute().parent.parent
    if not (folder / RESULTS).is_file():
        told = f"the folder above its own has no {RESULTS}"
        return _alone(facts, f"The checkpoint lies in no run folder: {told}.")
    try:
        run, results = _read(folder)
    except DamagedResultsError as error:
        return _alone(facts, printable(f"The run's {RESULTS} cannot be read: {error}."))
    known = _joined(facts, run, results)
    if known.checkpoint is None:  # another run's
        return _alone(facts, known.link)
    return known


def _kept(folder: Path, *, tested: bool) -> Path:
    """The checkpoint that a run is known by: the best, or before the first is kept, the last."""
    best, last = (folder / "checkpoints" / name for name in (BEST, LAST))
    return last if not tested and last.is_file() and not best.is_file() else best


def _read(folder: Path) -> tuple[Run, dict[str, Any]]:
    run = read_run(folder)
    return run, json.loads((folder / RESULTS).read_text(encoding="utf-8"))


def _alone(facts: CheckpointFacts, why: str) -> Known:
    return Known(facts, None, {}, why, f"Metrics are not known. {why}")


def _joined(facts: CheckpointFacts, run: Run, results: Mapping[str, Any]) -> Known:
    """Both, where nothing says that the checkpoint is another run's; else the run alone."""
    other = _differing(facts, run)
    if other:
        link = f"The checkpoint is not of the run beside it: {'; '.join(other)}."
        return Known(None, run, results, link, None if run.test else words.no_test(run))
    alike = "Split, model and findings of the checkpoint are those of the run"
    known = Known(facts, run, results, f"{alike}; no other sign tells.", None)
    if run.test is None:
        return replace(known, untested=words.no_test(run))
    best = known.best_epoch
    if best is not None and facts.epoch is not None and facts.epoch != best:
        reason = f"The run tested the checkpoint of epoch {best}; this one is of {facts.epoch}"
        return replace(known, untested=f"{reason}.")
    if run.test.operating_point is not None:
        if facts.points is None:
            reason = "The run's test is at operating points, and this checkpoint has none"
            return replace(known, untested=f"{reason}: it is not the one that was tested.")
        return replace(known, link=f"{alike}, and so is every operating point, to its last digit.")
    if best is not None and facts.epoch == best:
        return replace(known, link=f"{alike}, and its epoch is the run's best.")
    return known


def _differing(facts: CheckpointFacts, run: Run) -> list[str]:
    """In what a checkpoint and a run contradict each other; what one does not say is nothing."""
    hidden = run.settings.get("model.hidden")
    pairs = [
        ("split", facts.split_sha256, run.split_sha256),
        ("model", facts.arch, run.settings.get("model.arch")),
        ("model", None if facts.arch is None else list(facts.hidden), hidden),
        ("image size", facts.image_size, run.settings.get("data.image_size")),
        ("normalisation", facts.normalize, run.settings.get("data.normalize")),
    ]
    found = [
        f"another {name}"
        for name, own, theirs in pairs
        if own is not None and theirs is not None and own != theirs
    ]
    # A test has them all, in order; counts of the data may leave some out.
    alike = facts.findings == run.findings if run.test else {*run.findings} <= {*facts.findings}
    if not alike:
        found.append("other findings")
    if facts.points is not None and run.test is not None and run.test.operating_point is not None:
        cuts = {row.finding: row.threshold for row in run.test.per_finding}
        if facts.points.cuts != cuts:
            found.append("other operating points")
    return list(dict.fromkeys(found))
