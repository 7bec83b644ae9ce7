"""What a model answers to each image, with a map of each finding that is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xray_lightning.data.images import Gray, UnreadableImageError, decode_gray
from xray_lightning.deploy.explain.maps import Explainer, Maps
from xray_lightning.deploy.explain.overlay import shrunk
from xray_lightning.deploy.predictions import Prediction
from xray_lightning.errors import UserError


@dataclass(frozen=True)
class Box:
    """A box around a finding, in shares of the image's width and height."""

    finding: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Explained:
    """One image.

    Attributes:
        prediction: what the model answers, or why the image cannot be read.
        gray: the image, uint8 (H, W), small enough to be shown; None where it cannot be read.
        maps: by finding, most probable first: float32 (S, S).
        boxes: where findings are said to be.
    """

    prediction: Prediction
    gray: Gray | None
    maps: Mapping[str, Maps]
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Choice:
    """Which findings of an image get a map.

    Attributes:
        findings: always these; None for the most probable ones, and those that have a box.
        top: how many of the most probable ones.
    """

    findings: tuple[str, ...] | None = None
    top: int = 3

    def of(self, prediction: Prediction, known: Sequence[str], boxes: Sequence[Box]) -> list[int]:
        """Places among the `known` findings, most probable first."""
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
    """Explain files in their order, some at once, in memory that does not grow with them.

    Args:
        boxes: by the image's path.

    Raises:
        RunFailedError: an answer that is no number.
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
            yield _explained(
                prediction,
                {known[place]: found_of[place] for place in places},
                boxes.get(prediction.image, ()),
            )


def _explained(prediction: Prediction, maps: Mapping[str, Maps], boxes: Sequence[Box]) -> Explained:
    if prediction.reason is not None:
        return Explained(prediction, None, {})
    try:
        gray = shrunk(decode_gray(prediction.image))
    except UnreadableImageError as error:  # it was there a moment ago
        reason = str(error).removeprefix(f"{prediction.image}: ")
        return Explained(Prediction(prediction.image, reason=reason), None, {})
    return Explained(prediction, gray, maps, boxes)
