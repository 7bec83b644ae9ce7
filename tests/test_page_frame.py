"""What every page has: escaped text, nothing fetched, no script but its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xray_lightning.html import page as pages
from xray_lightning.html.page import NOTICE, rendered

PAGE = """{% extends "page.html.jinja" %}
{% block page %}<h1>{{ name }}</h1>
<script type="application/json" id="data">{{ data | json }}</script>{% endblock %}"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    (tmp_path / "a.html.jinja").write_text(PAGE)
    monkeypatch.setattr(pages, "TEMPLATES", [tmp_path, *pages.TEMPLATES])

    def written(**content: object) -> str:
        return rendered("a.html.jinja", title="t", **{"name": "", "data": 0} | content)

    return written


def test_text_is_escaped_and_control_characters_are_spelled_out(page: Callable[..., str]) -> None:
    shown = page(name="<script>alert(1)</script>\x1b[2J")
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J</h1>" in shown
    assert f"<strong>{NOTICE}</strong>" in shown


def test_data_for_a_script_cannot_end_its_element(page: Callable[..., str]) -> None:
    data = {"</script><script>alert(1)//": ["<!--", "&"]}
    _, _, rest = page(data=data).partition('id="data">')
    text, _, _ = rest.partition("</script>")
    assert "<" not in text
    assert json.loads(text) == data


def test_a_page_without_a_script_lets_none_run(page: Callable[..., str]) -> None:
    assert "default-src 'none'" in page()
    assert "script-src" not in page()


def test_a_page_with_a_script_names_that_one_alone(page: Callable[..., str]) -> None:
    shown = page(script="1")
    # printf 1 | openssl dgst -sha256 -binary | base64
    assert "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='" in shown
    assert shown.count("<script>") == 1
