"""Slurm launcher: each job of a sweep is a batch job, which goes on by itself after its time limit.

    python train.py -m seed=0,1,2 hydra/launcher=slurm hydra.launcher.sbatch.time=4:00:00

A batch job runs train.py's own command line. The released launcher (hydra-submitit-launcher) sends
a pickle of the function instead, in which a job of several tasks does not know of its step, and
waits by `sacct`, which not every cluster has.
"""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from xray_lightning.errors import EXIT_RUN_FAILED, UserError
from xray_lightning.runs.results_json import RunRecord
from xray_lightning.training.launch import exit_codes, job_command

log = logging.getLogger("xray")


class SlurmLauncher(Launcher):
    """Submits the jobs, and waits until all have left the queue.

    Args:
        sbatch: options of each job, such as `time: 4:00:00`; those that are None are left out.
        poll_seconds: how often the queue is looked at.
    """

    def __init__(self, *, sbatch: Mapping[str, Any], poll_seconds: float = 5.0) -> None:
        self._poll_seconds = poll_seconds
        self._options = [
            f"--{str(key).replace('_', '-')}={value}"
            for key, value in sbatch.items()
            if value is not None
        ]
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        numbers: dict[str, JobReturn] = {}
        state = Singleton.get_state()
        try:
            for place, overrides in enumerate(job_overrides, start=initial_job_idx):
                one = self._described([*overrides], place)
                number = self._submit(one)
                numbers[number] = one
                shown = " ".join(filter_overrides(overrides))
                log.info("#%d is Slurm job %s: %s", place, number, shown)
            Singleton.set_state(state)
            self._wait(set(numbers))
        except BaseException:  # the jobs stop with a checkpoint
            if numbers:
                subprocess.run(["scancel", *numbers], check=False, capture_output=True)
            raise
        for number, one in numbers.items():
            _settle(number, one)
        return [*numbers.values()]

    def _described(self, overrides: list[str], place: int) -> JobReturn:
        """A job before it runs: its configuration and its folder."""
        if self.config is None or self.hydra_context is None:
            raise RuntimeError("launch comes after setup")
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_id_for_{place}", place
        HydraConfig.instance().set_config(config)  # the folder's name asks it
        folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        return JobReturn(
            overrides=overrides,
            cfg=config,
            hydra_cfg=config,
            working_dir=str(folder.absolute()),
            task_name=str(config.hydra.job.name),
        )

    def _submit(self, one: JobReturn) -> str:
        """Submit a job; returns its number."""
        folder = Path(str(one.working_dir))
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--parsable", "--requeue", "--open-mode=append", f"--job-name={folder.name}"]
        options += [f"--output={folder}/slurm.out", *self._options]
        try:
            done = subprocess.run(
                ["sbatch", *options],
                input=f"#!/bin/bash\nexec srun --kill-on-bad-exit=1 {shlex.join(_command(one))}\n",
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise UserError(
                f"hydra/launcher=slurm finds no sbatch ({error.strerror}); start the sweep where "
                "Slurm is"
            ) from error
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise UserError(f"hydra.launcher.sbatch: {said}")
        return done.stdout.strip().partition(";")[0]  # the cluster's name may follow

    def _wait(self, numbers: set[str]) -> None:
        """Wait until none is in the queue, where also a job is that will be started again."""
        while True:
            sleep(self._poll_seconds)
            done = subprocess.run(
                ["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True
            )
            if not done.returncode and not numbers & {*done.stdout.split()}:
                return


def _command(one: JobReturn) -> list[str]:
    """The command line of a job alone, as train.py's own for its ranks."""
    config: Any = one.cfg
    command = job_command(
        os.path.abspath(sys.argv[0]),
        config_name=config.hydra.job.config_name,
        overrides=config.hydra.overrides.task,
        folder=one.working_dir,
    )
    return [sys.executable, *command]


def _settle(number: str, one: JobReturn) -> None:
    """Take over from its record how a job ended; as one in this process, it raises nothing."""
    one.status, one.return_value = JobStatus.COMPLETED, None
    record = RunRecord.load(Path(str(one.working_dir)))
    if record is not None and record.status in ("finished", "skipped"):
        exit_codes.append(0)
        return
    status = "has left no results.json" if record is None else f"is {record.status}"
    reason = f": {record.content['reason']}" if record and record.content["reason"] else ""
    log.warning("Slurm job %s %s%s; see %s/slurm.out", number, status, reason, one.working_dir)
    exit_codes.append(EXIT_RUN_FAILED)
