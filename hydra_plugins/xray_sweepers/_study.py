"""Study of a sweep as one of its workers conducts it: which trial is next, and what came of it."""

import logging
import math
import socket
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydra_plugins.xray_sweepers._jobs import gone_on_with, key_of, text_of
from hydra_plugins.xray_sweepers._search_space import as_text, distribution, in_grammar, suggested
from xray_lightning.errors import RunFailedError, UserError, one_line
from xray_lightning.runs.sweep import JOURNAL, PRUNED, Claims, Outcome, Sweep
from xray_lightning.training.launch import given_command

log = logging.getLogger("xray")

HANDOVER_SECONDS = 60.0  # within which another host's worker signs a trial that it has begun


class ConductedStudy:
    """The study, and the trials of it that this process conducts."""

    def __init__(
        self,
        options: Mapping[str, Any],
        folder: Path,
        *,
        fixed: Sequence[str],
        swept: Sequence[Override],
        report: bool,
    ) -> None:
        self.folder = folder
        self._report = report
        self._options, self._fixed = options, fixed
        self._space = space = {key_of(one): one for one in swept}
        self._distributions = {key: distribution(key, one) for key, one in space.items()}
        self._here = f"{socket.gethostname()}:{folder.resolve()}"
        self._storage_name = options["storage"] or str(folder.resolve() / JOURNAL)
        self._name = options["study_name"] or folder.resolve().name
        self._claims = Claims(folder)
        self._left: list[int] = []  # interrupted ones, which only another start goes on with
        self._trials = options["n_trials"]

    def examples(self) -> list[list[str]]:
        """Overrides that hold every choice of the search space once, to see that all compose."""
        from optuna.distributions import CategoricalDistribution

        choices = {
            key: list(one.choices) if isinstance(one, CategoricalDistribution) else [one.low]
            for key, one in self._distributions.items()
        }
        first = {key: values[0] for key, values in choices.items()}
        others = [first | {key: value} for key, values in choices.items() for value in values[1:]]
        return [self._overrides(values) for values in (first, *others)]

    def open(self) -> None:
        """Open or create the study, and say how far it is."""
        import optuna
        from optuna.distributions import distribution_to_json

        from xray_lightning.training.optuna_study import open_storage

        written = Sweep(
            kind="optuna",
            command=given_command(),
            trials=self._trials,
            fixed=tuple(self._fixed),
            space={key: text_of(one) for key, one in self._space.items()},
            distributions={
                key: distribution_to_json(one) for key, one in self._distributions.items()
            },
            study=self._name,
            storage=self._options["storage"],
        )
        with self._claims.alone():
            written.refuse_another(self.folder)
            self._storage = open_storage(self._storage_name)
            self._study = optuna.create_study(
                study_name=self._name,
                storage=self._storage,
                direction="maximize",
                load_if_exists=True,
                sampler=self._sampler(0),
                pruner=self._pruner(),
            )
            if isinstance(self._study.sampler, optuna.samplers.BruteForceSampler):
                self._trials = min(self._trials, self._combinations())
            written.write(self.folder)
        trials = self._study.get_trials(deepcopy=False)
        done = sum(one.state.is_finished() for one in trials)
        if trials:
            log.info("%s: %d of %d trials are done", self.folder, done, self._trials)
        else:
            log.info("%s: %d trials; the same command goes on with it", self.folder, self._trials)

    def _combinations(self) -> int:
        sizes = []
        for key, one in self._distributions.items():
            if hasattr(one, "choices"):
                sizes.append(len(one.choices))
            elif one.step is not None:
                sizes.append(round((one.high - one.low) / one.step) + 1)
            else:
                raise UserError(
                    f"hydra/sweeper/sampler=grid: {key} has no steps; give it a range or choices"
                )
        return math.prod(sizes)

    def _sampler(self, number: int) -> Any:
        """The sampler that draws a trial: of its own seed, so that a kill changes no later trial.

        One that goes on from another's draws, as quasi-random sequences do, keeps the seed.
        """
        import optuna

        seed, node = self._options["seed"], self._options["sampler"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = _built(node, "sampler", seed=seed)
            if seed is None or isinstance(sampler, optuna.samplers.QMCSampler):
                return sampler
            return _built(node, "sampler", seed=seed + number)

    def _pruner(self) -> Any:
        import optuna

        node = self._options["pruner"]
        return _built(node, "pruner") if node else optuna.pruners.NopPruner()

    def _overrides(self, values: Mapping[str, Any]) -> list[str]:
        own = [
            f"{one.get_key_element()}={as_text(values[key])}" for key, one in self._space.items()
        ]
        return [*self._fixed, *own]

    def next_jobs(self) -> list[tuple[int, list[str]]]:
        """Trials to launch now: those that a kill has cut off, then new ones; none at the end."""
        import optuna

        jobs: list[tuple[int, list[str]]] = []
        with self._claims.alone():
            for frozen in self._study.get_trials(deepcopy=False):
                if len(jobs) < self._options["n_jobs"] and self._taken_over(frozen):
                    jobs += self._gone_on_with(frozen.number)
            while len(jobs) < self._options["n_jobs"]:
                number = len(self._study.get_trials(deepcopy=False))
                if number >= self._trials:
                    break
                self._study.sampler = self._sampler(number)
                trial = self._study.ask()
                if trial.number >= self._trials:  # another host was faster
                    self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    break
                self._claims.take(str(trial.number))
                jobs.append(self._job(trial))
        return jobs

    def _taken_over(self, frozen: Any) -> bool:
        """Whether a trial that runs is one of this folder's whose worker was killed."""
        import optuna

        number, running = frozen.number, optuna.trial.TrialState.RUNNING
        if frozen.state != running or number >= self._trials or number in self._left:
            return False
        place = frozen.user_attrs.get("worker")
        if self._options["storage"] and place != self._here:
            age = datetime.now() - (frozen.datetime_start or datetime.now())
            if place is not None or age.total_seconds() < HANDOVER_SECONDS:
                return False
        if not self._claims.take(str(number)):
            return False
        if self._storage.get_trial(frozen._trial_id).state == running:
            return True
        self._claims.release(str(number))  # its worker has told it just now
        return False

    def _gone_on_with(self, number: int) -> list[tuple[int, list[str]]]:
        """The job of a trial that was cut off; none where its run had ended all the same."""
        import optuna

        folder = self._run_folder(number)
        if folder is not None and Outcome.of(folder).final:
            from xray_lightning.deploy.model_card.card import write_pages

            write_pages(folder, report=self._report, missing=True)
            self.tell([number])
            return []
        self._study.sampler = self._sampler(number)
        frozen = self._study.get_trials(deepcopy=False)[number]
        _, overrides = self._job(optuna.trial.Trial(self._study, frozen._trial_id))
        return [(number, overrides if folder is None else gone_on_with(overrides, folder))]

    def _job(self, trial: Any) -> tuple[int, list[str]]:
        trial.set_user_attr("worker", self._here)
        values = {key: suggested(trial, key, one) for key, one in self._distributions.items()}
        overrides = self._overrides(values)
        if self._options["pruner"]:
            pruner = OmegaConf.to_container(self._options["pruner"], resolve=True)
            callback = {
                "_target_": "xray_lightning.training.optuna_study.TrialPruning",
                "storage": self._storage_name,
                "study": self._name,
                "trial": trial.number,
                "pruner": pruner,
            }
            overrides.append(f"+callbacks.pruning={in_grammar(callback)}")
        return trial.number, overrides

    def _run_folder(self, number: int) -> Path | None:
        return next(iter(sorted(self.folder.glob(f"{number}_*"))), None)

    def tell(self, numbers: list[int]) -> None:
        """Tell Optuna how the runs of these trials have ended."""
        import optuna

        states = optuna.trial.TrialState
        for number in numbers:
            folder = self._run_folder(number)
            outcome = Outcome.of(folder) if folder is not None else Outcome.of(self.folder)
            if outcome.status in ("interrupted", "running"):
                self._left.append(number)
                continue
            if outcome.status == PRUNED:
                self._told(number, state=states.PRUNED, reason=outcome.reason)
            elif outcome.status == "finished" and outcome.value is not None:
                self._told(number, outcome.value, state=states.COMPLETE)
            else:
                self._told(number, state=states.FAIL, reason=outcome.reason or outcome.status)
            self._claims.release(str(number))
            self._log(number)

    def _told(
        self, number: int, value: float | None = None, *, state: Any, reason: str | None = None
    ) -> None:
        frozen = self._study.get_trials(deepcopy=False)[number]
        if reason is not None:
            self._storage.set_trial_user_attr(frozen._trial_id, "reason", reason)
        with suppress(RuntimeError):  # an exhausted grid, told too, stops a loop that is not ours
            self._study.tell(number, value, state=state, skip_if_finished=True)

    def _log(self, number: int) -> None:
        trials = self._study.get_trials(deepcopy=False)
        done = sum(one.state.is_finished() for one in trials)
        trial = trials[number]
        told = f"{trial.value:.4f}" if trial.value is not None else trial.user_attrs.get("reason")
        complete = [one for one in trials if one.state.name == "COMPLETE"]
        best = max(complete, key=lambda one: (one.value, -one.number), default=None)
        log.info(
            "trial %d: %s %s; %d of %d done%s",
            number,
            trial.state.name.lower(),
            told,
            done,
            self._trials,
            f", the best is trial {best.number} with {best.value:.4f}" if best else "",
        )

    def end(self) -> None:
        """Say what came of it.

        Raises:
            RunFailedError: trials have failed, or were interrupted.
        """
        trials = self._study.get_trials(deepcopy=False)[: self._trials]
        log.info("sweep:   xray report %s", self.folder)
        failed = {
            one.number: one.user_attrs.get("reason") for one in trials if one.state.name == "FAIL"
        }
        if self._left:
            names = ", ".join(map(str, self._left))
            raise RunFailedError(f"trial {names} was interrupted; the same command goes on with it")
        if failed:
            first, reason = next(iter(failed.items()))
            raise RunFailedError(
                f"{len(failed)} of {len(trials)} trials failed; the first, trial {first}: {reason}"
            )


def _built(node: Any, key: str, **further: Any) -> Any:
    try:
        return instantiate(node, _convert_="all", **further)
    except InstantiationException as error:
        raise UserError(f"hydra.sweeper.{key}: {one_line(error.__cause__ or error)}") from error
