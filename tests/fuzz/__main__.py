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
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results import record
from fuzz.fuzzers import FUZZERS
from fuzz.fuzzing import MEMORY, SLOWEST_ALLOWED, TAKEN, Figures, run


def keep_figures(path: Path, parser: str, seed: int, figures: Figures) -> None:
    """Add a run to the JSON, in the place of an earlier one of the same seed."""
    known: dict[str, Any] = json.loads(path.read_text())["parsers"] if path.exists() else {}
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
    table = table_of(dict(sorted(known.items())))
    command = "python -m fuzz PARSER --inputs N --seed N --json benchmarks/fuzz.json"
    content = record("fuzz", table=table, command=command) | {"parsers": known}
    path.write_text(json.dumps(content, indent=1) + "\n")


def table_of(parsers: dict[str, Any]) -> dict[str, Any]:
    """Title, columns, rows and notes, for the page of the benchmarks."""
    rows = []
    for name, one in parsers.items():
        runs, outcomes = one["runs"], Counter[str]()
        for seed in runs:
            outcomes.update(seed["outcomes"])
        taken = sum(n for word, n in outcomes.items() if word.startswith(TAKEN))
        refused = 1 - taken / one["inputs"]
        slowest, peak = (max(seed[key] for seed in runs) for key in ("slowest_seconds", "peak_mib"))
        cells = f"{one['inputs']:,}", one["failures"], f"{refused:.0%}", f"{slowest:.2f}", peak
        rows.append([name, *cells, one["inputs_per_processor_second"]])
    return {
        "title": "Spoiled inputs",
        "columns": [
            *("parser", "inputs", "failures", "refused", "slowest s", "peak MiB"),
            "inputs per processor second",
        ],
        "rows": rows,
        "notes": [
            "failures: an input that raised anything but the project's own error of one line, took "
            f"more than {SLOWEST_ALLOWED:g} s of a processor or {MEMORY >> 30} GiB of memory, "
            "wrote outside its folder, or was read as something that cannot be.",
            "refused: the share that was told to be damaged; the rest was read.",
        ],
    }


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
