"""What the gray levels of one image say: mean, standard deviation, padding, and its exposure."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from xray_lightning.data.images import Gray

# Mean and standard deviation, of 1, of the examples in the paper's Figure 2.
PAPER_OVER, PAPER_UNDER = (0.4149, 0.1402), (0.6200, 0.1834)
PAPER_PADDED, PAPER_CORRECT = (0.2428, 0.2885), (0.4948, 0.2406)

# Halfway between the paper's badly exposed examples and its correct one.
DARK, FLAT_DARK = ((a + b) / 2 for a, b in zip(PAPER_OVER, PAPER_CORRECT, strict=True))
BRIGHT, FLAT_BRIGHT = ((a + b) / 2 for a, b in zip(PAPER_UNDER, PAPER_CORRECT, strict=True))

PADDED = 0.05  # share of the image
NEARLY_BLACK, NEARLY_WHITE = 24, 231  # gray levels of 255
ALIKE, ALIKE_SHARE = 8, 0.98  # of a line's median, and how much of the line


class Exposure(StrEnum):
    """How an image was exposed, in the paper's four classes."""

    OVER = "over-exposed"
    UNDER = "under-exposed"
    PADDED = "padded"
    CORRECT = "correct"


RULE = (
    f"Padded: plain lines along the edges cover at least {PADDED:.0%} of the image, where a line "
    f"is plain if {ALIKE_SHARE:.0%} of it lie within {ALIKE} gray levels (of 255) of its median, "
    f"and that is nearly black (at most {NEARLY_BLACK}) or white (at least {NEARLY_WHITE}). The "
    "others are judged by mean and standard deviation (of gray from 0 to 1) without such lines. "
    f"Over-exposed, dark and flat: mean below {DARK:.3f} and deviation below {FLAT_DARK:.3f}. "
    f"Under-exposed, bright and flat: mean over {BRIGHT:.3f} and deviation below "
    f"{FLAT_BRIGHT:.3f}. Correct: the rest. The limits lie halfway between the paper's badly "
    "exposed examples and its correct one."
).replace("%", " %")


@dataclass(frozen=True)
class GrayLevels:
    """Of one image; levels are shares of white.

    Attributes:
        mean, std: of all pixels.
        padding: share of the image that plain lines along its edges cover.
        inside_mean, inside_std: of the pixels that they do not; NaN where they cover all.
    """

    mean: float
    std: float
    padding: float
    inside_mean: float
    inside_std: float

    @property
    def exposure(self) -> Exposure:
        """By the `RULE`."""
        if self.padding >= PADDED:
            return Exposure.PADDED
        if self.inside_mean < DARK and self.inside_std < FLAT_DARK:
            return Exposure.OVER
        if self.inside_mean > BRIGHT and self.inside_std < FLAT_BRIGHT:
            return Exposure.UNDER
        return Exposure.CORRECT


def gray_levels(image: Gray) -> GrayLevels:
    """Measure an image, uint8 (H, W)."""
    inside = _without_padding(image)
    mean, std = _moments(image)
    return GrayLevels(mean, std, 1 - inside.size / image.size, *_moments(inside))


def histogram(image: Gray, *, bins: int = 64) -> npt.NDArray[np.float64]:
    """Share of the pixels in each of `bins` equal ranges of gray: (bins,)."""
    counts = np.bincount(image.ravel(), minlength=256).reshape(bins, -1).sum(axis=1)
    shares: npt.NDArray[np.float64] = counts / image.size
    return shares


def _moments(image: Gray) -> tuple[float, float]:
    if image.size == 0:
        return float("nan"), float("nan")
    counts = np.bincount(image.ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = float(counts @ levels / image.size)
    return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / image.size))


def _without_padding(image: Gray) -> Gray:
    top, bottom = _plain_lines(image), _plain_lines(image[::-1])
    left, right = _plain_lines(image.T), _plain_lines(image.T[::-1])
    height, width = image.shape
    return image[top : max(top, height - bottom), left : max(left, width - right)]


def _plain_lines(lines: Gray) -> int:
    """How many lines from the first on are plain."""
    for count, line in enumerate(lines):
        middle = float(np.median(line))
        if NEARLY_BLACK < middle < NEARLY_WHITE:
            return count
        if np.mean(np.abs(line - middle) <= ALIKE) < ALIKE_SHARE:
            return count
    return len(lines)
