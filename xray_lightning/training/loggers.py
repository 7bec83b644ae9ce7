"""Loggers beside TensorBoard: CSV, MLflow and Weights & Biases, with one run for each job.

They are Lightning's own. What is added: a run is opened on rank 0 alone, when the job begins; a
resumed job goes on with its run; it is closed at the job's end, however that comes; and a logger
that fails ends no training.
"""

import csv
import importlib.util
import json
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from xray_lightning.errors import InterruptedRunError, UserError, one_line
from xray_lightning.files import check_writable, write_atomically

log = logging.getLogger(__name__)

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"


class RunLogger(Logger):
    """One of Lightning's loggers, made when its run begins.

    Lightning's connect, or make files, where they are made: on every rank, and before a job may
    be refused.

    Args:
        folder: the run folder.
        arguments: of Lightning's logger.

    Raises:
        UserError: its packages are not installed.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""  # of the project, with these packages
    outlives: ClassVar[bool] = False  # whether its runs stay open when their process is killed

    def __init__(self, *, folder: str, **arguments: Any) -> None:
        if any(importlib.util.find_spec(name) is None for name in self.packages):
            raise UserError(
                f"logger={self.extra} needs packages that are not installed: uv sync --extra "
                f"{self.extra}, or pip install 'xray-lightning[{self.extra}]'"
            )
        self.folder = Path(folder)
        self._arguments = arguments
        self._lost = False

    @abstractmethod
    def begin(self, *, resume: bool) -> None:
        """Open the job's run: a new one, or where it is resumed the earlier one."""

    @abstractmethod
    def end(self, status: str) -> None:
        """Close it as `finished`, `failed` or `interrupted`."""

    @abstractmethod
    def log_figure(self, key: str, figure: Any) -> None:
        """Add a matplotlib figure."""

    def attempt(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call the logger; at its first error say so, and ask nothing more of it."""
        if self._lost:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - of a package, a server, a disk: curves end no run
            self._lost = True
            log.warning("%s: %s. The run goes on without it", type(self).__name__, one_line(error))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.attempt(super().log_metrics, dict(metrics), step)  # type: ignore[safe-super]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_hyperparams, params)  # type: ignore[safe-super]

    def save(self) -> None:
        self.attempt(super().save)

    def finalize(self, status: str) -> None:
        """Nothing: Lightning calls it at the end of the fit, and a job ends after its test."""

    @property
    def _kept(self) -> Path:
        return self.folder / f".{self.extra}_run"

    def kept_id(self, *, open_only: bool = False) -> str | None:
        """ID of the run that the run folder has in this logger; None where there is none."""
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            return str(kept["id"]) if kept["open"] or not open_only else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_id(self, run_id: str, *, is_open: bool) -> None:
        write_atomically(self._kept, json.dumps({"id": run_id, "open": is_open}) + "\n")


class CsvRun(RunLogger, CSVLogger):  # type: ignore[misc]
    """`csv/metrics.csv` and `csv/hparams.yaml` of the run folder."""

    def begin(self, *, resume: bool) -> None:
        given = {"save_dir": str(self.folder), "name": "csv", "version": "", **self._arguments}
        CSVLogger.__init__(self, **given)
        check_writable(Path(self.log_dir), key=type(self).__name__)
        if not resume:
            (Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE).unlink(missing_ok=True)
        self._experiment = _AppendingWriter(self.log_dir)

    def end(self, status: str) -> None:
        self.save()

    def log_figure(self, key: str, figure: Any) -> None:
        self.attempt(figure.savefig, Path(self.log_dir) / f"{key}.png")


class _AppendingWriter(ExperimentWriter):
    """Lightning's deletes the rows that a resumed run has already."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class MlflowRun(RunLogger, MLFlowLogger):  # type: ignore[misc]
    """A run of MLflow, its store a server or an SQLite file.

    Without a `tracking_uri` it is MLFLOW_TRACKING_URI's, or one file for all runs in `runs`.
    """

    DEFAULT_URI: ClassVar[str] = "sqlite:///runs/mlflow.db"
    STATUS: ClassVar = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
    # So that a server that is gone costs seconds, not minutes; and no usage reports.
    ENVIRONMENT: ClassVar = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }

    packages = ("mlflow", "sqlalchemy", "alembic")
    extra = "mlflow"
    outlives = True

    def begin(self, *, resume: bool) -> None:
        for name, value in self.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # each try of a server that is gone
        given = dict(self._arguments)
        uri = given.pop("tracking_uri", None)
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or self.DEFAULT_URI
        with _own_store(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what MLflow calls of SQLAlchemy is deprecated
            MLFlowLogger.__init__(self, tracking_uri=uri, **given)
            run_id = self.kept_id() if resume else None
            if run_id is not None and self._is_there(run_id):
                self._run_id = run_id
                self._mlflow_client.update_run(run_id, status="RUNNING")
            else:
                self._make_experiment(uri)
            self.keep_id(str(self.run_id), is_open=True)

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow_client.get_run(run_id)
        except MlflowException:  # of another store than this, or deleted
            return False
        return True

    def _make_experiment(self, uri: str) -> None:
        """Make the experiment, if it is not there: Lightning would warn of it."""
        if self._mlflow_client.get_experiment_by_name(self._experiment_name) is None:
            path = _sqlite_file(uri)
            if path is not None and self._artifact_location is None:
                artifacts = path.with_name(f"{path.stem}_artifacts").absolute()
                self._artifact_location = artifacts.as_uri()
            self._mlflow_client.create_experiment(
                self._experiment_name, artifact_location=self._artifact_location
            )

    def end(self, status: str) -> None:
        self.attempt(MLFlowLogger.finalize, self, self.STATUS[status])
        if not self._lost:
            self.keep_id(str(self.run_id), is_open=False)

    def log_figure(self, key: str, figure: Any) -> None:
        self.attempt(self._mlflow_client.log_figure, self.run_id, figure, f"{key}.png")


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def _own_store(uri: str) -> Iterator[None]:
    """An SQLite store to ourselves: two jobs at once must not both make its tables."""
    path = _sqlite_file(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock") if path is not None else nullcontext():
        yield


class WandbRun(RunLogger, WandbLogger):
    """A run of Weights & Biases, in `wandb` of the run folder until it is uploaded."""

    EXIT_CODE: ClassVar = {FINISHED: 0, FAILED: 1, INTERRUPTED: 130}

    packages = ("wandb",)
    extra = "wandb"

    def begin(self, *, resume: bool) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own, to its makers
        # No lines of its own between ours, and no copy of the terminal: train.log has it.
        settings = {"silent": True, "console": "off", **self._arguments.get("settings", {})}
        check_writable(self.folder, key=type(self).__name__)
        run_id = self._arguments.get("id") or (self.kept_id() if resume else None)
        given = {**self._arguments, "settings": settings, "id": run_id}
        WandbLogger.__init__(self, save_dir=str(self.folder), **given)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it wherever it is given
        self.keep_id(self.experiment.id, is_open=True)
        self._unlink()

    def _unlink(self) -> None:
        """Remove W&B's link to its log elsewhere: a run folder that leads outside is refused."""
        for link in self.folder.glob("wandb/*/logs/debug-core.log"):
            if link.is_symlink():
                link.unlink(missing_ok=True)

    def end(self, status: str) -> None:
        self.attempt(self.experiment.finish, exit_code=self.EXIT_CODE[status])
        self.keep_id(str(self.version), is_open=False)
        self._unlink()

    def log_figure(self, key: str, figure: Any) -> None:
        self.attempt(self.log_image, key, [figure])


@contextmanager
def open_loggers(
    loggers: Iterable[Logger],
    *,
    folder: Path,
    leads: bool,
    resume: bool = False,
    hyperparameters: Mapping[str, Any],
) -> Iterator[list[Logger]]:
    """Those loggers that can be opened; one that cannot is told in a warning, and the run goes on.

    All are closed as the job ends.

    Args:
        folder: the run folder.
        leads: whether this is the rank that writes: the others get none of the run loggers.
        hyperparameters: to log at once, so that a run that fails has them too.
    """
    opened = []
    for logger in loggers:
        try:
            if not isinstance(logger, RunLogger):
                place = getattr(logger, "log_dir", None) or logger.save_dir or folder
                check_writable(Path(place), key=type(logger).__name__)
            elif leads:
                logger.begin(resume=resume)
                logger.log_hyperparams({**hyperparameters, "run_folder": str(folder)})
            else:
                continue
            opened.append(logger)
        except Exception as error:  # noqa: BLE001 - of a package, a server, a disk
            if leads:
                name, told = type(logger).__name__, one_line(error)
                told = told if isinstance(error, UserError) else f"{name}: {told}"
                log.warning("%s. The run goes on without it", told)
    status = FAILED
    try:
        yield opened
        status = FINISHED
    except (InterruptedRunError, KeyboardInterrupt):
        status = INTERRUPTED
        raise
    finally:
        for logger in opened:
            if isinstance(logger, RunLogger):
                logger.end(status)


def close_left_runs(loggers: Sequence[Logger], *, status: str) -> None:
    """Close what a failed job's ranks have left open: rank 0 may have been killed with the rest."""
    for logger in loggers:
        if isinstance(logger, RunLogger) and logger.outlives and logger.kept_id(open_only=True):
            try:
                logger.begin(resume=True)
                logger.end(status)
            except Exception as error:  # noqa: BLE001 - the job's own failure is what matters
                log.warning("%s: %s", type(logger).__name__, one_line(error))
