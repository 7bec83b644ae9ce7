"""HTML pages from templates: their look, their safety and the notice are the same for all."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from xray_lightning.errors import printable
from xray_lightning.terminal import NONE, count, decimal, percent, probability, readable, signed

TEMPLATES = [Path(__file__).parent / "templates"]
NOTICE = "Research software, not a medical device."


def rendered(
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    script: str | None = None,
    **content: Any,
) -> str:
    """A page as HTML.

    Args:
        template: its name in `templates` beside this file; it extends page.html.jinja, and may
            import parts.html.jinja.
        filters: more of the templates' filters; those of figures and names in `terminal` are
            always there.
        script: the one script that may run in it; none by default.
        content: what the template shows; all text is escaped, markupsafe.Markup is not.
    """
    return (
        _environment(filters or {})
        .get_template(template)
        .render(notice=NOTICE, script=script, script_hash=_script_hash(script), **content)
    )


def data_uri(content: bytes, *, kind: str) -> str:
    """A file as an address that a page shows without fetching it; `kind` as in image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _script_hash(script: str | None) -> str | None:
    """The hash that a Content-Security-Policy names a script by, in base64."""
    if script is None:
        return None
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _environment(filters: Mapping[str, Callable[..., Any]]) -> jinja2.Environment:
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
        percent=percent,
        probability=probability,
        readable=readable,
        signed=printed_signed,
    )
    environment.filters.update(filters)
    environment.filters["json"] = _json
    return environment


def _printable(value: Any) -> Any:
    """Text with control, invisible and undecodable characters spelled out; markup as it is."""
    return value if isinstance(value, Markup) else printable(str(value))


def _json(value: Any) -> Markup:
    """Data for a script, as the text of a <script type="application/json"> may hold it."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def printed_signed(value: float | None) -> str:
    """-0.0126 with the minus sign of print, not a hyphen."""
    return NONE if value is None else signed(value).replace("-", "\N{MINUS SIGN}")
