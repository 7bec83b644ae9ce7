"""Trials of a sweep: table, importance of parameters, best trial's command, and its optimism."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.errors import UserError, one_line
from xray_lightning.evaluation.selection_optimism import Optimism, optimism_of
from xray_lightning.report.tables import of_paper
from xray_lightning.runs.predictions import read_predictions
from xray_lightning.runs.results_json import predictions_name
from xray_lightning.runs.run_folder import Run
from xray_lightning.runs.sweep import PRUNED, Sweep, Trial, read_trials
from xray_lightning.terminal import (
    NONE,
    Table,
    counted,
    decimal,
    duration,
    numbers,
    texts,
    with_interval,
)

MOST_TRIALS = 50  # in the table: the best ones
FEWEST = 5  # finished trials from which importance is estimated
BEST = 5  # least number of trials that count as the best for importance, as Optuna advises
MOST_COLUMNS = 5  # of parameters; if there are more, they share one column
PREDICTIONS = predictions_name("val")


@dataclass(frozen=True)
class SweepReport:
    """A sweep as its report shows it.

    Attributes:
        best: the finished trial with the highest validation macro AUROC.
        importance: share of each parameter, largest first; empty if `why_no_importance` is set.
        selected: the best trial's run, the only one whose test the summary shows.
    """

    folder: Path
    sweep: Sweep
    trials: tuple[Trial, ...]
    best: Trial | None
    optimism: Optimism | None
    why_no_optimism: str | None
    importance: dict[str, float]
    why_no_importance: str | None
    selected: Run | None

    @property
    def is_search(self) -> bool:
        """Whether Optuna sampled the trials, depending on the results of earlier ones."""
        return self.sweep.kind == "optuna"

    @property
    def command(self) -> str | None:
        """Shell command that trains the best trial again; None if no trial has finished."""
        if self.best is None:
            return None
        return shlex.join(["python", "train.py", *self.best.given])

    @property
    def tables(self) -> list[Table]:
        return [_summary(self), _trials(self), *_importance_table(self)]


def read_sweep(folder: Path, runs: Sequence[Run]) -> SweepReport | None:
    """The sweep of a folder; None if there is none, or for the paper's study, with its own tables.

    Args:
        runs: those of the folder that can be read.
    """
    sweep = Sweep.read(folder)
    trials = tuple(read_trials(folder)) if sweep else ()
    if sweep is None or not trials or any(map(of_paper, runs)):
        return None
    finished = [one for one in trials if _value(one) is not None]
    best = max(finished, key=lambda one: (_value(one), -one.number), default=None)
    optimism, why = _optimism(finished, best) if best else (None, "no trial has finished")
    importance, why_none = _importance(sweep, finished)
    own = best.folder.resolve() if best else None
    return SweepReport(
        folder=folder,
        sweep=sweep,
        trials=trials,
        best=best,
        optimism=optimism,
        why_no_optimism=why,
        importance=importance,
        why_no_importance=why_none,
        selected=next((run for run in runs if run.folder.resolve() == own), None),
    )


def _value(trial: Trial) -> float | None:
    """A finished trial's validation macro AUROC; None for others, which cannot be chosen."""
    return trial.outcome.value if trial.outcome.status == "finished" else None


def _optimism(finished: Sequence[Trial], best: Trial) -> tuple[Optimism | None, str | None]:
    tables = []
    lacking = [one for one in finished if not (one.folder / PREDICTIONS).is_file()]
    if lacking:
        return None, (
            f"{counted(len(lacking), 'finished trial')} of {len(finished)} "
            f"{'has' if len(lacking) == 1 else 'have'} no {PREDICTIONS}, which stages=[fit,test] "
            "leaves"
        )
    try:
        tables = [read_predictions(one.folder / PREDICTIONS) for one in finished]
    except UserError as error:
        return None, one_line(error)
    found = optimism_of(tables, best=finished.index(best))
    return (found, None) if found.optimism is not None else (None, found.reason)


def _importance(sweep: Sweep, finished: Sequence[Trial]) -> tuple[dict[str, float], str | None]:
    """Importance of the parameters by PED-ANOVA, Optuna's default, or the reason for none."""
    if len(finished) < FEWEST:
        return {}, f"it takes at least {FEWEST} finished trials"
    values = {key: {one.overrides[key] for one in finished} for key in _keys(sweep, finished)}
    varied = [key for key, own in values.items() if len(own) > 1]
    if not varied:
        return {}, "no parameter took two values"
    if len({_value(one) for one in finished}) == 1:
        return {}, "all trials reached the same"
    try:
        import optuna
    except ImportError:
        return {}, "it needs Optuna: uv pip install 'optuna>=5'"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {
        key: _distribution(sweep.distributions.get(key), sorted(values[key])) for key in varied
    }
    study = optuna.create_study(direction="maximize")
    for one in finished:
        params = {key: _parameter(one.overrides[key], kind) for key, kind in kinds.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=kinds, value=_value(one))
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=_best_share(len(finished))
    )
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError, ImportError) as error:
        return {}, one_line(error)
    return {key: float(share) for key, share in found.items()}, None


