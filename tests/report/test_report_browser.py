"""report.html in a real browser: wide and narrow, light and dark, on paper, and with hostile names.

Needs playwright and a Chromium of the machine's own; skips without them.
"""

from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRASTS, LEAST_CONTRAST
from conftest import Train
from page_runs import SECTIONS, predictions, sample, whole_run, write_run

from xray_lightning.report.write import build_report, write_report, write_run_report

WIDTHS = (1280, 360)
SCHEMES = ("light", "dark")

# Text of a plot that reaches out of it.
CLIPPED = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")]
    .map((text) => [text.getBoundingClientRect(), text.textContent])
    .filter(([box]) => box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
    .map(([, words]) => `${svg.getAttribute("aria-label").slice(0, 40)}: ${words}`);
})"""
# Two texts of a plot, one over the other. Their boxes are higher than their letters.
OVERLAPPING = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")];
  const boxes = texts.map((text) => [text.getBoundingClientRect(), text.textContent]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  return boxes.flatMap(([a, first], place) => boxes.slice(place + 1)
    .filter(([b]) => meet(a, b))
    .map(([, second]) => `${svg.getAttribute("aria-label").slice(0, 40)}: ${first}, ${second}`));
})"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_report(whole_run(tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.slow
def test_a_real_run_has_a_page_that_opens_without_a_complaint(train: Train, opened: Any) -> None:
    ended = train("report=true")
    assert ended.exit_code == 0, ended.stderr
    (run,) = ended.runs
    seen = opened(run / "report.html", width=360)
    seen.check()
    for section in SECTIONS:
        assert seen.page.locator(f"#{section} > h2").is_visible(), section
    assert seen.count("#curves svg") >= 2
    assert seen.count("#mistakes img") >= 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_section_shows_in_every_width_and_scheme(
    whole: Path, opened: Any, width: int, scheme: str
) -> None:
    seen = opened(whole, width=width, scheme=scheme)
    for section in SECTIONS:
        assert seen.page.locator(f"#{section} > h2").is_visible(), section
    for summary in seen.page.locator("summary").all():
        summary.click()
    seen.check()
    assert seen.page.evaluate(CLIPPED) == []
    assert seen.page.evaluate(OVERLAPPING) == []
    faint = [text for text in seen.page.evaluate(CONTRASTS) if text[0] < LEAST_CONTRAST]
    assert faint == []


def test_light_and_dark_are_two_and_paper_is_light(whole: Path, opened: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(whole, scheme=scheme).page for scheme in SCHEMES)
    assert light.evaluate(background) == "rgb(255, 255, 255)"
    assert dark.evaluate(background) != light.evaluate(background)
    line = "getComputedStyle(document.querySelector('#curves svg text')).fill"
    assert dark.evaluate(line) != light.evaluate(line)
    dark.emulate_media(media="print")
    dark.set_viewport_size({"width": 700, "height": 900})  # of A4 within its margins
    assert dark.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert dark.evaluate(background) == "rgb(255, 255, 255)"


def test_pictures_are_decoded(whole: Path, opened: Any) -> None:
    page = opened(whole).page
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    assert page.evaluate("[...document.images].map((image) => image.naturalWidth)") == [32] * 12


def test_wide_tables_scroll_in_boxes_that_the_keyboard_reaches(whole: Path, opened: Any) -> None:
    page = opened(whole, width=360).page
    box = page.locator("#findings .box")
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(50):
        if box.evaluate("(box) => box.scrollLeft") > 0:
            return
        page.wait_for_timeout(50)
    pytest.fail("the arrow key has not scrolled the table")


def test_fault_37_60_hostile_names_do_nothing(tmp_path: Path, opened: Any) -> None:
    text = (
        "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> </style><svg onload=alert(3)>"
    )
    table = predictions()
    results = sample(table, name=text, status="failed", reason=text, command=text)
    results["data"].update(name=text * 3, split=text, dropped={text: 1}, root=text)
    results["config"] |= {"x": {text: text}}
    results["environment"]["device"] = text
    results["training"] = {"warnings": [text], "skipped_steps": 0}
    for group in results["metrics"]["test"]["subgroups"]:
        group["group"] = text
    table["image"] = [f"{text}{number}.png" for number in range(len(table))]
    run = write_run(tmp_path / "runs" / "a", results, table)
    write_run(tmp_path / "runs" / "b", sample(name=text))
    for page in (write_run_report(run), write_report(build_report([tmp_path / "runs"]))):
        seen = opened(page, width=360)
        seen.check()
        assert seen.count("script") == seen.count("img") == seen.count("[onload]") == 0
        assert text in seen.page.locator("body").inner_text()


def test_the_page_of_several_runs_fits_a_phone_and_leads_to_theirs(
    tmp_path: Path, opened: Any
) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        table = predictions(skill=1.0 + seed)
        results = sample(table, name=name, seed=seed)
        results["config"]["paper_row"] = seed + 1
        write_run_report(write_run(tmp_path / name, results, table))
    page = write_report(build_report([tmp_path]), tmp_path / "out")
    seen = opened(page, width=360, scheme="dark")
    seen.check()
    assert seen.page.evaluate(CLIPPED) == []
    assert [t for t in seen.page.evaluate(CONTRASTS) if t[0] < LEAST_CONTRAST] == []
    seen.page.get_by_role("link", name="second").click()
    seen.page.wait_for_url("**/second/report.html")
    assert seen.page.locator("h1").inner_text() == "second"
