"""Model card (model_card.md): its text, tables and YAML head, from what a run recorded."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from xray_lightning.deploy.model_card.info import (
    INTENDED,
    OUT_OF_SCOPE,
    Facts,
    Known,
    data_set,
    limits,
    model_facts,
    name_of,
    of_run,
    split_of,
    training_facts,
    version_facts,
    without_folders,
)
from xray_lightning.deploy.model_card.tables import (
    findings_table,
    fitted_table,
    headline_table,
    positives_table,
    sides_table,
    subgroups_table,
)
from xray_lightning.errors import printable
from xray_lightning.files import write_atomically
from xray_lightning.html.page import NOTICE, decimal
from xray_lightning.models.checkpoint import BEST
from xray_lightning.report import wording as words
from xray_lightning.report.tables import Table, between, plain
from xray_lightning.report.write import bullets, escaped, pipe_table
from xray_lightning.runs.folder import Run
from xray_lightning.runs.schema import Interval, TestMetrics

LIBRARY = "xray-lightning"  # which loads it; Lightning itself is none of the Hub's libraries
TASK = "image-classification"
_TASK_NAME = "Multi-label classification of chest X-rays"
_TAGS = ("chest-x-ray", "radiology", "multi-label-classification")

Metric = dict[str, Any]


def front_matter(known: Known) -> str:
    """The head, its dashes included; every text in it is quoted as YAML needs."""
    facts = known.checkpoint
    arch = facts.arch if facts else None
    engine = ("onnx",) if facts and facts.exported else ("pytorch", "lightning")
    content: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "tags": [*_TAGS, *engine, *([arch] if arch else [])],
    }
    if known.run is not None and known.test is not None:
        figures = metrics_of(known.test)
        content["metrics"] = list(dict.fromkeys(figure["type"] for figure in figures))
        content["model-index"] = [
            {"name": printable(name_of(known)), "results": [_result(known.run, figures)]}
        ]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def _result(run: Run, figures: list[Metric]) -> dict[str, Any]:
    return {
        "task": {"type": TASK, "name": _TASK_NAME},
        "dataset": {
            "type": printable(run.data) or "unknown",
            "name": printable(data_set(run).name),
            "config": printable(split_of(run)),
            "split": "test",
        },
        "metrics": figures,
    }


def metrics_of(test: TestMetrics) -> list[Metric]:
    """Every figure that there is, to its last digit; its name says the interval and baseline."""
    found = [
        _metric("roc_auc", test.auroc, "AUROC, macro", test.auroc_ci95),
        _metric(
            "average_precision",
            test.average_precision,
            "Average precision, macro",
            test.average_precision_ci95,
        ),
        _metric("brier_score", test.brier, "Brier score, macro", test.brier_ci95),
        _metric(
            "accuracy",
            test.label_accuracy,
            f"Label accuracy at 0.5; always negative {decimal(test.always_negative)}",
            test.label_accuracy_ci95,
        ),
    ]
    found += [
        _metric("roc_auc", row.auroc, f"AUROC, {plain(row.finding)}", row.auroc_ci95)
        for row in test.per_finding
    ]
    return [metric for metric in found if metric["value"] is not None]


def _metric(kind: str, value: float | None, name: str, interval: Interval | None) -> Metric:
    ends = "" if interval is None else f" (95 % interval {between(interval)})"
    return {"type": kind, "value": value, "name": f"{name}{ends}"}


FILE_NAME = "model_card.md"
_LICENCE = "not recorded for the weights; the code of xray-lightning is under Apache-2.0"


def write_card(folder: Path) -> Path:
    """Write the card of a run into its folder, whole or not at all.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
        OSError: the card cannot be written.
    """
    path = folder / FILE_NAME
    write_atomically(path, card(of_run(folder)))
    return path


def card(known: Known) -> str:
    """The whole text of the card."""
    run = known.run
    parts = [
        front_matter(known),
        f"# {escaped(name_of(known)) or 'Model'}",
        f"**{NOTICE}**",
        *([] if run is None else [escaped(words.summary(_public(run)))]),
        "## Model details",
        _facts([*model_facts(known), ("Licence", _LICENCE)]),
        "## Intended use",
        escaped(INTENDED),
        "## Out of scope",
        bullets(OUT_OF_SCOPE),
        "## Training data",
        *_training_data(known),
        "## Evaluation",
        *_evaluation(known),
        *_operating_points(known),
        "## Limits and biases",
        bullets(limits(known, of_data=False)) or "None is known.",
        "## How to use",
        _usage(known),
        "## Reproduce",
        *_reproduce(known),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _public(run: Run) -> Run:
    """The run with no folder of the machine in its name of the split."""
    return replace(run, split=split_of(run))


def _facts(facts: Facts) -> str:
    return "\n".join(f"- **{term}:** {escaped(value)}" for term, value in facts)


def _table(table: Table, *, level: int = 3) -> list[str]:
    return [f"{'#' * level} {table.title}", pipe_table(table), bullets(table.notes)]


def _training_data(known: Known) -> list[str]:
    run = known.run
    parts = [_facts(training_facts(known))]
    if run is None:
        return parts
    about = data_set(run)
    parts.append(escaped(about.told))
    if run.sides:
        parts += _table(sides_table(run))
        if any(side.positives for side in run.sides):
            parts += _table(positives_table(run))
    if about.credit is not None:
        parts.append(f"Images and labels: {escaped(about.credit)}")
    return parts


def _evaluation(known: Known) -> list[str]:
    test = known.test
    if test is None:
        return [escaped(known.untested or "")]
    headline = headline_table(test)
    parts = [pipe_table(headline), bullets(headline.notes)]
    parts += _table(findings_table(test, wide=True))
    if test.subgroups:
        parts += _table(subgroups_table(test.subgroups))
    return parts


def _operating_points(known: Known) -> list[str]:
    facts, test = known.checkpoint, known.test
    said = [] if test is None else [words.operating_point(test)]
    table = None if facts is None else fitted_table(facts)
    if table is not None and facts is not None and facts.calibration is not None:
        images = words.counted(facts.calibration.images, "validation image")
        said.append(
            f"Calibrated, a probability p is sigmoid(slope x logit(p) + intercept), fitted by "
            f"{facts.calibration.method} on {images}. All figures above are of the raw p."
        )
    if not said and table is None:
        said = ["The checkpoint has neither operating points nor a calibration."]
    tables = [] if table is None else [pipe_table(table), bullets(table.notes)]
    return ["## Operating points and calibration", " ".join(map(escaped, said)), *tables]


def _usage(known: Known) -> str:
    path = f"checkpoints/{BEST}" if known.checkpoint is None else _near(known.checkpoint.path)
    return "\n".join(
        [
            "```python",
            "from xray_lightning import load_model",
            "",
            f"model = load_model({json.dumps(path)})",
            'found = model.predict(["a.png", "b.png"])  # or uint8 arrays (H, W)',
            "print(model.findings, found.probabilities, found.decisions)",
            "```",
            "",
            "```bash",
            f"xray predict {shlex.quote(printable(path))} images/ --out predictions.csv",
            "```",
        ]
    )


def _near(path: Path) -> str:
    """A checkpoint as it is called from its run folder, or beside it where it is in none."""
    return f"checkpoints/{path.name}" if path.parent.name == "checkpoints" else path.name


def _reproduce(known: Known) -> list[str]:
    run = known.run
    command = without_folders(run.command) if run is not None else ""
    shown = ["No command is known."]
    if command:
        shown = [
            f"    {printable(command)}",
            "Folders of the machine that it ran on are left out as `...`.",
        ]
    return [*shown, _facts(version_facts(known)), escaped(known.link)]
