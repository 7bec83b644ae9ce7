"""Kill what writes files, and go on, a thousand times; from the repository's root:

    export PYTHONPATH=.:tests:tests/data
    python -m kills --json benchmarks/kills.json

Each operation is killed at every call that changes the disk, and the rest of the kills come in the
middle of a write. It exits with 1 if a file was corrupt, an operation could not be gone on with, or
a file was left behind after it.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import record
from kills.enumerated import kills_of
from kills.operations import OPERATIONS


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--only", choices=sorted(OPERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a fork does not survive OpenMP
    found: dict[str, Any] = {"seed": given.seed, "operations": {}}
    names = [given.only] if given.only else list(OPERATIONS)
    left = given.kills
    for place, name in enumerate(names):
        weights = [OPERATIONS[one].weight for one in names[place:]]
        share = left * weights[0] // sum(weights)
        with tempfile.TemporaryDirectory() as base:
            tally = kills_of(OPERATIONS[name], Path(base), most=share, seed=given.seed)
        left -= tally.kills
        found["operations"][name] = asdict(tally)
        sys.stdout.write(f"{name}: {tally}\n")
        sys.stdout.flush()
    table = table_of(found["operations"])
    if given.json:
        given.json.write_text(json.dumps(record("kills", table=table) | found, indent=1) + "\n")
    for row in table["rows"]:
        sys.stdout.write(f"{row}\n")
    *_, corrupt, not_gone_on, strays = table["rows"][-1]
    return 1 if corrupt or not_gone_on or strays else 0


def table_of(operations: dict[str, Any]) -> dict[str, Any]:
    """Title, columns, rows and notes, for the page of the benchmarks."""
    faults = ("corrupt", "not_gone_on", "strays")
    rows = [
        [name, one["calls"], one["kills"], *(len(one[fault]) for fault in faults)]
        for name, one in operations.items()
    ]
    totals = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    return {
        "title": "SIGKILL while files are written",
        "columns": ["operation", "calls", "kills", "corrupt", "not gone on", "left behind"],
        "rows": [*rows, ["all", *totals]],
        "notes": [
            "calls: those of the operation that change the disk. It is killed before each of them, "
            "in another process each time, and then in the middle of a write; a sweep, ten times "
            "as long, before a part of its calls.",
            "corrupt: a file that was neither the old one nor the new one. not gone on: the same "
            "command did not end as an operation that nobody killed, a run bit for bit. left "
            "behind: files that were still there after it.",
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
