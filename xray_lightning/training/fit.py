"""Fit, test and resume: from ready-made objects to a run folder."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import gethostname
from time import monotonic, perf_counter
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console, RenderableType

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.splits import render_split_table, split_table
from xray_lightning.errors import UserError, one_line
from xray_lightning.evaluation.judge import Judge, training_prevalences
from xray_lightning.evaluation.metadata_baseline import MetadataModel
from xray_lightning.files import go_on_without
from xray_lightning.hardware import Speed, choose_accelerator, choose_precision, device_name
from xray_lightning.models.backbones import taken_over
from xray_lightning.models.checkpoint import BEST, LAST, SAFETENSORS, read_checkpoint
from xray_lightning.models.classifier import Classifier
from xray_lightning.progress import on_terminal
from xray_lightning.runs.predictions import prediction_table, write_predictions
from xray_lightning.runs.results_json import RunRecord, differences, kept_warnings, predictions_name
from xray_lightning.runs.summary import metrics_table, shuffled_reach
from xray_lightning.training.callbacks import (
    AtomicCheckpointIO,
    FiniteLoss,
    ImagesBar,
    Throughput,
    log_hyperparameters,
    peak_memory,
)
from xray_lightning.training.heartbeat import watch
from xray_lightning.training.interruption import FitClock, Interruption
from xray_lightning.training.launch import Failure
from xray_lightning.training.linear_probe import LinearProbe
from xray_lightning.training.loggers import open_loggers
from xray_lightning.training.mpi_environment import library_version
from xray_lightning.training.optuna_study import TrialPruning
from xray_lightning.training.preflight import RollCall, call_roll, check_data
from xray_lightning.training.shuffled_labels import EndAfter, fit_shuffled, shuffled_scores
from xray_lightning.training.strategies import Distributed, Strategy, World
from xray_lightning.training.weight_averaging import refuse_other_averaging
from xray_lightning.training.weights_provenance import (
    check_first_weights,
    first_weights_record,
    first_weights_table,
)

log = logging.getLogger(__name__)

STAGES = ("fit", "test")
SCALER_PATIENCE = 20  # fp16 steps in a row that loss scaling may skip before the run is given up


@dataclass
class Job:
    """Everything that one run is made of.

    Attributes:
        trainer: partial `Trainer` with the options of the configuration, among them
            `accelerator` and `precision` as the user gave them.
    """

    record: RunRecord
    world: World
    started: float  # time.monotonic() of the first process of this run
    data: XrayDataModule
    classifier: Classifier
    trainer: partial[Trainer]
    strategy: Strategy
    speed: Speed
    judge: Judge
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    stages: Sequence[str] = STAGES
    ckpt_path: Path | None = None
    resume: bool = False
    allow_seen_test: bool = False
    on_lost: Callable[[Failure], None] = lambda failure: None  # reports a failure before the exit
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which logs, prints and writes the files."""
        return self.world.rank == 0


def run(job: Job) -> str | None:
    """Run the job's stages and fill its record; the caller sets the record's final status.

    Returns:
        Why Optuna pruned the fit, which then has no test; None if it was not pruned.

    Raises:
        XrayError: the run cannot start, or failed.
    """
    _refuse_bad_stages(job)
    job.judge.check(job.data.findings)
    accelerator = choose_accelerator(job.trainer.keywords["accelerator"])
    kept: list[str] = []
    with ExitStack() as stack:
        with kept_warnings(kept):
            loggers = stack.enter_context(
                open_loggers(
                    job.loggers,
                    folder=job.folder,
                    leads=job.leads,
                    resume=job.resume,
                    hyperparameters=job.hyperparameters,
                )
            )
        options = job.strategy.trainer_options()
        roll = stack.enter_context(_watched(job, options, accelerator=accelerator))
        _run(
            job,
            options,
            accelerator=accelerator,
            precision=_precision(job, accelerator),
            roll=roll,
            loggers=loggers,
            kept=kept,
        )
    return _pruned(job)


