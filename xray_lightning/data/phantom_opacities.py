"""The signs that lie in the lungs: discs, patches, lobes, haze, lines and plates.

Each function draws one finding onto a film and returns the boxes of what it drew, in cm.
"""

from dataclasses import dataclass

import numpy as np

from xray_lightning.data.phantom_anatomy import Array
from xray_lightning.data.phantom_film import Box, Canvas, Film, clouds, ramp

Rng = np.random.Generator


@dataclass(frozen=True)
class Sign:
    """How one finding shows on one film.

    `place` seeds what stays with the patient (side, position); `look` what differs from film to
    film (texture).
    """

    severity: float
    place: int
    look: int

    def side(self) -> int:
        """-1: the patient's right (the image's left), 1: left."""
        return 1 if np.random.default_rng(self.place).random() < 0.5 else -1


def _fluff(film: Film, look: int, *, cells: int) -> Array:
    """Cloudy texture between 0.4 and 1."""
    texture = clouds(np.random.default_rng(look), cells=cells, pixels=film.pixels)
    fluff: Array = np.clip(0.75 + 0.28 * texture, 0.4, 1).astype(np.float32)
    return fluff


def _disc(film: Film, rng: Rng, *, radius: float, level: float) -> list[Box]:
    """A round lesion with slightly lobulated edges, in a lung and clear of the heart."""
    side = 1 if rng.random() < 0.45 else -1
    down = float(rng.uniform(0.15, 0.85))
    x, y = film.place(side=side, across=float(rng.uniform(0.42, 0.82)), down=down)
    dx, dy = film.x - x, film.y - y
    angle, (one, two) = np.arctan2(dy, dx), rng.uniform(0, 6, 2)
    lobes = 1 + 0.035 * np.sin(2 * angle + one) + 0.03 * np.sin(5 * angle + two)
    layer = ramp(radius * lobes - np.sqrt(dx**2 + dy**2), max(0.35, film.edge))
    film.fill(0.75 * level * layer)
    film.extra += 0.09 * level * layer * film.lung
    return film.boxes_of(layer)


