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
    for key in ("corrupt", "not_gone_on", "strays"):
        found[key] = sum(len(one[key]) for one in found["operations"].values())
    found["kills"] = sum(one["kills"] for one in found["operations"].values())
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{found['kills']} kills\n")
    return 1 if found["corrupt"] or found["not_gone_on"] or found["strays"] else 0


if __name__ == "__main__":
    sys.exit(main())
