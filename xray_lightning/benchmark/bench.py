"""`xray bench`: everything between its options and its JSON."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xray_lightning.atomic import write_atomically
from xray_lightning.benchmark.arms import choose_arms, pairings
from xray_lightning.benchmark.machine import machine
from xray_lightning.benchmark.options import Options
from xray_lightning.benchmark.side_by_side import (
    FIRST_TOLERANCE,
    LATER_TOLERANCE,
    LOOSE_LATER_TOLERANCE,
    SideBySide,
    Told,
    worker_counts,
)
from xray_lightning.benchmark.summary import ratios, ratios_by_precision, summarise, table
from xray_lightning.benchmark.workload import CHECKED_STEPS, Workload, prepare, source_size
from xray_lightning.data.cache import threads
from xray_lightning.progress import live_bar, on_terminal
from xray_lightning.training.devices import choose_accelerator
from xray_lightning.training.results import finite
from xray_lightning.training.throughput import WARMUP_STEPS

STEPS = {"cpu": 7, "cuda": 300}
LOADING_ARMS = ("paper_workers", "timm")  # those that load in worker processes
MOST_SECONDS = 40.0


def bench(options: Options) -> dict[str, Any]:
    """Time the arms; write the JSON file, if one is asked for, and return its content.

    Raises:
        UserError: the data set, or an arm that was named, is not usable.
    """
    accelerator = choose_accelerator(options.accelerator)
    arms, skipped = choose_arms(options.arms, accelerator=accelerator)
    pairs = pairings(arms, options.precisions)
    with tempfile.TemporaryDirectory(prefix="xray-bench-") as name:
        workload = prepare(
            workload_of(options, accelerator),
            Path(name),
            images=options.images,
            steps=options.steps or STEPS[accelerator],
        )
        loading = [arm for arm in arms if arm.name in LOADING_ARMS][:1]
        trials = len(loading) * len(options.precisions) * len(worker_counts(threads()))
        with _shown(len(arms) + trials + options.repeats * len(pairs)) as tell:
            rounds = SideBySide(workload, Path(name), tell=tell)
            rounds.check_losses(arms)
            for arm in loading:
                rounds.tune_workers(arm, options.precisions)
            for _ in range(options.repeats):
                rounds.repeat(pairs)
        content = _content(options, workload, rounds, skipped)
    if options.json is not None:
        write_atomically(options.json, json.dumps(finite(content), indent=1) + "\n")
    return content


def workload_of(options: Options, accelerator: str) -> Workload:
    """What is asked for, before the data has been looked at."""
    return Workload(
        data=str(options.data.resolve()),
        split="",
        weights="",
        arch=options.model,
        image_size=options.image_size,
        batch_size=options.batch_size,
        accelerator=accelerator,
        threads=options.threads,
        epochs=1,
        steps_per_epoch=1,
        most_seconds=MOST_SECONDS,
    )


@contextmanager
def _shown(processes: int) -> Iterator[Told]:
    """A bar over the processes on a terminal, nothing in a log."""
    with live_bar(shown=on_terminal()) as bar:
        task = bar.add_task("preparing", total=processes, rate="")
        begun = -1

        def tell(what: str) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, description=what, completed=begun)

        yield tell


def _content(
    options: Options, workload: Workload, rounds: SideBySide, skipped: dict[str, str]
) -> dict[str, Any]:
    timed = rounds.timed
    arms = summarise(timed.raw)
    content: dict[str, Any] = {
        "kind": "bench",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": options.command,
        "machine": machine(workload.accelerator),
        "settings": {
            "model": workload.arch,
            "image_size": workload.image_size,
            "batch_size": workload.batch_size,
            "precisions": list(options.precisions),
            "accelerator": workload.accelerator,
            "threads": workload.threads or threads(),
            "repeats": options.repeats,
            "warmup_steps": WARMUP_STEPS,
            "timed_steps": workload.timed_steps,
            "epochs": workload.epochs,
            "train_images": workload.steps_per_epoch * workload.batch_size,
            "data": Path(workload.data).name,
            "source_size": source_size(workload),
            "most_seconds": workload.most_seconds,
            "checked_steps": CHECKED_STEPS,
            "loss_tolerance": [FIRST_TOLERANCE, LATER_TOLERANCE, LOOSE_LATER_TOLERANCE],
        },
        "arms": arms,
        "ratios": ratios(arms),
        "ratios_by_precision": ratios_by_precision(arms),
        "losses": timed.losses,
        "workers": timed.workers,
        "worker_trials": timed.trials,
        "skipped": skipped,
        "failed": timed.failed,
    }
    return content | {"table": table(content)}
