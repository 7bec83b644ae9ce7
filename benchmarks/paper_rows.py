"""Collect the timings of finished runs into one file of measurements for this folder.

    python -m benchmarks.paper_rows RUNS FILE.json "COMMAND"

RUNS is a folder with run folders below it. The paper's own minutes stand beside ours in README.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import record
from xray_lightning.files import write_atomically

COLUMNS = [
    "run",
    "strategy",
    "precision",
    "epochs x images",
    "startup s",
    "cache s",
    "fit s",
    "steady images/s",
    "share waiting",
    "total s",
    "test AUROC",
]

KEPT = ("name", "seed", "timing", "history")


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def row(results: dict[str, Any]) -> list[str]:
    timing, environment = results["timing"], results["environment"]
    test = results["metrics"]["test"] or {}
    return [
        results["name"],
        environment["strategy"],
        environment["precision_used"],
        f"{len(results['history'])} x {results['data']['images']['train']}",
        *(number(timing[key], 2) for key in ("startup", "cache", "fit")),
        number(timing["steady_images_per_second"], 0),
        number(timing["data_wait_fraction"], 4),
        number(timing["total"], 1),
        number(test.get("auroc_macro"), 3),
    ]


def main(runs: Path, out: Path, command: str) -> int:
    found = [json.loads(path.read_text()) for path in sorted(runs.rglob("results.json"))]
    finished = [results for results in found if results["status"] == "finished"]
    if not finished:
        sys.stderr.write(f"{runs} holds no finished run\n")
        return 1
    accelerator = finished[0]["environment"]["accelerator"]
    table = {
        "title": f"The paper's rows, whole runs on {finished[0]['environment']['device']}",
        "columns": COLUMNS,
        "rows": [row(results) for results in finished],
        "notes": [
            "Fit holds training, a validation after each epoch, and checkpoints.",
            "Runs named _fast have the row's settings with bf16, the fused optimizer and "
            "CUDA graphs.",
            "Phantoms, so that the AUROC says only that the run has learned.",
            *(
                f"{results['name']} ended as {results['status']}: {results['reason']}"
                for results in found
                if results["status"] != "finished"
            ),
        ],
    }
    content = record("paper", table=table, command=command, accelerator=accelerator)
    content["runs"] = [{key: results[key] for key in KEPT} for results in finished]
    write_atomically(out, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
