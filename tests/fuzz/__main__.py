"""Run the fuzzer of a parser, from the repository's root:

    export PYTHONPATH=.:tests:tests/data
    python -m fuzz results --inputs 1000000 --json benchmarks/fuzz.json

It exits with 1 if an input failed. Runs of several seeds are kept beside each other in the JSON.
"""

import argparse
import json
import os
import resource
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz.fuzzers import FUZZERS
from fuzz.fuzzing import MEMORY, Figures, run


def keep_figures(path: Path, parser: str, seed: int, figures: Figures) -> None:
    """Add a run to the JSON, in the place of an earlier one of the same seed."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs = [one for one in known.get(parser, {}).get("runs", []) if one["seed"] != seed]
    runs.append({"seed": seed, **asdict(figures)})
    total = sum(one["inputs"] for one in runs)
    seconds = sum(one["processor_seconds"] for one in runs)
    known[parser] = {
        "inputs": total,
        "failures": sum(one["failures"] for one in runs),
        "inputs_per_processor_second": round(total / seconds, 1) if seconds else None,
        "runs": runs,
    }
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("parser", choices=sorted(FUZZERS))
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's and numpy's, of what is spoiled
    os.sync = lambda: None  # of all disks, after each archive
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    figures = run(
        FUZZERS[given.parser],
        keep=given.keep / given.parser,
        seed=given.seed,
        count=given.inputs,
        seconds=60 * given.minutes,
    )
    if given.json:
        keep_figures(given.json, given.parser, given.seed, figures)
    for key, value in asdict(figures).items():
        sys.stdout.write(f"{key}: {value}\n")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
