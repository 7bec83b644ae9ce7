"""A frontal chest drawn from a few measures: where lungs, heart and diaphragm end.

Lengths are centimetres on the detector. The origin is the film's centre on the patient's midline,
x grows to the image's right (the patient's left) and y downwards. The shapes are functions of x
alone or of y alone where possible, so that a whole organ costs a few array operations. The
proportions follow what every radiology primer teaches (right dome higher, the heart less than half
the chest wide, the left hilum higher than the right); they are drawings, not measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

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
        """Distance of the lungs' inner border from the midline, by y, leaving out the heart."""
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


Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]  # left, top, right, bottom in cm

FILM_CM = 36.0  # what the finished image shows from edge to edge
CANVAS_CM = 40.0  # what is drawn, so that a turned or shifted chest leaves no empty corner


class Canvas:
    """Lines and polygons in cm, drawn at twice the resolution and averaged down."""

    def __init__(self, pixels: int) -> None:
        self._scale = 2 * pixels / CANVAS_CM
        self._image = Image.new("L", (2 * pixels, 2 * pixels))
        self._draw = ImageDraw.Draw(self._image)

    def _at(self, points: Points) -> list[tuple[float, float]]:
        half, scale = CANVAS_CM / 2, self._scale
        return [((x + half) * scale, (y + half) * scale) for x, y in points]

    def line(self, points: Points, *, width: float, level: float) -> None:
        """A polyline `width` cm thick; a line thinner than a pixel is drawn fainter instead."""
        pixels = width * self._scale
        fill = int(255 * level * min(1.0, pixels))
        self._draw.line(self._at(points), fill=fill, width=max(1, round(pixels)), joint="curve")

    def polygon(self, points: Points, *, level: float) -> None:
        """A filled polygon."""
        self._draw.polygon(self._at(points), fill=int(255 * level))

    def array(self, *, blur: float = 0.0) -> Array:
        """The drawing, blurred by `blur` cm, as float32 in 0..1, shape (pixels, pixels)."""
        small = self._image.reduce(2)
        if blur:
            small = small.filter(ImageFilter.BoxBlur(blur * self._scale / 2))
        return np.asarray(small, dtype=np.float32) / 255


def ramp(distance: Array, width: float) -> Array:
    """A soft edge: 0 outside (negative distance), 1 inside, linear over `width` cm."""
    edge: Array = np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)
    return edge


def clouds(rng: np.random.Generator, *, cells: int, pixels: int) -> Array:
    """Smooth noise of unit variance at the nodes, `cells` bumps across; (pixels, pixels)."""
    nodes = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(nodes.resize((pixels, pixels), Image.Resampling.BICUBIC))


class Film:
    """The layers of one chest; signs change them, and `render.density` adds them up.

    All layers are float32 (pixels, pixels): `lung` is the whole lung fields, also behind the heart,
    `opacity` the share of their air that signs have replaced, `extra` added density, `bare` where
    no vessel is drawn, `lucency` added air.
    """

    def __init__(self, chest: Chest, *, pixels: int) -> None:
        self.chest = chest
        self.pixels = pixels
        self.pixel_cm = CANVAS_CM / pixels
        axis = ((np.arange(pixels, dtype=np.float32) + 0.5) / pixels - 0.5) * CANVAS_CM
        self.x, self.y = axis[None, :], axis[:, None]
        self.distance = np.abs(self.x)
        self.edge = max(0.22, 1.2 * self.pixel_cm)  # the blur of an anatomical border, cm
        self.wall = chest.lateral(self.y)
        self.floor = chest.floor(self.x)
        left, right = chest.mediastinum(self.y)
        self.centre = ramp(self.x - left, self.edge) * ramp(right - self.x, self.edge)
        self.lung = (
            ramp(self.wall - self.distance, self.edge)
            * ramp(self.distance - chest.medial(self.y), self.edge)
            * ramp(self.floor - self.y, self.edge)
            * ramp(self.y - chest.apex, self.edge)
        )
        self.opacity: Array = np.zeros((pixels, pixels), dtype=np.float32)
        self.extra = np.zeros_like(self.opacity)
        self.bare = np.zeros_like(self.opacity)
        self.lucency = np.zeros_like(self.opacity)

    def fill(self, share: Array) -> None:
        """Replace a share (0..1) of the air by something dense."""
        self.opacity = 1 - (1 - self.opacity) * (1 - share)

    def half(self, side: int) -> Array:
        """1 on one side of the midline (-1 is the patient's right), shape (1, pixels)."""
        return (self.x * side > 0).astype(np.float32)

    def place(self, *, side: int, across: float, down: float) -> tuple[float, float]:
        """A place in a lung: `across` 0..1 from midline to wall, `down` 0..1 from apex to base."""
        apex, dome = self.chest.apex, self.chest.domes[0 if side < 0 else 1]
        y = apex + down * (dome - apex)
        wall = float(self.chest.lateral(np.asarray([y], dtype=np.float32))[0])
        return side * (2.5 + across * (wall - 2.5)), y

    def hill(self, at: tuple[float, float], *, width: float, height: float) -> Array:
        """A Gaussian hill of height 1; `width` and `height` are its sigmas in cm."""
        across = np.exp(-0.5 * ((self.x - at[0]) / width) ** 2)
        hill: Array = across * np.exp(-0.5 * ((self.y - at[1]) / height) ** 2)
        return hill

    def boxes_of(self, layer: Array) -> list[Box]:
        """The box around what the lungs show of a layer above 0.35 of its maximum, if anything."""
        seen = layer * self.lung * (1 - self.centre)
        mask: npt.NDArray[np.bool_] = seen > 0.35 * max(float(seen.max()), 1e-3)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not len(columns):
            return []
        left, right = self.x[0, columns[[0, -1]]].tolist()
        top, bottom = self.y[rows[[0, -1]], 0].tolist()
        half = self.pixel_cm / 2
        return [(left - half, top - half, right + half, bottom + half)]
