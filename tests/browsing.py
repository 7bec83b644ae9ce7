"""Pages in a real browser: the machine's own Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LEAST_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3, level AA
# The relative luminance and contrast ratio of WCAG 2.2, over every element that holds text itself.
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.body.querySelectorAll("*:not(title)")].filter(own).map((e) => {
    const style = getComputedStyle(e);
    const ink = numbers(e.closest("svg") ? style.fill : style.color);
    const [high, low] = [light(ink), light(behind(e))].sort((a, b) => b - a);
    return [(high + 0.05) / (low + 0.05), e.tagName, e.textContent.trim().slice(0, 40)];
  });
}"""


@dataclass
class Seen:
    """A page as a browser has opened it, and what it met meanwhile."""

    page: Any
    address: str
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def open(self) -> "Seen":
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self._dismiss)
        self.page.goto(self.address)
        return self

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    @property
    def overhang(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    def check(self) -> None:
        """Nothing is complained of, nothing is fetched, nothing is too wide."""
        assert self.messages == []
        assert [url for url in self.requests if not url.startswith("data:")] == [self.address]
        assert self.dialogs == []
        assert self.overhang <= 0


@contextmanager
def started() -> Iterator[Any]:
    """The browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs chromium on PATH")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"] if root else []
        )
        yield browser
        browser.close()


@contextmanager
def windows(browser: Any) -> Iterator[Any]:
    """A function that opens a page in a window of its own."""
    contexts = []

    def open_page(path: Path, *, width: int = 1280, scheme: str = "light") -> Seen:
        viewport = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme))
        return Seen(contexts[-1].new_page(), path.resolve().as_uri()).open()

    yield open_page
    for context in contexts:
        context.close()
