"""Model card (model_card.md): its figures and YAML head, from what a run recorded."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from xray_lightning.deploy.model_card.info import (
    INTENDED,
    OUT_OF_SCOPE,
    ModelInfo,
    data_set,
    info_of_run,
    limits,
    model_terms,
    split_of,
    training_terms,
    version_terms,
    without_folders,
)
from xray_lightning.deploy.model_card.model_tables import (
    findings_table,
    fitted_table,
    headline_table,
    positives_table,
    splits_table,
    subgroups_table,
)
from xray_lightning.errors import printable
from xray_lightning.files import write_atomically
from xray_lightning.html import markdown
from xray_lightning.html.page import NOTICE
from xray_lightning.models.checkpoint import BEST
from xray_lightning.report import wording
from xray_lightning.runs.folder import Run
from xray_lightning.runs.schema import Interval, TestMetrics
from xray_lightning.terminal import decimal, interval, readable

FILE_NAME = "model_card.md"
LIBRARY = "xray-lightning"  # which loads it; Lightning itself is none of the Hub's libraries
TASK = "image-classification"
_TASK_NAME = "Multi-label classification of chest X-rays"
_TAGS = ("chest-x-ray", "radiology", "multi-label-classification")

Metric = dict[str, Any]


def write_card(folder: Path) -> Path:
    """Write the card of a run into its folder, whole or not at all.

    Raises:
        UserError: results.json or the checkpoint cannot be read.
        OSError: the card cannot be written.
    """
    path = folder / FILE_NAME
    write_atomically(path, card(info_of_run(folder)))
    return path


def card(info: ModelInfo) -> str:
    """The whole text of the card."""
    run, test, checkpoint = info.run, info.test, info.checkpoint
    path = f"checkpoints/{BEST}" if checkpoint is None else _near(checkpoint.path)
    data_tables, test_tables = [], []
    if run is not None and run.sides:
        data_tables.append(splits_table(run))
        if any(split.positives for split in run.sides):
            data_tables.append(positives_table(run))
    if test is not None:
        test_tables.append(findings_table(test, wide=True))
        if test.subgroups:
            test_tables.append(subgroups_table(test.subgroups))
    command = "" if run is None else printable(without_folders(run.command))
    return markdown.rendered(
        "model_card.md.jinja",
        front_matter=Markup(front_matter(info)),
        name=info.name,
        notice=NOTICE,
        wording=wording,
        run=None if run is None else replace(run, split=split_of(run)),  # without its folder
        test=test,
        untested=info.untested,
        model_terms=model_terms(info),
        intended=INTENDED,
        out_of_scope=OUT_OF_SCOPE,
        training_terms=training_terms(info),
        data_set=None if run is None else data_set(run),
        data_tables=data_tables,
        headline=None if test is None else headline_table(test),
        test_tables=test_tables,
        fitted=None if checkpoint is None else fitted_table(checkpoint),
        calibration=None if checkpoint is None else checkpoint.calibration,
        limits=limits(info, of_data=False),
        python_path=Markup(json.dumps(path)),
        shell_path=Markup(shlex.quote(printable(path))),
        command=Markup(command),
        version_terms=version_terms(info),
        link=info.link,
    )


def _near(path: Path) -> str:
    """A checkpoint as it is called from its run folder, or beside it where it is in none."""
    return f"checkpoints/{path.name}" if path.parent.name == "checkpoints" else path.name


def front_matter(info: ModelInfo) -> str:
    """The head, its dashes included; every text in it is quoted as YAML needs."""
    checkpoint = info.checkpoint
    arch = checkpoint.arch if checkpoint else None
    engine = ("onnx",) if checkpoint and checkpoint.exported else ("pytorch", "lightning")
    content: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "tags": [*_TAGS, *engine, *([arch] if arch else [])],
    }
    if info.run is not None and info.test is not None:
        metrics = metrics_of(info.test)
        content["metrics"] = list(dict.fromkeys(metric["type"] for metric in metrics))
        content["model-index"] = [
            {"name": printable(info.name), "results": [_result(info.run, metrics)]}
        ]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---"


def _result(run: Run, metrics: list[Metric]) -> dict[str, Any]:
    return {
        "task": {"type": TASK, "name": _TASK_NAME},
        "dataset": {
            "type": printable(run.data) or "unknown",
            "name": printable(data_set(run).name),
            "config": printable(split_of(run)),
            "split": "test",
        },
        "metrics": metrics,
    }


def metrics_of(test: TestMetrics) -> list[Metric]:
    """Every figure that there is, to its last digit; its name says the interval and baseline."""
    accuracy = f"Label accuracy at 0.5; always negative {decimal(test.always_negative_accuracy)}"
    precision = "Average precision, macro"
    found = [
        _metric("roc_auc", test.auroc_macro, "AUROC, macro", test.auroc_macro_ci95),
        _metric(
            "average_precision",
            test.average_precision_macro,
            precision,
            test.average_precision_macro_ci95,
        ),
        _metric("brier_score", test.brier_macro, "Brier score, macro", test.brier_macro_ci95),
        _metric("accuracy", test.label_accuracy, accuracy, test.label_accuracy_ci95),
        *(
            _metric("roc_auc", row.auroc, f"AUROC, {readable(row.finding)}", row.auroc_ci95)
            for row in test.finding_rows
        ),
    ]
    return [metric for metric in found if metric["value"] is not None]


def _metric(kind: str, value: float | None, name: str, ends: Interval | None) -> Metric:
    said = "" if ends is None else f" (95 % interval {interval(ends)})"
    return {"type": kind, "value": value, "name": f"{name}{said}"}
