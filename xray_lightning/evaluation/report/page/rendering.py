"""HTML from the templates beside this file: all text escaped, all numbers in one way."""

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from xray_lightning.errors import printable
from xray_lightning.evaluation.record import Interval
from xray_lightning.evaluation.report.collected import NOTICE
from xray_lightning.evaluation.report.table import decimal, duration, percent


def rendered(template: str, **content: Any) -> str:
    """A page from its template."""
    return _templates().get_template(template).render(notice=NOTICE, **content)


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        decimal=decimal,
        percent=percent,
        duration=duration,
        interval=_interval,
        count=_count,
        signed=_signed,
        probability=_probability,
        times=_times,
        setting=_setting,
    )
    return environment


def _shown(value: Any) -> Any:
    """Text with control, invisible and undecodable characters spelled out; markup as it is."""
    return value if isinstance(value, Markup) else printable(str(value))


def _interval(value: Interval | None, form: str = "decimal") -> str:
    """An interval as "0.812 to 0.850", as percentages or with signs; nothing for none."""
    if value is None:
        return ""
    shown = {"decimal": decimal, "percent": percent, "signed": _signed}[form]
    return f"{shown(value[0]).removesuffix(' %')} to {shown(value[1])}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _signed(value: float | None) -> str:
    """0.0126 as "+0.013"."""
    return "-" if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _probability(value: float) -> str:
    """Three digits, or as many as it takes to be told from 0 and from 1."""
    return f"{value:.3f}" if 0.001 <= value <= 0.999 or value in (0, 1) else f"{value:.2g}"


def _setting(value: Any) -> str:
    """A value of the configuration as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _times(value: float) -> str:
    """1.234 as "1.2", 12345.6 as "12,346"."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
