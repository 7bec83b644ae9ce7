"""Jobs of a sweep: which are still to do, how one is gone on with, and who decides it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from xray_lightning.errors import RunFailedError, UserError, XrayError, one_line
from xray_lightning.runs.sweep import LAST_CHECKPOINT
from xray_lightning.training.launch import quoted
from xray_lightning.training.strategies import World, share

_shared = count()


@dataclass(frozen=True)
class Job:
    """A run to launch: its number, which names its folder, and its overrides."""

    number: int
    overrides: list[str]


def parsed(
    arguments: Sequence[str],
    params: DictConfig | dict[str, Any] | None,
    *,
    context: HydraContext | None,
) -> list[Override]:
    """Overrides of hydra.sweeper.params and the command line, where a key in both has the latter's.

    Args:
        context: Hydra's, whose loader finds the options of `experiment=glob(paper_*)`.
    """
    texts = [f"{key!s}={value}" for key, value in (params or {}).items()]
    parser = OverridesParser.create(config_loader=context.config_loader if context else None)
    overrides = parser.parse_overrides([*texts, *arguments])
    return list({key_of(one): one for one in overrides}.values())


def key_of(override: Override) -> str:
    """The key that an override sets or adds."""
    return str(override.get_key_element().lstrip("+"))


def text_of(override: Override) -> str:
    """What an override gives its key, as it was written."""
    return str(override.input_line).partition("=")[2]


def split_by_kind(overrides: Sequence[Override]) -> tuple[list[str], list[Override]]:
    """The overrides that every trial shares, as text; and those of which each takes one value."""
    fixed = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
    return fixed, [one for one in overrides if one.is_sweep_override()]


def sweep_folder(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir))


def save_configuration(config: DictConfig, folder: Path) -> None:
    """Write multirun.yaml, as Hydra's own sweeper does."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")


def gone_on_with(overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides of a job whose folder is there already, but whose run has not finished.

    It resumes from its last checkpoint. A run without one begins anew in an empty folder.
    """
    if not (folder / LAST_CHECKPOINT).is_file():
        shutil.rmtree(folder)
        return [*overrides]
    # The resumed run writes its configuration itself, once it is not refused.
    return [*overrides, f"resume={quoted(folder)}", "hydra.output_subdir=null"]


def launch(launcher: Launcher, jobs: Sequence[Job]) -> None:
    """Launch jobs of any numbers, those in a row at once."""
    rows: list[list[Job]] = []
    for job in jobs:
        if rows and rows[-1][-1].number + 1 == job.number:
            rows[-1].append(job)
        else:
            rows.append([job])
    for row in rows:
        batch = [job.overrides for job in row]
        for done in launcher.launch(batch, initial_job_idx=row[0].number):
            _ = done.return_value  # raises what a job has raised


def decided(world: World, decide: Callable[[], Any]) -> Any:
    """What rank 0 decides, on every rank: under an mpirun of the user each sweeps for itself."""
    if world.size == 1:
        return decide()
    told: dict[str, Any] = {}
    if world.rank == 0:
        try:
            told["decided"] = decide()
        except Exception as error:  # noqa: BLE001 - the other ranks wait for an answer
            told["error"] = one_line(error)
            told["exit_code"] = error.exit_code if isinstance(error, XrayError) else 1
    told = json.loads(share(world, f"sweep/{next(_shared)}", json.dumps(told)))
    if "error" in told:
        raise (UserError if told["exit_code"] == UserError.exit_code else RunFailedError)(
            told["error"]
        )
    return told["decided"]
