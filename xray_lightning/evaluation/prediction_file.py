"""A predictions_*.csv read back: every number as the model gave it, or the place of the fault."""

from pathlib import Path

import numpy as np
import pandas as pd

from xray_lightning.data.cells import Titles, fail_at, header_of, read_cells, shown
from xray_lightning.errors import UserError
from xray_lightning.evaluation.scored_images import LABEL, PROBABILITY
from xray_lightning.findings import check_findings

REQUIRED = ("image", "patient_id")
OPTIONAL = ("split", "age", "sex", "view", "follow_up")  # older files lack the last four
TEXTS = {"sex": ("M", "F", ""), "view": ("PA", "AP", "")}


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a table of predictions.

    Returns:
        `image` and `patient_id` as text, `prob_<Finding>` as float32, `label_<Finding>` as uint8;
        and where the file has them `split`, `age` (NaN unknown), `sex`, `view` ("" unknown) and
        `follow_up` (Int64).

    Raises:
        UserError: not such a file, or the first fault in it with its line and column.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; give a predictions CSV of a run folder")
    findings = _findings(path)
    probabilities = [f"{PROBABILITY}{finding}" for finding in findings]
    labels = [f"{LABEL}{finding}" for finding in findings]
    required = (*REQUIRED, *probabilities, *labels)
    titles: Titles = {name: (name,) for name in (*required, *OPTIONAL)}
    cells = read_cells(path, titles, required=required)
    if not findings:
        raise UserError(f"{path}, line 1: no column {PROBABILITY}<Finding>, one of each finding")
    for name in ("image", "patient_id"):
        _refuse(cells, name, (cells[name] == "").to_numpy(), "is empty")
    _refuse_repeats(cells)
    columns = {name: cells[name] for name in ("image", "patient_id", "split") if name in cells}
    for name in probabilities:
        values = _numbers(cells, name)
        bad = ~((values >= 0) & (values <= 1))
        _refuse(cells, name, bad.to_numpy(), "is not a probability from 0 to 1")
        columns[name] = values.astype(np.float32)
    for name in labels:
        values = _numbers(cells, name)
        _refuse(cells, name, ~values.isin((0, 1)).to_numpy(), "is neither 0 nor 1")
        columns[name] = values.astype(np.uint8)
    return pd.DataFrame(columns | _persons(cells))


def _findings(path: Path) -> tuple[str, ...]:
    """Those that the file has columns of, in their order; none where it has no such column."""
    titles = header_of(path)
    kinds = (PROBABILITY, LABEL)
    found = [t.removeprefix(kind) for kind in kinds for t in titles if t.startswith(kind)]
    unique = list(dict.fromkeys(found))
    return check_findings(unique, what=f"{path}, line 1: findings") if unique else ()


def _persons(cells: pd.DataFrame) -> dict[str, pd.Series]:
    """What the file says of who was X-rayed and how."""
    columns = {}
    if "age" in cells:
        ages = _numbers(cells, "age")
        known = (cells["age"] != "").to_numpy()
        bad = known & ~((ages >= 0) & (ages < np.inf)).to_numpy()
        _refuse(cells, "age", bad, "is no age in years")
        columns["age"] = ages
    for name, allowed in TEXTS.items():
        if name in cells:
            bad = ~cells[name].isin(allowed).to_numpy()
            _refuse(cells, name, bad, f"is none of {', '.join(filter(None, allowed))}, or nothing")
            columns[name] = cells[name]
    if "follow_up" in cells:
        numbers = _numbers(cells, "follow_up")
        known = (cells["follow_up"] != "").to_numpy()
        whole = ((numbers >= 0) & (numbers % 1 == 0) & (numbers < 2**31)).to_numpy()
        _refuse(cells, "follow_up", known & ~whole, "is no whole number from 0")
        columns["follow_up"] = numbers.astype("Int64")
    return columns


def _numbers(cells: pd.DataFrame, name: str) -> pd.Series:
    """Text as float64, NaN where it is none. Underscores and hexadecimals are no numbers here."""
    return pd.to_numeric(cells[name], errors="coerce").astype(np.float64)


def _refuse(cells: pd.DataFrame, name: str, bad: np.ndarray, fault: str) -> None:
    """Refuse a column of which some cells are bad, by the first of them."""
    found = np.flatnonzero(bad)
    if not len(found):
        return
    first = int(found[0])
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    raise fail_at(cells, first, f"{name} {shown(cells[name].iloc[first])} {fault}{more}")


def _refuse_repeats(cells: pd.DataFrame) -> None:
    twice = np.flatnonzero(cells["image"].duplicated())
    if not len(twice):
        return
    second = int(twice[0])
    image = cells["image"].iloc[second]
    first = int(np.flatnonzero(cells["image"] == image)[0])
    raise fail_at(
        cells,
        second,
        f"image {shown(image)} is in line {cells['line'].iloc[first]} already "
        f"({len(twice):,} repeated in all); each image counts once",
    )