def _precision(job: Job, accelerator: str) -> str:
    asked = str(job.trainer.keywords["precision"])
    precision = choose_precision(asked, accelerator=accelerator)
    if job.leads and precision != asked:
        fallback = "precision=%s needs CUDA's loss scaling; on this CPU it runs as %s"
        log.info(fallback, asked, precision)
    return precision


def _run(
    job: Job,
    options: dict[str, Any],
    *,
    accelerator: str,
    precision: str,
    roll: RollCall | None,
    loggers: list[Logger],
    kept: list[str],
) -> None:
    """Run the stages on this rank.

    Args:
        options: the strategy's keyword arguments of `Trainer`.
        roll: all ranks of the job; None for a single process.
        kept: list that warnings of the run are added to.
    """
    local_ranks, nodes = options["devices"], options.get("num_nodes", 1)
    threads = job.speed.prepare(accelerator=accelerator, local_ranks=local_ranks)
    if job.leads:
        cluster = getattr(options.get("strategy"), "cluster_environment", None)
        job.record.content["environment"] |= {
            "hosts": getattr(cluster, "hosts", [gethostname()]),
            **_environment(job, accelerator=accelerator, precision=precision, threads=threads),
        }
    throughput = Throughput(batch_size=job.data.batch_size)
    finite = _finite_loss(precision)
    clock = _clock(job)
    interruption = Interruption(
        job.folder,
        checkpoint=job.folder / "checkpoints" / LAST,
        world=job.world,
        check=finite.look,
        clock=clock,
    )
    interruption.install()
    if roll is not None:
        local_rank = options["strategy"].cluster_environment.local_rank()
        _compare_hosts(job, roll, local_rank=local_rank)
    options["plugins"] = [AtomicCheckpointIO(), *options.get("plugins", [])]
    probe = [LinearProbe()] if job.classifier.fine_tuning.probe else []
    callbacks = [
        throughput,
        finite,
        *probe,
        _Recorder(job, throughput),
        *([_Binding(job.speed, local_ranks)] if accelerator == "cpu" else []),
        *_bars(job, throughput),
        *(one for one in job.callbacks if loggers or not isinstance(one, LearningRateMonitor)),
        *([clock] if clock else []),
        interruption,  # last: the checkpoint it saves holds the others' state
    ]
    used = {"accelerator": "gpu" if accelerator == "cuda" else "cpu", "precision": precision}
    trainer = _trainer(job, callbacks=callbacks, logger=loggers, **used, **options)
    if trainer.world_size != job.world.size:
        raise UserError(
            f"devices x num_nodes = {local_ranks} x {nodes}, but the world has {job.world.size} "
            "processes; start equally many on each host"
        )
    # A step's CUDA graph supports neither collectives nor the accumulation of gradients.
    alone = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
    job.classifier.cuda_graph = job.speed.cuda_graph and accelerator == "cuda" and alone
    job.classifier.tta = job.judge.tta
    fresh = deepcopy(job.classifier) if job.judge.shuffled else None
    if job.speed.compile:
        job.classifier.backbone.compile()
    try:
        with kept_warnings(kept):
            if "fit" in job.stages:
                _fit(job, trainer)
            pruned = _pruned(job)
            tested = _test(job, trainer) if "test" in job.stages and not pruned else None
            if fresh is not None and not pruned:
                _note(job, throughput, kept, finite.skipped)
                interruption.checkpoint = None  # keep the main run's checkpoint
                interruption.clock = None
                epochs = trainer.current_epoch
                _shuffled(
                    job, fresh, tested, further=[*probe, EndAfter(epochs), interruption], used=used
                )
    finally:
        _note(job, throughput, kept, finite.skipped)
    trainer.strategy.barrier("end")  # ranks leave together
    interruption.leave()


def _pruned(job: Job) -> str | None:
    pruning = (one for one in job.callbacks if isinstance(one, TrialPruning))
    return next((one.reason for one in pruning if one.reason), None)