def nodule(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    boxes: list[Box] = []
    for k in range(1 + int(rng.integers(0, 3))):
        radius = 0.8 + 0.6 * sign.severity * (1.0 if k == 0 else float(rng.uniform(0.5, 1)))
        boxes += _disc(film, rng, radius=radius, level=0.75 + 0.25 * sign.severity)
    return boxes


def mass(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    return _disc(film, rng, radius=1.6 + 2.0 * sign.severity, level=0.5 + 0.5 * sign.severity)


def infiltration(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    boxes: list[Box] = []
    patches = 1 + int(rng.integers(0, 3))
    texture = _fluff(film, sign.look, cells=24)
    for _ in range(patches):
        side = 1 if rng.random() < 0.5 else -1
        across, down = float(rng.uniform(0.35, 0.7)), float(rng.uniform(0.3, 0.85))
        x, y = film.place(side=side, across=across, down=down)
        size = rng.uniform(1.5, 2.6, 2)
        hill = film.hill((x, y), width=float(size[0]), height=float(size[1]))
        layer = (0.40 + 0.32 * sign.severity) * hill * texture * film.half(side)
        film.fill(layer)
        boxes += film.boxes_of(layer)
    return boxes


def pneumonia(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    side = sign.side()
    down = float(rng.choice([0.3, 0.75, 0.8]))
    x, y = film.place(side=side, across=0.5, down=down)
    size = 2.4 + 1.0 * sign.severity
    hill = np.minimum(1.25 * film.hill((x, y), width=size, height=0.85 * size), 1)
    hill *= _fluff(film, sign.look, cells=16) * film.half(side)
    layer = (0.55 + 0.3 * sign.severity) * hill
    film.fill(layer)
    return film.boxes_of(layer)


def consolidation(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    side = sign.side()
    upper = bool(rng.random() < 0.5)
    # A lobe ends at its fissure: a straight border, nearly level above, oblique below.
    _, fissure = film.place(side=side, across=0.5, down=0.45 if upper else 0.58)
    slant = (0.08 if upper else -0.25) * (film.distance - 6)
    reach = (2.5 if upper else 5.5) + 4.5 * sign.severity
    edge = fissure + slant
    lobe = ramp(edge - film.y, 0.5) if upper else ramp(film.y - edge, 0.5)
    lobe *= ramp(reach - np.abs(film.y - edge), 2.5) * film.half(side)
    lobe *= 0.92 + 0.08 * _fluff(film, sign.look, cells=12)
    layer = (0.5 + 0.42 * sign.severity) * lobe
    film.fill(layer * (1 - 0.6 * _bronchogram(film, rng, side=side, y=fissure, up=upper)))
    film.extra += 0.05 * layer * film.lung
    return film.boxes_of(layer)


def _bronchogram(film: Film, rng: Rng, *, side: int, y: float, up: bool) -> Array:
    """Air-filled bronchi that branch from the hilum through an airless lobe."""
    canvas = Canvas(film.pixels)
    turn = -1 if up else 1
    for angle in rng.uniform(0.2, 1.1, 4):
        far = rng.uniform(4.5, 6.5)
        bend = (
            side * (3 + 0.5 * far * np.cos(angle)),
            y + turn * (0.3 + 0.5 * far * np.sin(angle)),
        )
        end = (side * (3 + far * np.cos(angle)), y + turn * (0.3 + far * np.sin(angle * 1.2)))
        canvas.line([(side * 3.0, y + turn * 0.3), bend, end], width=0.32, level=1.0)
    return canvas.array(blur=0.08)


def edema(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    layer = np.zeros_like(film.opacity)
    for side in (-1, 1):
        x, y = film.place(side=side, across=0.33, down=0.52)
        wing = film.hill((x, y), width=2.6, height=3.4 + sign.severity)
        layer += (0.14 + 0.56 * sign.severity) * wing * film.half(side)
    layer *= _fluff(film, sign.look, cells=20)
    film.fill(layer)
    canvas = Canvas(film.pixels)
    for side in (-1, 1):  # Kerley B lines: short, level, at the outer bases
        for down in np.linspace(0.66, 0.98, 7) + rng.uniform(-0.01, 0.01, 7):
            x, y = film.place(side=side, across=0.99, down=float(down))
            canvas.line([(x, y), (x - side * 1.7, y + 0.1)], width=0.13, level=0.9)
    film.extra += (0.04 + 0.10 * sign.severity) * canvas.array() * film.lung
    return film.boxes_of(layer)


def fibrosis(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    canvas = Canvas(film.pixels)
    chest = film.chest
    middle = 0.3 * chest.apex + 0.7 * max(chest.domes)
    starts = np.stack(
        [rng.uniform(-1, 1, 420) * chest.half_width, rng.normal(middle + 1.5, 3.2, 420)], axis=1
    )
    angles, lengths = rng.uniform(0, np.pi, 420), rng.uniform(0.4, 1.2, 420)
    ends = starts + np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths[:, None]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        canvas.line([tuple(start), tuple(end)], width=0.2, level=0.9)
    zone = ramp(film.y - middle + 1.5, 6.0) * (0.45 + 0.55 * ramp(film.distance - 7, 6.0))
    film.extra += (0.10 + 0.10 * sign.severity) * canvas.array() * zone * film.lung
    film.fill((0.12 + 0.18 * sign.severity) * zone)
    return film.boxes_of(zone)


def atelectasis(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    side = sign.side()
    layer = np.zeros_like(film.opacity)
    for k in range(1 + int(rng.integers(0, 3))):
        x, y = film.place(side=side, across=0.55, down=0.93 - 0.13 * k)
        tilt = float(rng.uniform(-0.3, 0.3))
        thick = 0.35 + 0.4 * sign.severity
        off = film.y - y - tilt * (film.x - x)
        long = ramp(3.4 + 1.2 * sign.severity - np.abs(film.x - x), 1.5)
        layer = np.maximum(layer, ramp(thick - np.abs(off), 0.4) * long)
    layer *= film.half(side) * (0.7 + 0.3 * sign.severity)
    film.fill(0.85 * layer)
    film.extra += 0.04 * layer * film.lung
    return film.boxes_of(layer)
