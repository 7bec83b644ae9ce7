"""The process of one arm: `python -m xray_lightning.benchmark.process TASK ARM ...` writes a JSON.

Tasks: `check` gives the first losses, `trial` the rate of a few steps, `time` a whole run.
"""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from xray_lightning.atomic import write_atomically
from xray_lightning.errors import RunFailedError, XrayError, one_line
from xray_lightning.training.world import die_with_parent

TASKS = ("check", "trial", "time")


def main() -> int:
    options = _parser().parse_args()
    die_with_parent()  # a killed `xray bench` leaves nothing that goes on computing
    logging.captureWarnings(True)
    try:
        result = _do(options)
    except XrayError as error:
        sys.stderr.write(f"{one_line(error)}\n")
        return error.exit_code
    write_atomically(options.out, json.dumps(result))
    return 0


def _do(options: argparse.Namespace) -> dict[str, Any]:
    from xray_lightning.benchmark.arms import ARMS
    from xray_lightning.benchmark.workload import Workload

    workload = Workload.read(options.workload)
    if options.workers is not None:
        workload = replace(workload, workers=options.workers)
    switches = ARMS[options.arm].run
    if switches is not None:
        return _whole_run(options, workload, switches)

    from xray_lightning.benchmark import loop

    if options.task == "check":
        return {"losses": loop.check(workload, options.arm)}
    if options.task == "trial":
        return {"images_per_second": loop.trial(workload, precision=options.precision)}
    found = loop.measure(
        workload, options.arm, precision=options.precision, steps=workload.timed_steps
    )
    return _with_finite_loss(found)


def _whole_run(options: argparse.Namespace, workload: Any, switches: Any) -> dict[str, Any]:
    from xray_lightning.benchmark import own_run

    places = {
        "folder": options.folder,
        "cache_dir": options.cache_dir,
        "started": options.started,
    }
    if options.task == "check":
        return {"losses": own_run.check(workload, switches, **places)}
    return own_run.measure(workload, switches, precision=options.precision, **places)


def _with_finite_loss(found: dict[str, Any]) -> dict[str, Any]:
    if not abs(found["last_loss"]) < float("inf"):
        raise RunFailedError(f"the last loss is {found['last_loss']}: nothing was trained")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xray_lightning.benchmark.process")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("arm")
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--folder", type=Path, required=True, help="for the run folder")
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--started", type=float, default=monotonic(), help="in time.monotonic()")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