@contextmanager
def _watched(
    job: Job, options: Mapping[str, Any], *, accelerator: str
) -> Iterator[RollCall | None]:
    """Gather the roll of all ranks, if there are several, and watch them by heartbeat."""
    cluster = getattr(options.get("strategy"), "cluster_environment", None)
    if cluster is None or not isinstance(job.strategy, Distributed):
        yield None
        return
    device = device_name(accelerator)
    if accelerator == "cuda":
        device = f"cuda:{cluster.local_rank()}, {device}"
    roll = call_roll(job.world, device=device, address=job.strategy.own_address, folder=job.folder)
    watched = watch(
        job.world, roll.members, strategy=job.strategy, folder=job.folder, on_lost=job.on_lost
    )
    with watched:
        yield roll


def _compare_hosts(job: Job, roll: RollCall, *, local_rank: int) -> None:
    """Given several hosts, show the table of ranks and check that all hosts have the same data."""
    if len(roll.hosts) > 1:
        if job.leads:
            _show(job, roll.table())
        hosts = [member.host for member in roll.members]
        check_data(job.world, job.data, hosts=hosts, builds=local_rank == 0)


def _finite_loss(precision: str) -> FiniteLoss:
    return FiniteLoss(patience=SCALER_PATIENCE if precision == "16-mixed" else 0)


def _clock(job: Job) -> FitClock | None:
    """The timer of `trainer.max_time`; None without a limit."""
    limit = job.trainer.keywords.get("max_time")
    try:
        return None if limit is None else FitClock(limit)
    except (MisconfigurationException, TypeError) as error:
        raise UserError(
            f"trainer.max_time={limit} must be days, hours, minutes and seconds: 00:12:00:00"
        ) from error


def _bars(job: Job, throughput: Throughput) -> list[Callback]:
    # Open MPI forwards a rank's output line by line, so that a live bar would not be shown.
    live = job.world.launcher == "none" and on_terminal()
    return [ImagesBar(throughput)] if live else []


def _trainer(job: Job, **options: Any) -> Trainer:
    """The job's trainer with these options; errors of its constructor become one-line errors."""
    try:
        # Our own progress bar and timer of max_time are among the callbacks.
        return job.trainer(enable_progress_bar=False, **options, max_time=None)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"trainer: {one_line(error)}") from error


def _refuse_bad_stages(job: Job) -> None:
    unknown = [stage for stage in job.stages if stage not in STAGES]
    if unknown or not job.stages:
        raise UserError(f"stages=[{','.join(job.stages)}] must be made of {', '.join(STAGES)}")
    if job.ckpt_path is not None and "fit" in job.stages:
        raise UserError(
            "ckpt_path names the checkpoint of stages=[test]; to go on with a run, give "
            "resume=RUN_FOLDER"
        )
    if job.ckpt_path is not None and job.ckpt_path.suffix.lower() == SAFETENSORS:
        raise UserError(
            f"ckpt_path={job.ckpt_path}: stages=[test] takes a .ckpt; score this file with "
            "xray evaluate CKPT --data DIR"
        )
    if "fit" not in job.stages and job.ckpt_path is None:
        raise UserError("stages=[test] needs ckpt_path=CHECKPOINT")
    if job.judge.shuffled and {*job.stages} != {*STAGES}:
        raise UserError(
            "evaluation.shuffled=true trains a second time and tests it beside the run: it needs "
            "stages=[fit,test]"
        )


def _fit(job: Job, trainer: Trainer) -> None:
    ckpt_path = None
    if job.resume and not _stopped_before_a_checkpoint(job):
        ckpt_path = job.folder / "checkpoints" / LAST
        refuse_other_averaging(
            read_checkpoint(ckpt_path, findings=job.data.findings), job.callbacks
        )
        # A resumed run's checkpoint folder always holds files; ModelCheckpoint would warn of them.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")
    trainer.fit(job.classifier, datamodule=job.data, ckpt_path=ckpt_path, weights_only=True)


def _stopped_before_a_checkpoint(job: Job) -> bool:
    """Whether the resumed run was stopped before its first checkpoint, as in building a cache."""
    later = [job.folder / "checkpoints" / LAST, job.folder / predictions_name("test")]
    if len(job.record.content["history"]) > 1 or any(path.exists() for path in later):
        return False
    if job.leads:
        log.info("resume: the run was stopped before its first checkpoint, and begins anew")
    return True


