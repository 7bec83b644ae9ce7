"""The report's pages from the templates beside this file, all numbers in one way."""

import json
from pathlib import Path
from typing import Any

from xray_lightning.evaluation.record import Interval
from xray_lightning.evaluation.report.table import duration
from xray_lightning.page import frame
from xray_lightning.page.frame import decimal, percent, signed


def rendered(template: str, **content: Any) -> str:
    """A page from its template."""
    return frame.rendered(
        template,
        folder=Path(__file__).parent / "templates",
        filters={
            "duration": duration,
            "interval": _interval,
            "times": _times,
            "setting": _setting,
        },
        **content,
    )


def _interval(value: Interval | None, form: str = "decimal") -> str:
    """An interval as "0.812 to 0.850", as percentages or with signs; nothing for none."""
    if value is None:
        return ""
    shown = {"decimal": decimal, "percent": percent, "signed": signed}[form]
    return f"{shown(value[0]).removesuffix(' %')} to {shown(value[1])}"


def _setting(value: Any) -> str:
    """A value of the configuration as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _times(value: float) -> str:
    """1.234 as "1.2", 12345.6 as "12,346"."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
