"""HTML pages from templates, with one style, Content-Security-Policy and notice for all."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from xray_lightning.errors import printable
from xray_lightning.terminal import (
    NONE,
    count,
    decimal,
    duration,
    interval,
    percent,
    probability,
    readable,
    signed,
)

TEMPLATES = [Path(__file__).parent / "templates"]
NOTICE = "Research software, not a medical device."


def rendered(template: str, *, script: str | None = None, **content: Any) -> str:
    """A page as HTML.

    Args:
        template: its name in `templates` beside this file; it extends page.html.jinja, and may
            import parts.html.jinja.
        script: the one script that may run in it; none by default.
        content: what the template shows; all text is escaped, markupsafe.Markup is not.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count,
        decimal=decimal,
        duration=duration,
        interval=_interval,
        json=_json,
        percent=percent,
        probability=probability,
        readable=readable,
        setting=lambda v: v if isinstance(v, str) else json.dumps(v, default=str),
        signed=signed_in_print,
        times=lambda value: f"{value:.1f}" if value < 10 else f"{value:,.0f}",
    )
    # The Content-Security-Policy allows a script by its SHA-256 in base64.
    digest = None if script is None else hashlib.sha256(script.encode()).digest()
    return environment.get_template(template).render(
        notice=NOTICE,
        script=script,
        script_hash=None if digest is None else base64.b64encode(digest).decode("ascii"),
        **content,
    )


def data_uri(content: bytes, *, kind: str) -> str:
    """A file's content as a data: URI; `kind` is its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _printable(value: Any) -> Any:
    """Text with control, invisible and undecodable characters spelled out; markup as it is."""
    return value if isinstance(value, Markup) else printable(str(value))


def _json(value: Any) -> Markup:
    """JSON that is safe as the text of a <script type="application/json"> element."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _interval(value: Sequence[float] | None, form: str = "decimal") -> str:
    """An interval as "0.812 to 0.850", as percentages or with signs; "" for None."""
    number = {"decimal": decimal, "percent": percent, "signed": signed_in_print}[form]
    return "" if value is None else interval(value, number, joint=" to ")


def signed_in_print(value: float | None) -> str:
    """A signed number with the typographic minus sign (U+2212) instead of a hyphen."""
    return NONE if value is None else signed(value).replace("-", "\N{MINUS SIGN}")
