"""The head of a model card, as model hubs read it: YAML between two lines of dashes.

Its keys are those of the Hugging Face Hub's specification of model cards (modelcard.md of
huggingface/hub-docs). Of these, `license` and `datasets` are left out: a run records no licence of
its weights, and the Hub takes identifiers of its own data sets alone.
"""

from typing import Any

import yaml

from xray_lightning.deploy.about.facts import name_of, split_of
from xray_lightning.deploy.about.known import Known
from xray_lightning.deploy.about.tables import between, plain
from xray_lightning.deploy.about.use import data_set
from xray_lightning.errors import printable
from xray_lightning.evaluation.record import Interval, Run, TestMetrics
from xray_lightning.page.frame import decimal

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
