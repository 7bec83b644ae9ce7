"""What a second MPI rank brings: one rank and two, with one CPU thread each, beside two threads.

    python -m benchmarks.mpi_scaling --data data/nih --repeats 5 --json mpi_scaling.json

Every turn runs train.py once for each arm, whole; the rates are results.json's steady images/s.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import record
from xray_lightning.files import write_atomically

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
ARMS = {
    "one rank, one thread": ["strategy=single", "speed.threads=1"],
    "two ranks, one thread each": ["strategy=mpi", "strategy.processes=2", "speed.threads=1"],
    "one rank, two threads": ["strategy=single", "speed.threads=2"],
}
RATIOS = {
    "two ranks to one": ("two ranks, one thread each", "one rank, one thread"),
    "two ranks to two threads": ("two ranks, one thread each", "one rank, two threads"),
}


def main() -> None:
    options = arguments()
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        common = [
            *("data=nih", f"data.root={options.data.resolve()}", "accelerator=cpu"),
            *(f"data.cache_dir={folder}/cache", f"data.batch_size={options.batch_size}"),
            *("stages=[fit]", "logger=none", "trainer.max_epochs=1", "name=mpi_scaling"),
            *(f"+trainer.limit_train_batches={options.steps}", "+trainer.limit_val_batches=1"),
            *options.overrides,
        ]
        for turn in range(options.repeats):
            order = list(ARMS)[:: -1 if turn % 2 else 1]
            rates = {arm: rate([*common, *ARMS[arm]], cwd=folder) for arm in order}
            turns.append({arm: rates[arm] for arm in ARMS})
            sys.stderr.write(f"turn {turn}: {turns[-1]}, load {os.getloadavg()[0]:.1f}\n")
    report(turns, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder in NIH's layout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14, help="of a run; the first 5 do not count")
    parser.add_argument("--batch-size", type=int, default=32, help="over all ranks")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="of train.py, such as precision=bf16-mixed")
    return parser.parse_args()


def rate(overrides: list[str], *, cwd: str) -> float:
    """Steady images/s of one run of train.py."""
    runs = Path(cwd) / "runs"
    before = set(runs.glob("*"))
    subprocess.run([sys.executable, TRAIN, *overrides], cwd=cwd, check=True, stdout=sys.stderr)
    (folder,) = set(runs.glob("*")) - before
    timing = json.loads((folder / "results.json").read_text())["timing"]
    return float(timing["steady_images_per_second"])


def report(turns: list[dict[str, float]], options: argparse.Namespace) -> None:
    measured = {arm: [turn[arm] for turn in turns] for arm in ARMS}
    measured |= {name: [turn[a] / turn[b] for turn in turns] for name, (a, b) in RATIOS.items()}
    rows = [
        [name, *(f"{value:.2f}" for value in (statistics.median(got), min(got), max(got)))]
        for name, got in measured.items()
    ]
    title = f"MPI ranks on one machine: ResNet18, 224 px, batch {options.batch_size} over all ranks"
    table = {
        "title": ", ".join([title, *options.overrides]),
        "columns": ["images/s; ratio within a turn", "median", "lowest", "highest"],
        "rows": rows,
        "notes": [f"{len(turns)} turns of whole runs of train.py, in alternating order."],
    }
    content = record("mpi_scaling", table=table) | {"turns": turns}
    write_atomically(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
