"""The radiographic sign of each of the 14 findings, drawn in its typical place.

Some signs change the chest before it is drawn (`reshape`): a wide heart, flat domes, lost volume.
All others are layers over the drawn film (`add_signs`). `severity` runs from 0 (subtle) to 1. The
signs are the textbook ones (Hansell et al., "Fleischner Society: Glossary of Terms for Thoracic
Imaging", Radiology 2008), simplified: a nodule is a disc below 3 cm, a mass one above.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from xray_lightning.data.sources.phantom.anatomy import (
    Array,
    Box,
    Canvas,
    Chest,
    Film,
    clouds,
    ramp,
)

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


def reshape(chest: Chest, signs: Mapping[str, Sign]) -> Chest:
    """The chest with its shape changed by the findings, before anything is drawn."""
    for name, sign in signs.items():
        if name in _RESHAPES:
            chest = _RESHAPES[name](chest, sign)
    return chest


def add_signs(film: Film, signs: Mapping[str, Sign]) -> dict[str, list[Box]]:
    """Draw the findings onto the film's layers; returns each one's boxes in cm."""
    # In the order of _LAYERS, not of `signs`: fluid covers what lies in the lung.
    return {
        name: draw(film, signs[name], np.random.default_rng([signs[name].place, 1]))
        for name, draw in _LAYERS.items()
        if name in signs
    }


def _cardiomegaly_shape(chest: Chest, sign: Sign) -> Chest:
    return replace(chest, heart_ratio=max(chest.heart_ratio + 0.03, 0.515 + 0.13 * sign.severity))


def _emphysema_shape(chest: Chest, sign: Sign) -> Chest:
    low = 0.2 + 2.7 * sign.severity
    return replace(
        chest,
        half_width=chest.half_width * (1 + 0.05 * sign.severity),
        domes=(chest.domes[0] + low, chest.domes[1] + low),
        sulcus=chest.sulcus * (0.75 - 0.55 * sign.severity),
        heart_ratio=chest.heart_ratio * (0.95 - 0.18 * sign.severity),
        inflation=chest.inflation + 0.05 + 0.6 * sign.severity,
        vessels=chest.vessels * (0.9 - 0.35 * sign.severity),
        rib_drop=chest.rib_drop * 0.75,
    )


def _atelectasis_shape(chest: Chest, sign: Sign) -> Chest:
    return _raise_dome(
        replace(chest, shift=chest.shift + sign.side() * (0.3 + 0.7 * sign.severity)),
        side=sign.side(),
        by=1.2 + 2.2 * sign.severity,
    )


def _fibrosis_shape(chest: Chest, sign: Sign) -> Chest:
    by = 0.4 + 0.8 * sign.severity
    return _raise_dome(_raise_dome(chest, side=-1, by=by), side=1, by=by)


def _edema_shape(chest: Chest, sign: Sign) -> Chest:
    return replace(chest, vessels=chest.vessels * (1.1 + 0.5 * sign.severity))


def _raise_dome(chest: Chest, *, side: int, by: float) -> Chest:
    right, left = chest.domes
    domes = (right - by, left) if side < 0 else (right, left - by)
    return replace(chest, domes=domes)


_RESHAPES: dict[str, Callable[[Chest, Sign], Chest]] = {
    "Cardiomegaly": _cardiomegaly_shape,
    "Emphysema": _emphysema_shape,
    "Atelectasis": _atelectasis_shape,
    "Fibrosis": _fibrosis_shape,
    "Edema": _edema_shape,
}


def _pneumothorax(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    side = sign.side()
    chest = film.chest
    gap = 1.0 + 3.6 * sign.severity
    down = (film.y - chest.apex) / (max(chest.domes) - chest.apex)
    retreat = gap * (1.15 - 0.75 * np.clip(down, 0, 1))  # air rises: wider at the apex
    sunk = film.y - 0.8 * gap
    inner = chest.lateral(sunk) - retreat - film.distance
    inner = np.minimum(inner, film.distance - chest.medial(sunk))
    inner = np.minimum(inner, sunk - chest.apex)
    outside = (1 - ramp(inner, film.edge)) * film.half(side)
    line = np.clip(1 - np.abs(inner) / max(0.14, 0.8 * film.pixel_cm), 0, 1) * film.half(side)
    film.bare = np.maximum(film.bare, outside)
    film.lucency += (0.6 + 0.8 * sign.severity) * outside
    film.opacity *= 1 - outside
    film.fill((0.05 + 0.12 * sign.severity) * film.half(side) * (1 - outside))
    film.extra += 0.12 * line * film.lung * (1 - film.centre)
    return film.boxes_of(outside)


def _pleural_thickening(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    boxes: list[Box] = []
    side = sign.side()
    both = bool(rng.random() < 0.3)
    for current in (side, -side) if both else (side,):
        thick = 0.4 + 1.1 * sign.severity
        _, top = film.place(side=current, across=1, down=float(rng.uniform(0.05, 0.35)))
        _, low = film.place(side=current, across=1, down=float(rng.uniform(0.8, 1.05)))
        waves = thick * (1 + 0.2 * np.sin(0.8 * film.y + float(rng.uniform(0, 6))))
        waves = waves * ramp(film.y - top, 2.5) * ramp(low - film.y, 2.5)
        layer = ramp(film.distance - film.wall + waves, 0.4) * film.half(current)
        layer *= ramp(waves - 0.15, 0.3)
        film.fill((0.6 + 0.35 * sign.severity) * layer)
        film.extra += 0.07 * layer * film.lung
        boxes += film.boxes_of(layer)
    return boxes


def _effusion(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    boxes: list[Box] = []
    sides = (-1, 1) if rng.random() < 0.35 else (sign.side(),)
    for side in sides:
        chest = film.chest
        angle = chest.domes[0 if side < 0 else 1] + chest.sulcus
        level = angle - 0.55 * chest.sulcus - 0.6 - 6.0 * sign.severity**1.5
        from_wall = np.clip(chest.half_width - film.distance, 0, None)
        meniscus = level + 2.2 - (2.8 + 1.2 * sign.severity) * np.exp(-from_wall / 2.2)
        layer = ramp(film.y - meniscus, 0.7) * film.half(side)
        film.fill(0.95 * layer)
        film.extra += (0.05 + 0.08 * ramp(film.y - meniscus - 1, 5.0)) * layer * film.lung
        boxes += film.boxes_of(layer)
    return boxes


def _hernia(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    chest = film.chest
    radius = 2.2 + 1.9 * sign.severity
    x = chest.shift + float(rng.uniform(0.2, 2.2))
    y = min(chest.domes) + 0.6 - 0.75 * radius
    distance = np.sqrt((film.x - x) ** 2 + ((film.y - y) / 0.9) ** 2)
    sac = ramp(radius - distance, 0.35)
    gas = ramp(radius - 0.45 - distance, 0.35) * ramp(y + 0.15 * radius - film.y, 0.15)
    film.fill(0.9 * sac)
    film.extra += (0.02 + 0.06 * sign.severity) * sac - (0.03 + 0.24 * sign.severity) * gas
    return [(x - radius, y - 0.9 * radius, x + radius, y + 0.9 * radius)]


_LAYERS: dict[str, Callable[[Film, Sign, Rng], list[Box]]] = {
    "Cardiomegaly": lambda film, sign, rng: [film.chest.heart_edges()],
    "Emphysema": lambda film, sign, rng: film.boxes_of(film.lung),
    "Infiltration": infiltration,
    "Pneumonia": pneumonia,
    "Consolidation": consolidation,
    "Edema": edema,
    "Fibrosis": fibrosis,
    "Mass": mass,
    "Nodule": nodule,
    "Atelectasis": atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural_Thickening": _pleural_thickening,
    "Effusion": _effusion,
    "Hernia": _hernia,
}
