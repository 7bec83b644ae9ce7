"""Reading back what was fitted from the plain values that a checkpoint holds of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xray_lightning.errors import UserError, printable

LONGEST = 60  # characters of a value in a message
AGAIN = "evaluate the run again, or use another checkpoint"


def entry(plain: object, key: str, *, where: str) -> Any:
    """The value of a key; raises UserError where there is none, or no mapping."""
    if not isinstance(plain, Mapping) or key not in plain:
        raise UserError(f"{where} are damaged: no {key}; {AGAIN}")
    return plain[key]


def count(plain: object, key: str, *, where: str) -> int:
    """A whole number above 0."""
    value = entry(plain, key, where=where)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where} are damaged: {key} is {_shown(value)}; {AGAIN}")
    return value


def by_finding(
    plain: object,
    key: str,
    *,
    findings: Sequence[str],
    where: str,
    low: float = -math.inf,
    high: float = math.inf,
) -> dict[str, float]:
    """A finite number from low to high for each of these findings."""
    values = entry(plain, key, where=where)
    if not isinstance(values, Mapping) or set(values) != set(findings):
        raise UserError(f"{where} are damaged: {key} has not the {len(findings)} findings; {AGAIN}")
    for finding, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise UserError(f"{where} are damaged: {key} of {finding} is {_shown(value)}; {AGAIN}")
    return {finding: float(values[finding]) for finding in findings}


def reasons(plain: object, *, findings: Sequence[str], where: str) -> dict[str, str]:
    """The reason of each finding that nothing was fitted to."""
    values = entry(plain, "undefined", where=where)
    if not isinstance(values, Mapping) or not all(
        finding in findings and isinstance(reason, str) for finding, reason in values.items()
    ):
        raise UserError(f"{where} are damaged: undefined is {_shown(values)}; {AGAIN}")
    return dict(values)


def _shown(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
