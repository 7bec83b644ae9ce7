"""The radiographic sign of each of the 14 findings, drawn where medicine puts it.

Some signs change the chest before it is drawn (`reshape`): a wide heart, flat domes, lost volume.
All others are layers over the drawn film (`add_signs`). `severity` runs from 0 (subtle) to 1. The
signs are the textbook ones (Hansell et al., "Fleischner Society: Glossary of Terms for Thoracic
Imaging", Radiology 2008), simplified: a nodule is a disc below 3 cm, a mass one above.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from xray_lightning.data import phantom_opacities as opacities
from xray_lightning.data.phantom_anatomy import Chest
from xray_lightning.data.phantom_film import Box, Film, ramp
from xray_lightning.data.phantom_opacities import Rng, Sign


def reshape(chest: Chest, signs: Mapping[str, Sign]) -> Chest:
    """The chest as the findings change its form, before anything is drawn."""
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


def _heart_box(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    return [film.chest.heart_edges()]


def _lungs_box(film: Film, sign: Sign, rng: Rng) -> list[Box]:
    return film.boxes_of(film.lung)


_LAYERS: dict[str, Callable[[Film, Sign, Rng], list[Box]]] = {
    "Cardiomegaly": _heart_box,
    "Emphysema": _lungs_box,
    "Infiltration": opacities.infiltration,
    "Pneumonia": opacities.pneumonia,
    "Consolidation": opacities.consolidation,
    "Edema": opacities.edema,
    "Fibrosis": opacities.fibrosis,
    "Mass": opacities.mass,
    "Nodule": opacities.nodule,
    "Atelectasis": opacities.atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural_Thickening": _pleural_thickening,
    "Effusion": _effusion,
    "Hernia": _hernia,
}
