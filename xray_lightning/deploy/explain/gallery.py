"""The gallery: one HTML file of images with their maps, that fetches nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xray_lightning.deploy.explain.explained import Explained
from xray_lightning.deploy.explain.maps import NAMES
from xray_lightning.deploy.explain.overlay import gray_jpeg, heat_png, scale_png
from xray_lightning.deploy.model import Model
from xray_lightning.page.frame import data_uri, rendered

PAGE = "gallery.html"
MOST_IMAGES = 100  # in one page: about 0.1 MB each

# Shows the map that is chosen, as opaque as the slider says.
SCRIPT = """
"use strict";
for (const card of document.querySelectorAll(".card")) {
  const slider = card.querySelector("input[type=range]");
  if (!slider) continue;
  const show = () => {
    const chosen = card.querySelector("input[type=radio]:checked").value;
    for (const heat of card.querySelectorAll(".heat")) {
      heat.hidden = heat.dataset.finding !== chosen;
      heat.style.opacity = slider.value / 100;
    }
    for (const box of card.querySelectorAll(".marked"))
      box.classList.toggle("other", box.dataset.finding !== chosen);
    card.querySelector("output").value = slider.value + " %";
  };
  card.addEventListener("input", show);
  show();
}
const boxes = document.querySelector("#boxes");
if (boxes) {
  const toggle = () => document.body.classList.toggle("no-boxes", !boxes.checked);
  boxes.addEventListener("input", toggle);
  toggle();
}
"""


@dataclass(frozen=True)
class _Row:
    """What is said of one finding that has a map."""

    finding: str
    heat: str
    probability: float
    calibrated: float | None
    threshold: float | None
    present: bool | None


class Gallery:
    """Collects images, the first `MOST_IMAGES` of them, for a page."""

    def __init__(self, model: Model, *, checkpoint: Path, method: str) -> None:
        self._model, self._checkpoint, self._method = model, checkpoint, method
        self._cards: list[dict[str, Any]] = []
        self._unreadable: list[tuple[str, str]] = []
        self._images = self._unreadable_count = 0

    def add(self, one: Explained) -> None:
        """Take an image in."""
        said = one.prediction
        if one.gray is None:
            self._unreadable_count += 1
            if len(self._unreadable) < MOST_IMAGES:
                self._unreadable.append((said.image, said.reason or ""))
            return
        self._images += 1
        if len(self._cards) == MOST_IMAGES:
            return
        height, width = one.gray.shape
        rows = [
            _Row(
                finding=name,
                heat=data_uri(heat_png(values), kind="image/png"),
                probability=_of(said.probabilities, place),
                calibrated=None if said.calibrated is None else _of(said.calibrated, place),
                threshold=(self._model.operating_points or {}).get(name),
                present=None if said.decisions is None else bool(said.decisions[place]),
            )
            for name, values in one.maps.items()
            for place in [self._model.findings.index(name)]
        ]
        self._cards.append(
            {
                "name": Path(said.image).name,
                "path": said.image,
                "uri": data_uri(gray_jpeg(one.gray), kind="image/jpeg"),
                "width": width,
                "height": height,
                "flags": said.flags,
                "rows": rows,
                "boxes": one.boxes,
            }
        )

    def page(self) -> str:
        """The page as HTML."""
        return rendered(
            "gallery.html.jinja",
            folder=Path(__file__).parent / "templates",
            script=SCRIPT,
            title="Where the model saw findings",
            checkpoint=self._checkpoint.name,
            run=self._checkpoint.absolute().parent.parent.name,
            size=self._model.image_size,
            method=NAMES[self._method],
            cards=self._cards,
            images=self._images,
            unreadable=self._unreadable,
            unreadable_count=self._unreadable_count,
            decided=self._model.operating_points is not None,
            calibrated=self._model.calibrated,
            boxed=any(card["boxes"] for card in self._cards),
            scale=data_uri(scale_png(), kind="image/png"),
        )


def _of(values: Any, place: int) -> float:
    return float(values[place])
