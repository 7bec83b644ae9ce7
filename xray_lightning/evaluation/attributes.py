"""How the images of a table are grouped: by sex, age, view, and first against follow-up image."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_lightning.evaluation.arrays import Integers

log = logging.getLogger(__name__)

AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_EDGES = (18, 40, 60, 80)
_NAMED = {"sex": {"F": "female", "M": "male"}, "view": {"PA": "PA", "AP": "AP"}}
_VISITS = ("first image", "follow-up")
_COLUMN = {"sex": "sex", "age": "age", "view": "view", "visit": "follow_up"}


@dataclass(frozen=True)
class Attribute:
    """What images are grouped by.

    Attributes:
        by: its name, such as "sex".
        groups: the names of its groups.
        codes: the group of each image, -1 where unknown, shape (N,).
    """

    by: str
    groups: tuple[str, ...]
    codes: Integers


def attributes_of(table: pd.DataFrame) -> list[Attribute]:
    """How the images of a table can be grouped, by each of `sex`, `age`, `view`, `follow_up`.

    A column that is not there is left out, and said in the log.
    """
    missing = [column for column in _COLUMN.values() if column not in table]
    if missing:
        log.info("the predictions have no %s: no subgroups by that", ", ".join(missing))
    return [
        _attribute(by, table[column]) for by, column in _COLUMN.items() if column not in missing
    ]


def _attribute(by: str, column: pd.Series) -> Attribute:
    if by in _NAMED:
        names = _NAMED[by]
        codes = pd.Index(list(names)).get_indexer(pd.Index(column.astype(object)))
        return Attribute(by, tuple(names.values()), codes.astype(np.int64))
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = numbers >= 0  # NaN is not
    if by == "age":
        codes = np.searchsorted(_AGE_EDGES, numbers, side="right")
        return Attribute(by, AGE_BANDS, np.where(known, codes, -1))
    return Attribute(by, _VISITS, np.where(known, (numbers > 0).astype(np.int64), -1))
