"""A run's predictions, one row an image, and its scores as a person reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from xray_lightning.findings import FINDINGS
from xray_lightning.models.classifier import Outputs


def prediction_table(
    table: pd.DataFrame,
    outputs: Outputs | None,
    *,
    side: str,
    findings: Sequence[str] = FINDINGS,
) -> pd.DataFrame:
    """One row an image: image, patient_id, split, prob_<Finding> and label_<Finding> of each.

    Then age, sex, view and follow_up, by which the evaluation forms subgroups.
    """
    if outputs is None or len(outputs.rows) != len(table):
        raise RuntimeError("the predictions are not one an image")
    rows = table.iloc[outputs.rows.numpy()]
    probabilities = outputs.probabilities.numpy()
    columns: dict[str, Any] = {
        "image": rows["image"].to_numpy(),
        "patient_id": rows["patient_id"].to_numpy(),
        "split": side,
    }
    columns |= {f"prob_{name}": probabilities[:, i] for i, name in enumerate(findings)}
    columns |= {f"label_{name}": rows[name].to_numpy(dtype=np.uint8) for name in findings}
    columns |= {name: rows[name].to_numpy() for name in ("age", "sex", "view", "follow_up")}
    return pd.DataFrame(columns)


def csv_of(predictions: pd.DataFrame) -> str:
    """The text of a predictions file, from which the same numbers can be read back.

    Probabilities are float32, which nine digits tell apart (IEEE 754).
    """
    return predictions.to_csv(index=False, float_format="%.9g")


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The table that ends a run: the headline, and each finding."""
    table = Table(
        title=f"Test: {metrics['images']} images of {metrics['patients']} patients",
        caption=(
            f"label accuracy {_percent(metrics['label_accuracy'])}, and "
            f"{_percent(metrics['always_negative_accuracy'])} for always answering no finding"
        ),
    )
    table.add_column("finding")
    for heading in ("positives", "AUROC", "95 % interval", "AP"):
        table.add_column(heading, justify="right")
    for name, row in metrics["per_finding"].items():
        table.add_row(
            name.replace("_", " "),
            str(row["positives"]),
            _number(row["auroc"]),
            _interval(row["auroc_ci95"]),
            _number(row["average_precision"]),
        )
    table.add_section()
    table.add_row(
        f"macro over {metrics['auroc_macro_findings']}",
        "",
        _number(metrics["auroc_macro"]),
        _interval(metrics["auroc_macro_ci95"]),
        _number(metrics["average_precision_macro"]),
        style="bold",
    )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _interval(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.3f} to {value[1]:.3f}"
