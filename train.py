"""Train and test a chest X-ray classifier: compose the configuration, launch, run.

    python train.py strategy=mpi precision=16-mixed model=resnet50

This is the only file that knows Hydra. Nothing heavy is imported before a job really runs here.
"""

import logging
import os
import re
import signal
import sys
import traceback
import warnings
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xray_lightning.errors import (
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    EXIT_USER_ERROR,
    EXIT_WARNED,
    STOPPED,
    InterruptedRunError,
    UserError,
    XrayError,
    check_whole,
    one_line,
    printable,
)
from xray_lightning.files import hold, reader_has_gone
from xray_lightning.runs.results_json import LOG_NAME, RUNNING, RunRecord
from xray_lightning.runs.sweep import CONDUCT, LAST_CHECKPOINT, PRUNED
from xray_lightning.training.launch import (
    Failure,
    cause_of,
    exit_codes,
    given_command,
    interruptible,
    job_command,
    launch,
    quoted,
)
from xray_lightning.training.mpi_command import end_daemon
from xray_lightning.training.slurm import AWAITED_SECONDS, SCONTROL_SECONDS, SlurmJob
from xray_lightning.training.strategies import (
    boot_id,
    detect,
    die_with_parent,
    end,
    process_start,
    rendezvous,
    same_clock,
    share,
    starting_node,
)

if TYPE_CHECKING:
    from xray_lightning.training.fit import Job
    from xray_lightning.training.resume import RunFiles
    from xray_lightning.training.strategies import Strategy

log = logging.getLogger("xray")

WORLD = detect()
if WORLD.launcher == "none":  # on several hosts the one with node_rank=0 leads
    WORLD = starting_node(sys.argv[1:])
SLURM = SlurmJob.of()
LAUNCHED = "XRAY_LAUNCHED" in os.environ  # whether another train.py has started this rank
# Start of the job's first process, in time.monotonic().
STARTED = same_clock(os.environ.get("XRAY_STARTED"), default=process_start())
GIVEN = sys.argv[1:]  # the command line, without what `resume=` adds to it
COMMAND = given_command()

GRACE_SECONDS = 3.0
# Boolean keys, checked because the code that reads them would take any text for true.
SWITCHES = (
    *("report", "model.pretrained", "model.allow_seen_test"),
    *("strategy.sync_batchnorm", "optimizer.nesterov"),
)

# Packages of Hydra's plugins that are installed separately, by the option that needs them.
PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/ray_aws": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
    "hydra/hydra_logging/colorlog": "hydra-colorlog",
    "hydra/job_logging/colorlog": "hydra-colorlog",
}

# What reading a damaged YAML of a run raises; RecursionError if it is nested too deeply.
DAMAGE = (
    *(OSError, ValueError, RecursionError),
    *(YAMLError, HydraException, OmegaConfBaseException),
)

# Errors that end a command before there is a run folder.
FAILURES = (
    *(InterruptedRunError, XrayError, OSError),
    *(HydraException, OmegaConfBaseException),
)

LONGEST = 300  # characters quoted from a damaged file

_folders: dict[str, str] = {}
_met: set[str] = set()


def run_folder(name: str, strategy: DictConfig | None = None) -> str:
    """`runs/<date>_<time>_<name>`, created at once so that no other run gets the same folder.

    Ranks get it from rank 0, and other hosts from the one with strategy.node_rank=0.
    """
    name = str(name)  # 42 is a number to Hydra
    if not name or name in ("None", ".", "..") or "/" in name:
        raise UserError(f"name={name} names a folder: give a text without a slash")
    if name not in _folders and WORLD.launcher == "none" and WORLD.rank > 0:
        meet(strategy)
    if name not in _folders:
        folder = Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{name}"
        chosen = folder
        for number in range(2, 1000):
            if WORLD.rank != 0:
                break
            try:
                chosen.mkdir(parents=True)
                break
            except FileExistsError:
                chosen = folder.with_name(f"{folder.name}-{number}")
        _folders[name] = share(WORLD, f"folder/{name}", str(chosen))
    return _folders[name]


