"""Gallery of explained images: overlays, and one self-contained HTML page."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_lightning.data.decode_resize import Gray, UnreadableImageError, decode_gray
from xray_lightning.deploy.model import Model, Prediction
from xray_lightning.deploy.saliency.localisation import Box
from xray_lightning.deploy.saliency.maps import NAMES, Explainer, Maps
from xray_lightning.errors import UserError
from xray_lightning.html.page import TEMPLATES, data_uri, rendered

LONGEST = 512  # pixels of a picture's longer side: far finer than the grid of any map
HEAT_SIDE = 96  # pixels a side of a heat map without its image; the page shows it at image size
COLOURS = "inferno"  # dark to bright in equal steps, also to colour-blind readers
BLEND = 0.8  # opacity of a map's largest value in an overlay
QUALITY = 85  # of JPEG


def shrunk(gray: Gray) -> Gray:
    """An image of at most `LONGEST` pixels a side, its aspect kept."""
    image = Image.fromarray(gray)
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)


def heat_png(values: Maps) -> bytes:
    """A map as a PNG of colours with transparency; larger values are more opaque.

    Args:
        values: 0 and up, (S, S).
    """
    image = Image.fromarray(_heat(values))
    return _encoded(image.resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.BILINEAR), "PNG")


def overlay_png(gray: Gray, values: Maps) -> bytes:
    """An image with its map blended in: PNG.

    Args:
        gray: uint8 (H, W), as `shrunk` gives it.
        values: 0 and up, (S, S), of the whole image.
    """
    height, width = gray.shape
    heat = Image.fromarray(_heat(values)).resize((width, height), Image.Resampling.BILINEAR)
    colours = np.asarray(heat, dtype=np.float32)
    opacity = BLEND * colours[..., 3:] / 255
    blended = (1 - opacity) * gray[..., None] + opacity * colours[..., :3]
    return _encoded(Image.fromarray(blended.round().astype(np.uint8)), "PNG")


def scale_png() -> bytes:
    """The colour scale as a PNG: 0 at the left, a map's largest value at the right."""
    ramp = np.linspace(0, 1, HEAT_SIDE)[None].repeat(4, axis=0)
    return _encoded(Image.fromarray((255 * _colours(ramp)).astype(np.uint8)), "PNG")


def _heat(values: Maps) -> npt.NDArray[np.uint8]:
    """Red, green, blue and opacity, uint8 (S, S, 4); fully transparent for an all-zero map."""
    largest = values.max()
    shares = values / largest if largest > 0 else np.zeros_like(values)
    # Opacity is squared: otherwise values far below the largest would veil the whole image.
    rgba = np.dstack([_colours(shares), shares**2])
    return (255 * rgba).round().astype(np.uint8)


def _colours(shares: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    colours: npt.NDArray[np.floating] = matplotlib.colormaps[COLOURS](shares)[..., :3]
    return colours


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class Explained:
    """One image and its maps; if it cannot be read, `prediction.reason` says why."""

    prediction: Prediction
    gray: Gray | None  # (H, W), small enough to be shown
    maps: Mapping[str, Maps]  # by finding, most probable first: (S, S)
    boxes: Sequence[Box] = ()  # annotated boxes around findings


@dataclass(frozen=True)
class Choice:
    """Which findings of an image get a map: named ones, or the most probable and those boxed."""

    findings: tuple[str, ...] | None = None
    top: int = 3  # how many of the most probable ones

    def of(self, prediction: Prediction, known: Sequence[str], boxes: Sequence[Box]) -> list[int]:
        """Indices into the `known` findings, most probable first."""
        probabilities = prediction.probabilities
        if probabilities is None:
            return []
        order = np.argsort(-probabilities, kind="stable").tolist()
        if self.findings is None:
            boxed = {box.finding for box in boxes}
            wanted = set(order[: self.top]) | {p for p, name in enumerate(known) if name in boxed}
        else:
            wanted = {known.index(name) for name in self.findings}
        return [place for place in order if place in wanted]

    def check(self, known: Sequence[str]) -> None:
        """Refuse a finding that the model does not know.

        Raises:
            UserError: naming it.
        """
        for name in self.findings or ():
            if name not in known:
                raise UserError(
                    f"--findings {name}: the model does not know it; it knows {', '.join(known)}"
                )


def explain_each(
    explainer: Explainer,
    paths: Sequence[str],
    choice: Choice,
    *,
    boxes: Mapping[str, Sequence[Box]],
) -> Iterator[Explained]:
    """Explain files in order, batch by batch, in memory that does not grow with their number.

    Args:
        boxes: by the image's path.

    Raises:
        RunFailedError: the model gives NaN or infinite logits.
    """
    known = explainer.findings
    for batch in explainer.model.decoded(paths):
        predictions = list(explainer.model.answer(batch))
        wanted = [choice.of(one, known, boxes.get(one.image, ())) for one in predictions]
        maps: list[dict[int, Maps]] = [{} for _ in batch]
        for finding in sorted({place for places in wanted for place in places}):
            rows = [row for row, places in enumerate(wanted) if finding in places]
            pixels = [batch[row].picture for row in rows]
            stacked = np.stack([picture.pixels for picture in pixels if picture is not None])
            for row, found in zip(rows, explainer.maps(stacked[:, None], finding), strict=True):
                maps[row][finding] = found
        for prediction, places, found_of in zip(predictions, wanted, maps, strict=True):
            gray = None
            try:
                if prediction.reason is None:
                    gray = shrunk(decode_gray(prediction.image))
            except UnreadableImageError as error:  # removed or changed since it was predicted
                reason = str(error).removeprefix(f"{prediction.image}: ")
                prediction = Prediction(prediction.image, reason=reason)
            if gray is None:
                yield Explained(prediction, None, {})
                continue
            named = {known[place]: found_of[place] for place in places}
            yield Explained(prediction, gray, named, boxes.get(prediction.image, ()))


PAGE = "gallery.html"
MOST_IMAGES = 100  # in one page: about 0.1 MB each


class Gallery:
    """Collects images, the first `MOST_IMAGES` of them, for a page."""

    def __init__(self, model: Model, *, checkpoint: Path, method: str) -> None:
        self._model, self._checkpoint, self._method = model, checkpoint, method
        self._cards: list[dict[str, Any]] = []
        self._unreadable: list[tuple[str, str]] = []
        self._images = self._unreadable_count = 0

    def add(self, one: Explained) -> None:
        """Add an image."""
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
        rows = []
        for name, values in one.maps.items():
            place = self._model.findings.index(name)
            probabilities, calibrated, decided = (
                None if answers is None else answers[place].item()
                for answers in (said.probabilities, said.calibrated, said.decisions)
            )
            rows.append(
                {
                    "finding": name,
                    "heat": data_uri(heat_png(values), kind="image/png"),
                    "probability": probabilities,
                    "calibrated": calibrated,
                    "threshold": (self._model.operating_points or {}).get(name),
                    "present": decided,
                }
            )
        self._cards.append(
            {
                "name": Path(said.image).name,
                "path": said.image,
                "uri": data_uri(_encoded(Image.fromarray(one.gray), "JPEG"), kind="image/jpeg"),
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
            script="\n" + (TEMPLATES[0] / "gallery.js").read_text(encoding="utf-8"),
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