def _test(job: Job, trainer: Trainer) -> pd.DataFrame | None:
    """Predict, score and record; returns the test predictions on rank 0, None on the others."""
    start = perf_counter()
    ckpt_path = job.ckpt_path or job.folder / "checkpoints" / BEST
    if job.ckpt_path is not None:
        described = read_checkpoint(ckpt_path, findings=job.data.findings)["xray"]
        recipe = job.classifier.recipe
        changed = differences({key: described.get(key) for key in recipe}, recipe)
        if changed:
            raise UserError(
                f"{ckpt_path} does not fit this run ({'; '.join(changed)}); give the options that "
                "it was trained with"
            )
    predictions = {}
    loggers, trainer.loggers = trainer.loggers, []  # loggers get scores of epochs only
    for side, stage in (("val", trainer.validate), ("test", trainer.test)):
        source: Any = {"datamodule": job.data, "ckpt_path": ckpt_path, "weights_only": True}
        stage(job.classifier, verbose=False, **source)
        if job.leads:
            table, outputs = job.data.table(side), job.classifier.outputs
            predictions[side] = prediction_table(
                table,
                outputs,
                side=side,
                findings=job.data.findings,
                further=job.data.further_columns,
            )
            write_predictions(job.folder, predictions[side], side=side)
    trainer.loggers = loggers
    if job.leads:
        metrics = job.judge(
            **predictions,
            checkpoint=ckpt_path,
            fit=job.ckpt_path is None,
            prevalences=training_prevalences(job.data),
            metadata=MetadataModel.fit(job.data.table("train"), job.data.findings),
        )
        job.record.content["metrics"]["test"] = metrics
        job.record.content["timing"]["test"] = perf_counter() - start
        headline = (
            *("auroc_macro", "average_precision_macro", "label_accuracy"),
            *("metadata_auroc_macro", "gain_over_metadata_macro", "auroc_within_view_macro"),
            *("combined_auroc_macro", "gain_of_combined_macro"),
        )
        scores = {key: metrics[key] for key in headline}
        log_hyperparameters(trainer, config=job.hyperparameters, metrics=scores)
        _show(job, metrics_table(metrics))
    return predictions.get("test")


def _shuffled(
    job: Job,
    classifier: Classifier,
    tested: pd.DataFrame | None,
    *,
    further: Sequence[Callback],
    used: Mapping[str, Any],
) -> None:
    """Write the run's record, then train the recipe again on shuffled labels, and score that.

    Args:
        classifier: a copy from before the fit.
        tested: the run's test predictions on rank 0; None on the others.
        further: the linear probe, if any, and the callbacks that end the fit.
        used: accelerator and precision.
    """
    start, seed = perf_counter(), job.record.content["seed"] or 0
    if job.leads:
        job.record.write()
        log.info("evaluation.shuffled: training again, on shuffled labels")
    seed_everything(seed, verbose=False)
    throughput = Throughput(batch_size=job.data.batch_size, title="shuffled labels: ")
    finite = _finite_loss(str(used["precision"]))
    trainer = _trainer(
        job,
        callbacks=[throughput, finite, *_bars(job, throughput), *further],
        logger=False,
        **used,
        **job.strategy.trainer_options(),
    )
    if job.speed.compile:
        classifier.backbone.compile()
    predictions = fit_shuffled(trainer, classifier, job.data, seed=seed)
    if tested is not None:
        judge = job.judge.evaluator
        scores = shuffled_scores(
            predictions, tested, resamples=judge.resamples, seed=judge.seed
        ) | {"epochs": trainer.current_epoch}
        job.record.content["metrics"]["test"]["shuffled_labels"] = scores
        job.record.content["timing"]["shuffled"] = perf_counter() - start
        log.info("%s", shuffled_reach(scores["auroc_macro"], scores["auroc_macro_ci95"]))


def _show(job: Job, table: RenderableType) -> None:
    # Open MPI gives every rank a pseudo-terminal, even into a file: print plain text there.
    console = Console(force_terminal=False if job.world.launcher == "mpi" else None)
    try:
        with console.capture() as shown:  # Rich itself would exit on a broken pipe
            console.print(table)
        sys.stdout.write(shown.get())
        sys.stdout.flush()
    except OSError as error:  # nobody reads it, or its disk is full
        go_on_without(sys.stdout, error)


