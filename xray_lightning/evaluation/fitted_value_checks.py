"""Checks of the fitted values that a checkpoint holds: each number before it is used.

Whoever hands on a checkpoint may have changed them. Plain checks, as importing pydantic would take
longer than the first prediction.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xray_lightning.errors import UserError, brief

LARGEST = sys.float_info.max  # a whole number of a damaged file may be larger than any float
AGAIN = "evaluate the run again, or use another checkpoint"


@dataclass(frozen=True)
class FittedValues:
    """Fitted values as a checkpoint holds them; methods raise a one-line UserError on a fault.

    Attributes:
        values: what the checkpoint holds; anything at all.
        findings: those of the model.
        where: what the values are, for messages.
    """

    values: object
    findings: Sequence[str]
    where: str

    def value(self, key: str) -> Any:
        """The value of a key, unchecked."""
        if not isinstance(self.values, Mapping) or key not in self.values:
            raise self._damaged(f"no {key}")
        return self.values[key]

    def count(self, key: str) -> int:
        """A whole number above 0."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._damaged(f"{key} is {brief(value)}")
        return value

    def share(self, key: str) -> float:
        """A number between 0 and 1."""
        value = self.value(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < 1:
            raise self._damaged(f"{key} is {brief(value)}")
        return float(value)

    def by_finding(
        self, key: str, *, low: float = -math.inf, high: float = math.inf
    ) -> dict[str, float]:
        """A finite number from low to high for each finding."""
        values = self.value(key)
        if not isinstance(values, Mapping) or set(values) != set(self.findings):
            raise self._damaged(f"{key} has not the {len(self.findings)} findings")
        for finding, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= LARGEST or not low <= value <= high:
                raise self._damaged(f"{key} of {finding} is {brief(value)}")
        return {finding: float(values[finding]) for finding in self.findings}

    def undefined(self) -> dict[str, str]:
        """The reason for each finding without fitted values."""
        values = self.value("undefined")
        if not isinstance(values, Mapping) or not all(
            finding in self.findings and isinstance(reason, str)
            for finding, reason in values.items()
        ):
            raise self._damaged(f"undefined is {brief(values)}")
        return dict(values)

    def _damaged(self, fault: str) -> UserError:
        return UserError(f"{self.where} are damaged: {fault}; {AGAIN}")
