"""Loggers beside TensorBoard: CSV, MLflow and Weights & Biases, with one run for each job.

They subclass Lightning's loggers. What is added: a run is opened on rank 0 only, when the job
begins; a resumed job continues its run; the run is closed whether the job succeeds, fails or is
interrupted; and an error of a logger does not end the training.
"""

import csv
import importlib.util
import json
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
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
    """A Lightning logger whose constructor is deferred to `begin`.

    The constructors of Lightning's loggers connect to a server or create files: on every rank, and
    before the job's configuration has been checked.

    Args:
        folder: the run folder.
        arguments: keyword arguments of Lightning's logger.

    Raises:
        UserError: its packages are not installed.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""  # the project's extra (optional dependencies) with these packages
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
        """Open a new run for the job, or the earlier one if the job is resumed."""

    @abstractmethod
    def end(self, status: str) -> None:
        """Close it as `finished`, `failed` or `interrupted`."""

    @abstractmethod
    def log_figure(self, key: str, figure: Any) -> None:
        """Add a matplotlib figure."""

    def attempt(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call the logger; after its first error, which is logged as a warning, skip all calls."""
        if self._lost:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever fails in a logger, the run goes on
            self._lost = True
            log.warning("%s: %s. The run goes on without it", type(self).__name__, one_line(error))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.attempt(super().log_metrics, dict(metrics), step)  # type: ignore[safe-super]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_hyperparams, params)  # type: ignore[safe-super]

    def save(self) -> None:
        self.attempt(super().save)

    def finalize(self, status: str) -> None:
        """Do nothing: Lightning calls it after the fit, but the run stays open for the test."""

    @property
    def _kept(self) -> Path:
        return self.folder / f".{self.extra}_run"

    def kept_id(self, *, open_only: bool = False) -> str | None:
        """ID of the logger's run as stored in the run folder; or None; see `open_only`."""
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
    """Writer that keeps the rows of a resumed run; Lightning's deletes the file."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class MlflowRun(RunLogger, MLFlowLogger):  # type: ignore[misc]
    """An MLflow run, stored on a server or in an SQLite file.

    Without a `tracking_uri` the store is MLFLOW_TRACKING_URI, or else one file for all of `runs/`.
    """

    DEFAULT_URI: ClassVar[str] = "sqlite:///runs/mlflow.db"
    STATUS: ClassVar = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
    # An unreachable server should cost seconds, not minutes; and no telemetry is sent.
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
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # else it logs each retry
        given = dict(self._arguments)
        uri = given.pop("tracking_uri", None)
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or self.DEFAULT_URI
        with _own_store(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow calls deprecated SQLAlchemy functions
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
        except MlflowException:  # the run is in another store, or deleted
            return False
        return True

    def _make_experiment(self, uri: str) -> None:
        """Create the experiment if it does not exist: Lightning would warn of that."""
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
        self.attempt(self.keep_id, str(self.run_id), is_open=False)

    def log_figure(self, key: str, figure: Any) -> None:
        self.attempt(self._mlflow_client.log_figure, self.run_id, figure, f"{key}.png")


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def _own_store(uri: str) -> Iterator[None]:
    """Lock an SQLite store within the block: two jobs must not create its tables at once."""
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
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no crash reports to W&B
        # W&B prints nothing, and does not record the terminal, which train.log does.
        settings = {"silent": True, "console": "off", **self._arguments.get("settings", {})}
        check_writable(self.folder, key=type(self).__name__)
        run_id = self._arguments.get("id") or (self.kept_id() if resume else None)
        given = {**self._arguments, "settings": settings, "id": run_id}
        WandbLogger.__init__(self, save_dir=str(self.folder), **given)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it wherever it is given
        self.keep_id(self.experiment.id, is_open=True)
        self._unlink()

    def _unlink(self) -> None:
        """Remove W&B's symbolic link to a log outside: a resume refuses folders with such links."""
        for link in self.folder.glob("wandb/*/logs/debug-core.log"):
            if link.is_symlink():
                link.unlink(missing_ok=True)

    def end(self, status: str) -> None:
        self.attempt(lambda: self.experiment.finish(exit_code=self.EXIT_CODE[status]))
        with suppress(OSError):  # a full disk: the run goes on, as with any fault of a logger
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
    """Open the loggers, and yield those that could be opened; of the others, only warn.

    The `RunLogger`s are closed when the block ends.

    Args:
        folder: the run folder.
        leads: whether this is rank 0; the other ranks get no `RunLogger`.
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
    """Close the runs that a failed job's loggers left open, as where rank 0 was killed."""
    for logger in loggers:
        if isinstance(logger, RunLogger) and logger.outlives and logger.kept_id(open_only=True):
            try:
                logger.begin(resume=True)
                logger.end(status)
            except Exception as error:  # noqa: BLE001 - the job's own failure is what matters
                log.warning("%s: %s", type(logger).__name__, one_line(error))