class _Binding(Callback):
    """Binds a rank to its cores once its node's cache is built."""

    def __init__(self, speed: Speed, local_ranks: int) -> None:
        self._speed, self._local_ranks = speed, local_ranks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._speed.bind(local_rank=trainer.local_rank, local_ranks=self._local_ranks)


class _Recorder(Callback):
    """Keeps results.json up to date while the run goes on, and shows the data at its start."""

    def __init__(self, job: Job, throughput: Throughput) -> None:
        self._job = job
        self._throughput = throughput
        self._described = False
        self._earlier = [*job.record.content["history"]] if job.resume else []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        job = self._job
        if stage == "fit":  # log at least once an epoch, however few its steps
            steps = max(1, job.classifier.steps_an_epoch())
            options: Any = trainer  # Lightning does not declare log_every_n_steps
            options.log_every_n_steps = min(options.log_every_n_steps, steps)
        taken = taken_over(job.classifier.backbone) if stage == "fit" else None
        if taken is not None:
            mode, allowed = job.data.normalize, job.allow_seen_test
            seen = check_first_weights(taken, job.data, allowed=allowed, normalize=mode)
            job.record.content["first_weights"] = first_weights_record(taken, seen)
            job.classifier.weights_seen = taken.all_seen
        if not job.leads or self._described:
            return
        self._described = True
        job.record.content["data"] = job.data.describe()
        job.record.content["timing"]["cache"] = job.data.cache_seconds
        job.record.write()
        table = split_table(job.data.manifest, job.data.usable.split)
        _show(job, render_split_table(table, title=f"{job.data.name}: {job.data.split_name}"))
        for reason, count in job.record.content["data"]["dropped"].items():
            log.info("%s: %d", reason, count)
        if taken is not None:
            _show(job, first_weights_table(taken))
            for part in job.record.content["first_weights"]["seen_test"]:
                log.warning("the first weights have seen %s", part)
        if job.data.usable.patient_overlap:
            log.warning("patients on two sides of the split: %s", job.data.usable.patient_overlap)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for one in trainer.checkpoint_callbacks:  # of a moved run folder: keep the best score
            state = checkpoint.get("callbacks", {}).get(one.state_key, {})
            if isinstance(one, ModelCheckpoint) and one.dirpath and "dirpath" in state:
                here = Path(one.dirpath)
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = str(here / Path(state[key]).name) if state[key] else ""
                best = state["best_k_models"].items()
                state["best_k_models"] = {str(here / Path(path).name): k for path, k in best}
                state["dirpath"] = one.dirpath

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._job.leads:
            new = self._throughput.history
            kept = [row for row in self._earlier if row["epoch"] < new[0]["epoch"]]
            self._job.record.content["history"] = kept + new
            self._job.record.write()


def _environment(job: Job, *, accelerator: str, precision: str, threads: int) -> dict[str, Any]:
    """The entries of results.json's `environment` block."""
    return {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "device": device_name(accelerator),
        "accelerator": accelerator,
        "world_size": job.world.size,
        "mpi": library_version() if job.world.launcher == "mpi" else None,
        "strategy": job.strategy.name,
        "precision_asked": job.trainer.keywords["precision"],
        "precision_used": precision,
        "threads_per_rank": threads,
        "batch_size_per_rank": job.data.batch_size / job.world.size,
    }


def _note(job: Job, throughput: Throughput, warned: list[str], skipped: int) -> None:
    """Put warnings, skipped steps, timing and peak memory into the run's record."""
    job.record.content["training"] = {"warnings": warned, "skipped_steps": skipped}
    if not job.leads:
        return
    timing = job.record.content["timing"]
    timing |= throughput.timing()
    if throughput.first_step_at is not None:
        startup = throughput.first_step_at - job.started - job.data.cache_seconds
        timing["startup"] = max(0.0, startup)
    timing["total"] = monotonic() - job.started
    timing["peak_memory_bytes"] = peak_memory()
