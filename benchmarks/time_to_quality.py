"""Table of macro AUROC against minutes, one row for each recipe, as in DAWNBench.

    python -m benchmarks.time_to_quality runs/A runs/B runs/C --json benchmarks/time_to_quality.json

Runs of one recipe with different seeds are one row, named as the first of them (Coleman et al.,
"DAWNBench", NeurIPS 2017 workshop on ML systems). Nothing is trained here: the figures are those of
finished runs, which have to be of one machine and one test split to stand side by side.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import record, spread
from xray_lightning.errors import UserError, one_line
from xray_lightning.evaluation.compare import of_one_recipe
from xray_lightning.files import check_file, write_atomically
from xray_lightning.runs.run_folder import Run, read_run

COLUMNS = [
    *("recipe", "model", "px", "epochs", "test macro AUROC, each", "mean"),
    *("minutes, median", "shortest to longest", "threads"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--note", action="append", default=[], help="what else must be known")
    parser.add_argument("--earlier", type=Path, help="a JSON whose other recipes stay")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        if options.json:
            check_file(options.json, key="--json")
        runs = [read_run(folder) for folder in options.runs]
        content = time_to_quality(runs, options.note, earlier=options.earlier)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    text = json.dumps(content, indent=1) + "\n"
    sys.stdout.write(text)
    if options.json:
        write_atomically(options.json, text)


def time_to_quality(
    runs: Sequence[Run], further: Sequence[str] = (), *, earlier: Path | None = None
) -> dict[str, Any]:
    """The record of the recipes' scores and minutes, the shortest recipe first.

    Args:
        further: notes below the table.
        earlier: an earlier record, whose recipes with other names are kept.

    Raises:
        UserError: a run that has no test, or runs of several devices or test splits.
    """
    groups = of_one_recipe(runs)
    counted = [run for group in groups for run in group]
    for run in runs:
        if run not in counted or run.test is None or run.test.auroc_macro is None:
            raise UserError(f"{run.folder} is no finished training with a test macro AUROC")
        if run.timing.total is None:
            raise UserError(f"{run.folder} does not say how long it took")
    for key in ("device", "split_sha256"):
        if len(found := {str(getattr(run, key)) for run in runs}) > 1:
            raise UserError(f"the runs are of several kinds of {key}: {', '.join(sorted(found))}")
    recipes = [_recipe(group) for group in groups]
    images, test = (runs[0].images[split] for split in ("train", "test"))
    title = f"Time to quality: {images:,} training images, {test:,} test images"
    device = f"Device of all runs: {runs[0].device}."
    if earlier is not None:
        own = {recipe["name"] for recipe in recipes}
        before = _recipes_of(earlier, title=title, device=device)
        recipes += [recipe for recipe in before if recipe["name"] not in own]
    recipes.sort(key=lambda recipe: recipe["minutes"]["median"])
    table = {
        "title": title,
        "columns": COLUMNS,
        "rows": [_row(recipe) for recipe in recipes],
        "notes": [
            "Minutes of the whole process by results.json: packages, cache, training and test.",
            device,
            *further,
        ],
    }
    command = ["python", "-m", "benchmarks.time_to_quality", *(str(run.folder) for run in runs)]
    command += [] if earlier is None else ["--earlier", str(earlier)]
    content = record("time_to_quality", table=table, command=shlex.join(command))
    return content | {"recipes": recipes}


def _recipes_of(file: Path, *, title: str, device: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        table, recipes = content["table"], content["recipes"]
        alike = table["title"] == title and device in table["notes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no such record as --json writes: {one_line(error)}") from error
    if not alike:
        raise UserError(f"{file}: of other images or another device than these runs")
    return list(recipes)


def _recipe(group: Sequence[Run]) -> dict[str, Any]:
    first = group[0]
    scores = [run.test.auroc_macro for run in group if run.test]
    minutes = [run.timing.total / 60 for run in group if run.timing.total is not None]
    return {
        "name": first.name,
        "model": first.model,
        "image_size": first.settings["data.image_size"],
        "epochs": first.settings["trainer.max_epochs"],
        "threads": " or ".join(sorted({_threads(run) for run in group})),
        "seeds": [run.seed for run in group],
        "test_auroc_macro": scores,
        "mean": fmean(score for score in scores if score is not None),
        "minutes": spread(minutes),
    }


def _threads(run: Run) -> str:
    return str(run.settings.get("speed.threads") or "all")


def _row(recipe: dict[str, Any]) -> list[Any]:
    minutes = recipe["minutes"]
    return [
        *(recipe[key] for key in ("name", "model", "image_size", "epochs")),
        ", ".join(f"{score:.3f}" for score in recipe["test_auroc_macro"]),
        f"{recipe['mean']:.3f}",
        f"{minutes['median']:.1f}",
        f"{minutes['min']:.1f} to {minutes['max']:.1f}",
        recipe["threads"],
    ]


if __name__ == "__main__":
    main()
