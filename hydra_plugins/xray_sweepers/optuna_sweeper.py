"""Optuna's search as a sweeper of Hydra, over ask and tell.

    python train.py -m hydra/sweeper=optuna hydra.sweep.dir=runs/lr \\
        'optimizer.lr=tag(log,interval(1e-4,1e-2))' augment=none,light

The objective is the validation macro AUROC of the best epoch, as the trial's results.json has it.
Each trial is a run folder of the sweep's. The same command again goes on with the sweep, and the
same command beside it is a second worker.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.xray_sweepers._jobs import (
    Job,
    decided,
    launch,
    parsed,
    save_configuration,
    split_by_kind,
    sweep_folder,
)
from hydra_plugins.xray_sweepers._study import ConductedStudy
from xray_lightning.errors import UserError, check_whole
from xray_lightning.training.strategies import detect


class OptunaSweeper(Sweeper):
    """Asks Optuna for trials, launches them as jobs, and tells what came of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options
        self._launcher: Launcher | None = None
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config, self.hydra_context = config, hydra_context
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if self.config is None or self._launcher is None:
            raise RuntimeError("sweep comes after setup")
        _refuse_bad_options(self._options)
        fixed, swept = split_by_kind(
            parsed(arguments, self._options["params"], context=self.hydra_context)
        )
        if not swept:
            raise UserError(
                "hydra/sweeper=optuna has nothing to search; give a key a range, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))' or augment=none,light"
            )
        world, config = detect(), self.config
        study = ConductedStudy(
            self._options, sweep_folder(config), fixed=fixed, swept=swept, report=config.report
        )

        def begin() -> None:  # on rank 0 alone, as all that asks or tells the study
            self.validate_batch_is_legal(study.examples())
            study.open()
            save_configuration(config, study.folder)

        decided(world, begin)
        while jobs := decided(world, study.next_jobs):
            launch(self._launcher, [Job(number, texts) for number, texts in jobs])
            decided(world, partial(study.tell, [number for number, _ in jobs]))
        decided(world, study.end)


def _refuse_bad_options(options: Mapping[str, Any]) -> None:
    for key in ("n_trials", "n_jobs"):
        check_whole(f"hydra.sweeper.{key}", options[key], least=1)
    if options["seed"] is not None:
        check_whole("hydra.sweeper.seed", options["seed"], least=0, most=2**31)
    if options["direction"] != "maximize":
        raise UserError(
            f"hydra.sweeper.direction={options['direction']}: the objective is the validation "
            "macro AUROC, which is to be maximized"
        )
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "hydra/sweeper=optuna needs Optuna: uv pip install 'optuna>=5' (or the extra: "
            "xray-lightning[optuna])"
        ) from error
