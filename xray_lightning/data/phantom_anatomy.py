"""A frontal chest drawn from a few measures: where lungs, heart and diaphragm end.

Lengths are centimetres on the detector. The origin is the film's centre on the patient's midline,
x grows to the image's right (the patient's left) and y downwards. The shapes are functions of x
alone or of y alone where possible, so that a whole organ costs a few array operations. The
proportions follow what every radiology primer teaches (right dome higher, the heart less than half
the chest wide, the left hilum higher than the right); they are drawings, not measurements.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]  # float32: numpy types its product with a Python float as 64


@dataclass(frozen=True)
class Chest:
    """The measures of one chest on one film, in cm (y of an apex or a dome: see the module)."""

    half_width: float  # inner chest wall to midline, at the widest place
    apex: float  # y of the lungs' upper ends
    domes: tuple[float, float]  # y of the diaphragm: patient's right, left
    sulcus: float  # how far the costophrenic angle lies below the dome
    heart_ratio: float  # cardiothoracic ratio, 0..1
    shift: float = 0.0  # of the mediastinum, towards positive x
    knob: float = 1.5  # aortic knob
    fat: float = 2.0  # chest wall
    breast: float = 0.0  # radius of the breast shadow; 0: none
    rib_spacing: float = 2.2
    rib_drop: float = 4.5  # how far a posterior rib falls from spine to side
    rib_phase: float = 0.0  # 0..1
    clavicle: float = 0.0  # vertical place, around 0
    scapula: float = 0.0  # towards the midline, over the lungs
    inflation: float = 1.0  # air in the lungs, 1 is normal
    vessels: float = 1.0  # width of the vascular markings, 1 is normal
    bone: float = 1.0  # density of bone, 1 is normal

    @property
    def hilum(self) -> float:
        """y of the hila, about half-way down the lungs."""
        return self.apex + 0.47 * (sum(self.domes) / 2 - self.apex)

    def lateral(self, y: Array) -> Array:
        """Distance of the lungs' outer border from the midline, by y."""
        t = np.clip((y - self.apex) / 16.0, 0.0, 1.0)
        inner = 0.36 * self.half_width
        wall: Array = inner + (self.half_width - inner) * (1 - (1 - t) ** 2.6) ** 0.62
        return wall

    def medial(self, y: Array) -> Array:
        """Distance of the lungs' inner border from the midline, by y; the heart is apart."""
        t = np.clip((y - self.apex) / 3.5, 0.0, 1.0)
        inner = 0.36 * self.half_width
        border: Array = inner - (inner - 1.6) * np.sqrt(1 - (1 - t) ** 2)
        return border

    def floor(self, x: Array) -> Array:
        """y of the diaphragm, by x: domes that fall steeply to the costophrenic angles."""
        top = 0.42 * self.half_width
        distance = np.abs(x)
        outside = np.clip((distance - top) / (self.half_width - top), 0.0, 1.2)
        inside = np.clip((top - distance) / top, 0.0, 1.0)
        dome = np.where(x < 0, self.domes[0], self.domes[1])
        border: Array = dome + self.sulcus * outside**2.3 + 1.3 * inside**2
        return border.astype(np.float32)

    def heart_edges(self) -> tuple[float, float, float, float]:
        """The heart's box: left x, top y, right x, bottom y."""
        width = 2 * self.half_width * self.heart_ratio
        top, bottom = self.hilum - 1.0, self.domes[1] + 0.6
        return self.shift - 0.34 * width, top, self.shift + 0.66 * width, bottom

    def mediastinum(self, y: Array) -> tuple[Array, Array]:
        """x of its borders on the image's left and right, by y: great vessels, knob and heart."""
        left, top, right, _ = self.heart_edges()
        t = (y - top) / (self.domes[1] - 1.8 - top)
        below = np.sqrt(np.clip(1 - (np.maximum(t - 1, 0) / 0.6) ** 2, 0, 1))
        rise = np.sin(np.pi / 2 * np.clip(t, 0, 1))
        roundness = 1.0 + 12.0 * max(0.0, 0.55 - self.heart_ratio)  # a large heart is globular
        outer = 2.4 + (right - self.shift - 2.4) * rise**roundness * below
        outer += (0.75 + 0.25 * self.knob) * np.exp(-(((y - top + 3.6) / 1.25) ** 2))  # knob
        outer += 0.8 * np.exp(-(((y - top - 0.2) / 1.3) ** 2))  # pulmonary trunk
        bulge = np.sin(np.pi * 0.66 * np.clip(t, 0, 1)) ** 1.3
        inner = 2.3 + (self.shift - left - 2.3) * bulge
        trachea_side = np.clip((self.apex + 3 - y) / 6, 0, 1) * 0.6
        return self.shift - inner + trachea_side, self.shift + outer - trachea_side