def meet(strategy: Any) -> None:
    """Exchange the run folders with the other hosts of this job, once per process.

    Args:
        strategy: the object, or its configuration.
    """
    nodes = getattr(strategy, "nodes", 1) or 1
    if "met" in _met or nodes == 1 or WORLD.launcher != "none":
        return
    from xray_lightning.training.torchrun_rendezvous import hold_meeting, join_meeting

    _met.add("met")
    address, port = rendezvous(strategy)
    if WORLD.rank == 0:
        folders = {name: str(Path(folder).absolute()) for name, folder in _folders.items()}
        hold_meeting(port, nodes=nodes, folders=folders, timeout=strategy.timeout)
    else:
        log.info("waiting for the host with strategy.node_rank=0, %s:%d", address, port)
        told = join_meeting(
            address, port, nodes=nodes, node_rank=WORLD.rank, timeout=strategy.timeout
        )
        _folders.update(told)


def arguments(given: list[str]) -> list[str]:
    """The command line to pass to Hydra.

    `resume=RUN_FOLDER` adds that run's folder, and its own overrides of keys that this command
    line does not set. Ranks above 0 do not write Hydra's files.
    """
    extra = ["hydra.output_subdir=null"] if WORLD.rank > 0 and not LAUNCHED else []
    given = [*given, *requeued(given)]
    texts = [arg for arg in given if arg.startswith("resume=")]
    if not texts or LAUNCHED or texts[-1] in ("resume=", "resume=null"):
        return given + extra
    folder = Path(texts[-1].partition("=")[2].strip("'"))
    named = {key_of(arg) for arg in given}
    changed = changed_groups(folder, given)
    earlier = [
        text
        for text in earlier_overrides(folder)
        if key_of(text) not in {*named, *CONDUCT} and not key_of(text).startswith(changed)
    ]
    # Hydra would write .hydra before the job is checked; `conduct` writes it afterwards.
    further = [*earlier, f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]
    place = given.index(texts[-1]) + 1  # argparse wants overrides side by side
    return [*given[:place], *further, *given[place:]]


def requeued(given: list[str]) -> list[str]:
    """`resume=FOLDER` of this command's run if Slurm has requeued the job; else nothing."""
    if SLURM is None or not SLURM.restarts or LAUNCHED or is_sweep(given):
        return []
    folder = share(WORLD, "requeued", str(SLURM.noted(COMMAND) or ""))
    if not folder or any(arg.startswith("resume=") for arg in given):
        return []
    return [f"resume={os.path.relpath(folder)}"]


def is_sweep(arguments: list[str]) -> bool:
    """Whether a command line asks Hydra for a multirun."""
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*arguments})


def key_of(override: str) -> str:
    """The key or group that an override sets: `callbacks.x` of `+callbacks.x=null`."""
    return override.lstrip("+~").split("=", 1)[0]


def earlier_overrides(folder: Path) -> list[str]:
    """The overrides that a run was started with, read from its folder, which is not trusted.

    Raises:
        UserError: there are none, they are damaged, or they set Hydra itself, which could run and
            write anything.
    """
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        raise UserError(f"resume={folder} is no run folder: it has no .hydra/overrides.yaml")
    try:
        texts = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("no list of overrides")
        parsed = OverridesParser.create().parse_overrides(texts)
    except DAMAGE as error:
        told = one_line(error)[:LONGEST]
        raise UserError(f"resume={folder}: {path} is damaged: {told}") from error
    for text, override in zip(texts, parsed, strict=True):
        if text.startswith("-") or re.split(r"[./@]", override.key_or_group)[0] == "hydra":
            raise UserError(
                f"resume={folder}: its override {printable(text)[:LONGEST]} sets Hydra itself; "
                f"remove it from {path}, and give it on this command line if you trust it"
            )
    return [str(text) for text in texts]


