"""Grid sweeper: Hydra's own, which also goes on with the folder of a sweep that was cut off.

    python train.py -m model=resnet18,resnet50 hydra.sweep.dir=runs/models

The same command again leaves out the jobs that have finished, by their overrides, resumes those
that have a checkpoint, and begins the others.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from hydra_plugins.xray_sweepers._jobs import (
    Job,
    decided,
    gone_on_with,
    key_of,
    launch,
    parsed,
    save_configuration,
    split_by_kind,
    sweep_folder,
    text_of,
)
from xray_lightning.errors import UserError
from xray_lightning.runs.sweep import Claims, Sweep, by_key, read_trials
from xray_lightning.training.launch import given_command
from xray_lightning.training.strategies import detect

log = logging.getLogger("xray")


class GridSweeper(BasicSweeper):
    """Every combination of the values, each once, however often the command is begun again."""

    def sweep(self, arguments: list[str]) -> Any:
        if self.config is None or self.launcher is None:
            raise RuntimeError("sweep comes after setup")
        config, folder = self.config, sweep_folder(self.config)
        overrides = parsed(arguments, self.params, context=self.hydra_context)
        (combinations,) = self.split_arguments(overrides, None)
        self.validate_batch_is_legal(combinations)
        world = detect()

        def decide() -> list[tuple[int, list[str]]]:
            self._claims = Claims(folder)
            if not self._claims.take("grid"):
                raise UserError(
                    f"another train.py works on the sweep in {folder}; wait for it, or give this "
                    "one a folder of its own: hydra.sweep.dir=FOLDER"
                )
            save_configuration(config, folder)
            fixed, swept = split_by_kind(overrides)
            space = {key_of(one): text_of(one) for one in swept}
            command = given_command()
            Sweep("grid", command, len(combinations), tuple(fixed), space, {}).write(folder)
            return pending(folder, combinations, report=config.report)

        jobs = [Job(number, texts) for number, texts in decided(world, decide)]
        size = self.max_batch_size or max(1, len(jobs))
        for start in range(0, len(jobs), size):
            launch(self.launcher, jobs[start : start + size])
        if world.rank == 0 and len(combinations) > 1:
            log.info("sweep:   xray report %s", folder)


def pending(
    folder: Path, combinations: Sequence[list[str]], *, report: bool
) -> list[tuple[int, list[str]]]:
    """The jobs that have not finished, by number; each goes on in the folder that it had.

    One that was killed after its end gets the pages that it lacks.
    """
    trials = read_trials(folder)
    taken = {trial.number for trial in trials}
    jobs = []
    for place, overrides in enumerate(combinations):
        own = by_key(overrides)
        earlier = next((trial for trial in trials if trial.overrides == own), None)
        if earlier is None:
            number = place if place not in taken else max(taken) + 1
            taken.add(number)
            jobs.append((number, overrides))
        elif earlier.outcome.status != "finished":
            jobs.append((earlier.number, gone_on_with(overrides, earlier.folder)))
        else:
            from xray_lightning.deploy.model_card.card import write_pages  # seconds, with torch

            write_pages(earlier.folder, report=report, missing=True)
    if trials:
        done = len(combinations) - len(jobs)
        log.info("%s: %d of %d jobs have finished", folder, done, len(combinations))
    return sorted(jobs)
