"""What a model answers: to one image, and to several."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Prediction:
    """What a model answers to one image. Arrays follow the order of the model's `findings`.

    Attributes:
        image: its path, or `array 0` and so on.
        reason: why the image cannot be read; None where it can. Then all that follows is empty.
        flags: rules of `deploy.guard` that find it unlike a training image.
        probabilities: as the model gives them, float32 (F,).
        calibrated: the same, calibrated, float64 (F,); None of a model without calibration.
        decisions: whether a finding's probability reaches its operating point, bool (F,); None of
            a model without operating points.
    """

    image: str
    reason: str | None = None
    flags: tuple[str, ...] = ()
    probabilities: npt.NDArray[np.float32] | None = None
    calibrated: npt.NDArray[np.float64] | None = None
    decisions: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Predictions:
    """What a model answers to N images, for F findings.

    Attributes:
        findings: the F findings, in the order of all columns.
        images: the N images: paths, or `array 0` and so on.
        flags: of each image, the rules of `deploy.guard` that find it unlike a training image.
        probabilities: as the model gives them, float32 (N, F).
        calibrated: the same, calibrated, float64 (N, F); None of a model without calibration.
        operating_points: by finding, from which raw probability on it is called present; None of
            a model without.
        decisions: whether it is called present, bool (N, F); None of a model without.
    """

    findings: tuple[str, ...]
    images: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    probabilities: npt.NDArray[np.float32]
    calibrated: npt.NDArray[np.float64] | None
    operating_points: dict[str, float] | None
    decisions: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.images)