def changed_groups(folder: Path, given: list[str]) -> tuple[str, ...]:
    """Prefix, such as `strategy.`, of each group for which the command line has another option.

    The run's own overrides with these prefixes are dropped: the new option may not have the keys.
    """
    try:
        choices = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices
        chosen = {str(group): str(choice) for group, choice in choices.items()}
    except (*DAMAGE, AttributeError):
        return ()
    return tuple(
        f"{key_of(arg)}."
        for arg in given
        if key_of(arg) in chosen and chosen[key_of(arg)] != arg.partition("=")[2]
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    """One job: Hydra calls it once, or once for each combination of a multirun."""
    if WORLD.rank > 0:
        logging.getLogger().handlers = [logging.NullHandler()]  # only rank 0 logs
    warnings.showwarning = log_warning
    # Lightning 2.6 calls a torch function that torch 2.15 renames; nothing a user could do.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated", category=FutureWarning)
    # Lightning's hint wherever srun is on PATH, which no option turns off; it is not needed, since
    # strategy=mpi under srun joins the step's ranks.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    exit_codes.append(conduct(cfg, Path(HydraConfig.get().runtime.output_dir)))
    if exit_codes[-1] in STOPPED:
        sys.exit(exit_codes[-1])  # also skip the later jobs of a multirun


def log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """Log a warning as `logging.captureWarnings` does, without its blank line."""
    text = warnings.formatwarning(message, category, filename, lineno, line="")
    logging.getLogger("py.warnings").warning("%s", text.strip())


def conduct(cfg: DictConfig, folder: Path) -> int:
    """Run one job to whatever end it takes, record that end, and return its exit code."""
    # Later jobs of a multirun start now, in a process that has already imported torch.
    started = STARTED if not exit_codes else monotonic()
    earlier: RunFiles | None = None
    try:
        if cfg.resume and not LAUNCHED:  # the launching process has checked it
            earlier = check_resumed(cfg, folder)
        record = open_record(cfg, folder)
        refuse_bad_values(cfg)
        if earlier is not None and WORLD.rank == 0:
            earlier.write_configuration(configuration(cfg))
        strategy = make(cfg, "strategy")
        command = launch_command(cfg, strategy)
        if command is None:
            train_here(cfg, record, strategy, started=started)
        else:
            environ = rank_environment(started)
            if "torch.distributed.run" in command:  # else torchrun does, with a long warning
                environ.setdefault("OMP_NUM_THREADS", "1")
                # A suspended rank ignores SIGTERM; torchrun would wait 30 s for it.
                environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
            meet(strategy)
            tagged = bool(OmegaConf.select(cfg, "strategy.hosts", default=None))
            leads = WORLD.rank == 0
            launch(command, folder=folder, environ=environ, tagged=tagged, leads=leads)
        if not LAUNCHED and WORLD.rank == 0:
            name_results(folder)
            if SLURM is not None:
                SLURM.forget(COMMAND)
        return 0
    except (Exception, InterruptedRunError, KeyboardInterrupt) as error:  # noqa: BLE001 - see settle
        return settle(error, cfg, folder, earlier)


def check_resumed(cfg: DictConfig, folder: Path) -> "RunFiles":
    """Refuse a run folder, possibly somebody else's, that is unsafe to resume; back up its record.

    Raises:
        UserError: a link or an override that leads elsewhere, or a damaged results.json.
    """
    from xray_lightning.training.resume import (
        RunFiles,
        refuse_foreign_settings,
        refuse_links_outside,
    )

    config = HydraConfig.get()
    overrides = OverridesParser.create().parse_overrides(
        [arg for arg in GIVEN if not arg.startswith("-")]
    )
    sources = [Path(one.path) for one in config.runtime.config_sources if one.schema == "file"]
    targets = {
        target
        for source in sources
        for path in source.rglob("*.yaml")
        for target in re.findall(r"_target_: *['\"]?([\w.]+)", path.read_text(encoding="utf-8"))
    }
    refuse_links_outside(folder)
    if config.mode == RunMode.MULTIRUN:  # a resumed sweep: this command line sets it all
        return RunFiles(folder)
    refuse_foreign_settings(
        plain(cfg),
        folder=folder,
        targets=targets,
        given={one.key_or_group for one in overrides} - config.runtime.choices.keys(),
    )
    return RunFiles(folder)


def configuration(cfg: DictConfig) -> dict[str, str]:
    """Texts of the files in `.hydra` by name, for a resume, where Hydra does not write them."""
    hydra = HydraConfig.get()
    nodes = {"config": cfg, "hydra": {"hydra": hydra}, "overrides": hydra.overrides.task}
    return {f"{name}.yaml": OmegaConf.to_yaml(node) for name, node in nodes.items()}


def train_here(cfg: DictConfig, record: RunRecord, strategy: "Strategy", *, started: float) -> None:
    """Run this rank; rank 0 then sets the final status, and writes model card and report."""
    from xray_lightning.training.fit import run

    pruned = run(build(cfg, record, strategy, started=started))
    if WORLD.rank == 0:
        record.end(PRUNED if pruned else "finished", pruned)
        from xray_lightning.deploy.model_card.card import write_pages

        write_pages(record.folder, report=cfg.report)


def name_results(folder: Path) -> None:
    """Log where the results of a finished job are."""
    log.info("results: %s", folder / "results.json")
    if (folder / "tensorboard").exists():
        log.info("curves:  tensorboard --logdir %s", folder / "tensorboard")
    for kind, name in (("card:   ", "model_card.md"), ("report: ", "report.html")):
        if (folder / name).exists():
            log.info("%s %s", kind, folder / name)


def settle(
    error: BaseException, cfg: DictConfig, folder: Path, earlier: "RunFiles | None" = None
) -> int:
    """Report and record a failure, once for all ranks; a refused resume leaves its folder as is."""
    if "XRAY_DEBUG" in os.environ:
        traceback.print_exception(error)
    error = cause_of(error)
    skipping = getattr(error, "missing", None)
    if skipping and HydraConfig.get().mode == RunMode.MULTIRUN:
        # A sweep goes on without the rows that this machine cannot run.
        record = RunRecord.load(folder)
        if record is not None:
            record.end("skipped", f"needs {skipping}")
        log.warning("%s: skipped: needs %s", cfg.name, skipping)
        return 0
    failure = Failure.of(error, WORLD)
    if failure.exit_code == EXIT_USER_ERROR and WORLD.rank > 0:
        sleep(GRACE_SECONDS)  # probably raised on every rank: let rank 0 report it
    refused = cfg.resume and failure.exit_code == EXIT_USER_ERROR
    if refused and WORLD.rank == 0 and earlier is not None:
        earlier.restore()
    if WORLD.launcher == "none" and WORLD.rank > 0:  # the lead host records it
        record = RunRecord.load(folder)
        if record is not None and record.status == RUNNING:
            failure.claim(folder)
        complain(failure.reason)
        return failure.exit_code
    leads = failure.claim(folder)
    if leads:
        if not LAUNCHED:  # else the launching process reports and records it
            if not refused:
                failure.record(folder)
                close_loggers(cfg, folder, failure.status)
            complain(failure.reason)
            if WORLD.size == 1:
                (folder / Failure.FILE_NAME).unlink(missing_ok=True)
    else:
        sleep(GRACE_SECONDS)  # another rank was first: let it finish its report
    requeue(failure.exit_code, folder, leads=leads)
    if WORLD.size > 1:
        end(WORLD, failure.exit_code)
    return failure.exit_code


def close_loggers(cfg: DictConfig, folder: Path, status: str) -> None:
    """Close the runs that a failed job's ranks have left open in their loggers."""
    if any(folder.glob(".*_run")):
        from xray_lightning.training.loggers import close_left_runs

        close_left_runs(list(make(cfg, "logger").values()), status=status)


def requeue(exit_code: int, folder: Path | None = None, *, leads: bool) -> None:
    """Requeue the Slurm job of a stopped run; one rank does so, and the others wait for it.

    Args:
        leads: whether this rank, as the first to stop, does so at once. Any other rank, even
            rank 0, may be blocked in a collective, where it cannot handle the signal.
    """
    if SLURM is None or LAUNCHED or exit_code not in STOPPED or exit_code == EXIT_INTERRUPTED:
        return
    if is_sweep(GIVEN):
        log.warning("Slurm job %s is not queued again: a sweep is started anew", SLURM.name)
        return
    for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm repeats them as it ends the job
        signal.signal(number, signal.SIG_IGN)
    seconds = AWAITED_SECONDS + (SCONTROL_SECONDS if WORLD.rank else 0.0)
    if leads or not SLURM.await_requeue(folder, seconds=seconds):
        told = SLURM.requeue(warned=exit_code == EXIT_WARNED, folder=folder)
        if WORLD.rank == 0:
            log.warning("%s", told)
        else:  # ranks above 0 do not log
            sys.stdout.write(f"{told}\n")


def leave_word(failure: Failure, *, folder: Path) -> None:
    """Report and record a failure, unless another rank was first."""
    if failure.claim(folder) and not LAUNCHED:
        failure.record(folder)
        complain(failure.reason)
    if LAUNCHED:  # else the daemon may serve other jobs of the user
        end_daemon()


def open_record(cfg: DictConfig, folder: Path) -> RunRecord:
    """The run's results.json, with status `running`."""
    config = plain(cfg)
    seed = cfg.seed if isinstance(cfg.seed, int) else None
    name = str(cfg.name)
    record = RunRecord.start(folder, name=name, command=COMMAND, seed=seed, config=config)
    if cfg.resume:
        from xray_lightning.training.resume import refuse_other_configuration

        earlier = RunRecord.load(folder)
        if earlier is None:
            raise UserError(f"resume={cfg.resume}: {folder / 'results.json'} cannot be read")
        if not LAUNCHED:  # the process that started the ranks has compared them
            given = {key_of(arg) for arg in GIVEN}
            was = earlier.content["config"]
            refuse_other_configuration(folder, was=was, now=config, given=given)
        record.content["history"] = earlier.content["history"]
    if SLURM is not None:
        record.content["environment"]["slurm"] = asdict(SLURM)
    if WORLD.rank == 0:
        try:
            if not LAUNCHED and not hold(folder / LOG_NAME):
                raise UserError(
                    f"run folder {folder}: another process trains this run; wait for it, or stop it"
                )
            (folder / Failure.FILE_NAME).unlink(missing_ok=True)
            if not cfg.resume and not LAUNCHED:  # an earlier run's, which resume= would go on from
                (folder / LAST_CHECKPOINT).unlink(missing_ok=True)
            record.write()
            if SLURM is not None and not LAUNCHED:
                SLURM.note(COMMAND, folder)
        except OSError as error:
            raise UserError(
                f"run folder {folder} cannot be written ({error}); choose another with "
                "hydra.run.dir=FOLDER"
            ) from error
    return record


def refuse_bad_values(cfg: DictConfig) -> None:
    """Check values that would otherwise be refused late, without their key, or not at all.

    Raises:
        UserError: the first value that is of the wrong type, or out of range.
    """
    check_whole("seed", cfg.seed, least=0, most=2**32 - 1)  # as numpy takes it
    check_whole("trainer.max_epochs", cfg.trainer.max_epochs, least=1)
    check_whole("trainer.accumulate_grad_batches", cfg.trainer.accumulate_grad_batches, least=1)
    for key in SWITCHES:
        value = OmegaConf.select(cfg, key, default=False)  # not every option of a group has it
        if not isinstance(value, bool) and (value is not None or key != "model.allow_seen_test"):
            raise UserError(f"{key}={value} must be true or false")
    rate = cfg.optimizer.lr
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < float("inf"):
        raise UserError(f"optimizer.lr={rate} must be a number of at least 0")


def launch_command(cfg: DictConfig, strategy: "Strategy") -> list[str] | None:
    """The command that starts this job's ranks; None when this process is to do the work."""
    devices = 0
    if cfg.trainer.accelerator != "cpu" and not LAUNCHED:
        from xray_lightning.hardware import choose_accelerator, cuda_devices

        choose_accelerator(cfg.trainer.accelerator)
        devices = cuda_devices()
    launcher = strategy.launch_command(WORLD, devices=devices)
    if launcher is None:
        return None
    config = HydraConfig.get()
    command = job_command(
        str(Path(__file__).resolve()),
        config_name=config.job.config_name,
        overrides=config.overrides.task,
        folder=config.runtime.output_dir,
        options=config_options(config),
    )
    return [*launcher, *command, "hydra.output_subdir=null"]  # this process has written .hydra


def config_options(config: Any) -> list[str]:
    """Options of Hydra's own that say where configuration files are, which the ranks need too."""
    sources = config.runtime.config_sources
    options = [f"--config-dir={one.path}" for one in sources if one.provider == "command-line"]
    if config.searchpath:
        options.append(f"hydra.searchpath=[{','.join(map(quoted, config.searchpath))}]")
    return options


def rank_environment(started: float) -> dict[str, str]:
    """The environment of the ranks: this process's, and what they need."""
    extra = {
        "XRAY_LAUNCHED": "1",
        "XRAY_STARTED": f"{started} {boot_id()}",
        "XRAY_COMMAND": COMMAND,
        "PYTHONUNBUFFERED": "1",  # MPICH passes output through pipes
    }
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # containers run as root; Open MPI refuses
        extra |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # More ranks than cores are the caller's choice. Open MPI 5, then 4.
    extra["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    extra["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    return {**os.environ, **extra}


def build(cfg: DictConfig, record: RunRecord, strategy: "Strategy", *, started: float) -> "Job":
    """Every object that the run is made of."""
    from lightning.pytorch import seed_everything

    from xray_lightning.data.transforms import Normalize
    from xray_lightning.evaluation.grouping import further_columns
    from xray_lightning.models.backbones import OF_FIRST_WEIGHTS
    from xray_lightning.models.classifier import Classifier
    from xray_lightning.models.fine_tuning import FineTuning
    from xray_lightning.progress import display, unseen
    from xray_lightning.training.fit import Job

    # Lightning's warnings go to our log alone: on import it sets its own levels and handlers.
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    seed_everything(cfg.seed, verbose=False)
    judge = make(cfg, "evaluation")
    data = make(
        cfg,
        "data",
        further_columns=further_columns(judge.evaluator.subgroups),
        progress=display if WORLD.rank == 0 else unseen,
    )
    speed = make(cfg, "speed")
    model = plain(cfg.model)
    for key in ("_target_", *OF_FIRST_WEIGHTS):  # not needed to build it again
        model.pop(key, None)
    classifier = Classifier(
        backbone=make(cfg, "model", findings=data.findings),
        loss=make(cfg, "loss"),
        normalize=Normalize(data.normalize),
        findings=data.findings,
        optimizer=make(cfg, "optimizer"),
        scheduler=make(cfg, "scheduler") or None,
        rate_scaling=make(cfg, "lr_scaling") or None,
        augment=make(cfg, "augment") or None,
        mixing=make(cfg, "mixing") or None,
        growth=make(cfg, "growth") or None,
        recipe={
            "model": model,
            "normalize": cfg.data.normalize,
            "image_size": cfg.data.image_size,
        },
        channels_last=speed.channels_last,
        fine_tuning=FineTuning(**plain(cfg.fine_tuning)),
    )
    return Job(
        record=record,
        world=WORLD,
        started=started,
        data=data,
        classifier=classifier,
        trainer=make(cfg, "trainer"),
        strategy=strategy,
        speed=speed,
        judge=judge,
        callbacks=[callback for callback in make(cfg, "callbacks").values() if callback],
        loggers=list(make(cfg, "logger").values()),
        stages=[cfg.stages] if isinstance(cfg.stages, str) else list(cfg.stages),
        ckpt_path=Path(cfg.ckpt_path) if cfg.ckpt_path else None,
        resume=bool(cfg.resume),
        allow_seen_test=bool(cfg.model.allow_seen_test),
        on_lost=partial(leave_word, folder=record.folder),
        hyperparameters=hyperparameters(cfg),
    )


def make(cfg: DictConfig, key: str, **further: Any) -> Any:
    """Instantiate one group of the configuration; errors of the objects become one-line errors."""
    if cfg.get(key) is None:
        raise UserError(f"{key}=null: a run needs it; give one of its options")
    try:
        return instantiate(cfg[key], _convert_="all", **further)
    except InstantiationException as error:
        if isinstance(error.__cause__, XrayError):
            raise error.__cause__ from error
        raise UserError(f"{key}: {one_line(error.__cause__ or error)}") from error


def plain(node: DictConfig) -> dict[str, Any]:
    """A node of the configuration as a dict, its interpolations resolved."""
    values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    return values


def hyperparameters(cfg: DictConfig) -> dict[str, Any]:
    """The settings that tell runs of a sweep apart, for TensorBoard's HPARAMS tab.

    The tab sorts them by name, those that differ between runs first, and shows only five at first:
    so the main ones have capitalised names, which sort first.
    """
    choices = HydraConfig.get().runtime.choices
    return {
        "Learning rate": cfg.optimizer.lr,
        "Model": choices["model"],
        "Precision": cfg.trainer.precision,
        "Scheduler": choices["scheduler"],
        "Strategy": choices["strategy"],
        **{group: choices[group] for group in ("data", "augment", "mixing", "loss", "optimizer")},
        "max_epochs": cfg.trainer.max_epochs,
        "seed": cfg.seed,
        **{key: cfg.data[key] for key in ("batch_size", "image_size", "normalize", "sampler")},
    }


def complain(reason: str) -> None:
    sys.stderr.write(f"xray: error: {reason}\n")


def not_installed(option: str) -> str:
    """The error line of an option in PLUGINS that Hydra does not find."""
    group, _, choice = option.rpartition("/")
    return f"{group}={choice} needs a plugin of Hydra: uv pip install {PLUGINS[option]}"


def main() -> int:
    """Run the command line; returns the exit code."""
    if WORLD.launcher != "none":
        die_with_parent()
    OmegaConf.register_new_resolver("run_folder", run_folder)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, handled below
    interruptible()
    try:
        sys.argv[1:] = arguments(sys.argv[1:])
        job()
    except FAILURES as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone(sys.stdout):
            return EXIT_RUN_FAILED  # the reader has closed the pipe, as in `--help | head`
        if "XRAY_DEBUG" in os.environ:
            traceback.print_exception(error)
        cause = cause_of(error)
        if WORLD.rank == 0:
            missing = getattr(cause, "missing_cfg_file", None)
            complain(not_installed(missing) if missing in PLUGINS else one_line(cause))
        if isinstance(cause, InterruptedRunError):  # before the job had its folder
            requeue(cause.exit_code, leads=WORLD.rank == 0)
            return cause.exit_code
        own = error.exit_code if isinstance(error, XrayError) else EXIT_USER_ERROR
        return max(own, *exit_codes, 0)
    except ValueError as error:  # from Hydra, of a group that is set to no option's name
        if WORLD.rank == 0:
            nulls = " ".join(arg for arg in GIVEN if arg.endswith("=null"))
            complain(f"{nulls or 'the command line'}: {one_line(error)}")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return max(exit_codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