def _best_share(trials: int) -> float:
    """Share of trials that count as best: a tenth, or more to have `BEST` of them; at most half."""
    return min(0.5, max(0.1, BEST / trials))


def _keys(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    return [key for key in sweep.space if all(key in one.overrides for one in trials)]


def _distribution(written: str | None, values: Sequence[str]) -> Any:
    from optuna.distributions import CategoricalDistribution, json_to_distribution

    return json_to_distribution(written) if written else CategoricalDistribution(tuple(values))


def _parameter(text: str, kind: Any) -> Any:
    """An override's value for its distribution, clipped in case rounding moved it out of range."""
    if hasattr(kind, "choices"):
        return text
    number = min(max(float(text), kind.low), kind.high)
    return round(number) if isinstance(kind.low, int) else number


def _summary(report: SweepReport) -> Table:
    counts = Counter(one.outcome.status for one in report.trials)
    states = ", ".join(f"{number} {name}" for name, number in counts.items())
    rows = [("Trials", f"{len(report.trials)} of {report.sweep.trials}: {states}")]
    best, found = report.best, report.optimism
    if best is not None:
        rows += [
            ("Best by validation", f"trial {best.number}, {best.folder.name}"),
            ("Its validation macro AUROC", decimal(best.outcome.value)),
        ]
    if found is not None and found.optimism is not None:
        rows += [
            ("Of which choosing the best has added", f"{found.optimism:.3f}"),
            ("Without it", decimal(found.corrected)),
            ("Resamples of the patients that choose the same", f"{found.chosen:.0%}"),
        ]
    else:
        rows.append(("What choosing has added", f"{NONE}: {report.why_no_optimism}"))
    if best is not None:
        rows.append(("Its test macro AUROC", _test(report.selected)))
    return Table.of("Sweep", texts("", ""), rows, _summary_notes(report))


def _test(run: Run | None) -> str:
    if run is None or run.test is None:
        return f"{NONE}: it was not tested"
    value = with_interval(run.test.auroc_macro, run.test.auroc_macro_ci95)
    return f"{value}, {counted(run.test.images, 'image')}"


def _summary_notes(report: SweepReport) -> list[str]:
    found = report.optimism
    notes = []
    if found is not None:
        notes.append(
            f"The best of {found.models} is better on the {counted(found.patients, 'patient')} "
            "that it was chosen by than on others. How much, is estimated by choosing anew on "
            "resampled patients and scoring on those left out. That each trial's best epoch was "
            "chosen on the same patients is not in it."
        )
    if report.best is not None:
        notes.append(
            "The test is of the chosen trial alone; to choose by the test would spoil it."
            if report.is_search
            else "The test has no part in the choice."
        )
    return notes


def _trials(report: SweepReport) -> Table:
    ordered = sorted(
        report.trials,
        key=lambda one: (_value(one) is None, -(one.outcome.value or 0.0), one.number),
    )
    keys = _keys(report.sweep, report.trials)
    apart = len(keys) <= MOST_COLUMNS
    columns = (
        *numbers("#", "Validation\nmacro AUROC"),  # first: a narrow page cuts off the last ones
        *(texts(*keys) if apart else texts("Parameters")),
        *texts("State"),
        *numbers("Time"),
    )
    rows = [
        (
            str(one.number),
            decimal(one.outcome.value),
            *(
                [one.overrides[key] for key in keys]
                if apart
                else [tuple(f"{key}={one.overrides[key]}" for key in keys)]
            ),
            one.outcome.status,
            duration(one.outcome.seconds),
        )
        for one in ordered[:MOST_TRIALS]
    ]
    notes = [
        f"Trial {one.number} {one.outcome.status}: {one.outcome.reason.removeprefix('pruned ')}."
        for one in ordered[:MOST_TRIALS]
        if one.outcome.reason
    ]
    if any(one.outcome.status == PRUNED for one in ordered):
        notes.append("A pruned trial was ended early; its AUROC is that of its best epoch so far.")
    if len(ordered) > MOST_TRIALS:
        notes.append(f"The {len(ordered) - MOST_TRIALS} others are left out here.")
    return Table.of("Trials, the best first", columns, rows, notes)


def _importance_table(report: SweepReport) -> list[Table]:
    title, columns = "Importance", (*texts("Parameter"), *numbers("Share"))
    if not report.importance:
        note = f"There is none: {report.why_no_importance}."
        return [Table.of(title, columns, [], (note,))]
    rows = [(key, f"{share:.0%}") for key, share in report.importance.items()]
    trials = sum(_value(one) is not None for one in report.trials)
    note = (
        f"Of {counted(trials, 'finished trial')}, by PED-ANOVA (Watanabe et al. 2023): what sets "
        f"the best {_best_share(trials):.0%} apart. It is of this search space, and with few "
        "trials no more than a hint."
    )
    return [Table.of(title, columns, rows, (note,))]
