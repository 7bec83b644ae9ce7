"""Renderer of a phantom: densities along the beam, then exposure, noise, marker and collimation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from xray_lightning.data.sources.phantom.anatomy import (
    CANVAS_CM,
    FILM_CM,
    Array,
    Box,
    Canvas,
    Chest,
    Film,
    Points,
    clouds,
    ramp,
)
from xray_lightning.data.sources.phantom.patients import Exam, sample_chest, sample_sign
from xray_lightning.data.sources.phantom.signs import add_signs, reshape
from xray_lightning.findings import canonical


def density(film: Film, rng: np.random.Generator, *, vessels: Array) -> Array:
    """What the beam meets, float32 (pixels, pixels): 0 for air, about 1 at the spine."""
    chest = film.chest
    depth = 0.5 + 0.5 * ramp(film.wall - film.distance - 1.6, 5.0)
    air = film.lung * depth * (1 - film.opacity) * (1 - 0.93 * film.centre)
    tissue, abdomen = _soft_tissue(film)
    sunk = ramp(film.y - film.floor - 0.5, 2.5)
    above = ramp(film.y - chest.apex + 0.5, 3.5)  # the mediastinum ends at the neck
    total = tissue + 0.20 * film.centre * (1 - sunk) * (0.3 + 0.7 * above) + abdomen
    total *= 1 + 0.03 * clouds(rng, cells=7, pixels=film.pixels)
    total -= (0.30 + 0.16 * chest.inflation + 0.10 * film.lucency) * air
    markings = vessels * (1 - film.bare) * (1 - 0.7 * film.opacity)
    markings += 0.035 * clouds(rng, cells=film.pixels // 5, pixels=film.pixels)
    total += 0.34 * markings * air
    total += chest.bone * (_ribs(film) + 0.2 * _bones(film))
    total += film.extra
    return _airway_and_spine(film, total)


def _soft_tissue(film: Film) -> tuple[Array, Array]:
    """Neck, shoulders, arms, trunk and breasts; and the abdomen under the diaphragm."""
    chest, x, y, distance = film.chest, film.x, film.y, film.distance
    side = chest.half_width + 1.0 + chest.fat
    neck = np.float32(4.8 + 0.4 * chest.fat)
    slope = 0.30 * np.maximum(distance - neck, 0) - 1.8 * np.exp(-(distance - neck) / 1.5)
    shoulder = np.where(distance > neck, chest.apex - 1.6 + slope, -CANVAS_CM).astype(np.float32)
    trunk_edge = side + 0.25 * np.clip(y - 8, 0, None) * (chest.fat - 1.5) / 2
    arm_edge = trunk_edge + 0.28 * (y - chest.apex - 8.5)
    gap = ramp(distance - trunk_edge, 0.7) * ramp(arm_edge - distance, 0.7)
    trunk = np.sqrt(np.clip(1 - (distance / (side + 1.5)) ** 2, 0.02, 1))
    thickness = 0.36 + 0.34 * trunk + 0.03 * (chest.fat - 2.0)
    body = ramp(y - shoulder, 0.8) * (1 - gap) * thickness
    body *= 1 - 0.25 * ramp(chest.apex - 1.0 - y, 5.0)  # the neck is thinner
    abdomen = (
        0.10 * ramp(y - film.floor - 0.3, 0.8) + 0.14 * ramp(y - film.floor - 3, 7.0)
    ) * trunk
    bubble = ((x - 6.2) / 2.4) ** 2 + ((y - chest.domes[1] - 2.3) / 1.1) ** 2
    abdomen -= 0.20 * ramp(1 - bubble, 0.5) * ramp(y - film.floor - 0.8, 0.4)
    if chest.breast:
        radius = ((distance - 7.4) / (1.12 * chest.breast)) ** 2
        radius = radius + ((y - chest.domes[0] + 3.6) / chest.breast) ** 2
        fullness = 0.2 + 0.8 * ramp(y - chest.domes[0] + 3.5, 7.0)  # it hangs: denser below
        body += (
            0.17
            * ramp(1 - radius, 0.3)
            * fullness
            * (1 - 0.85 * ramp(y - film.floor, 2.0))
            * (1 - 0.7 * film.centre)
        )
    return body, abdomen


def _ribs(film: Film) -> Array:
    """Posterior ribs that fall to the sides and fainter anterior ones that fall to the midline."""
    chest = film.chest
    across = film.distance / (film.wall + 0.9)
    steps = np.arange(64, dtype=np.float32) / 64
    offset = np.abs(steps - 0.5)
    profile = np.clip((0.23 - offset) / 0.05, 0, 1) + 0.5 * np.exp(
        -(((offset - 0.19) / 0.035) ** 2)
    )
    down = film.y - chest.apex
    within = ramp(0.985 - across, 0.05) * ramp(down + 1.2, 1.0) * ramp(21.5 - down, 5.0)
    back = (down - chest.rib_drop * across**2.2 + 0.9 * across) / chest.rib_spacing
    front = (down - 1.55 * chest.rib_drop * (1 - across)) / (1.25 * chest.rib_spacing)
    ribs = np.zeros_like(across)
    for phase, strength, visible in (
        (back, 0.075, ramp(across - 0.15, 0.1)),
        (front, 0.045, ramp(across - 0.62, 0.35)),
    ):
        index = ((phase + chest.rib_phase + 20) * 64).astype(np.int32) & 63
        ribs += strength * profile[index] * visible
    shaded: Array = (
        ribs
        * within
        * (0.35 + 0.65 * film.lung * (1 - 0.8 * film.centre) * (1 - 0.6 * film.opacity))
    )
    return shaded.astype(np.float32)


def _bones(film: Film) -> Array:
    """Clavicles, shoulder blades and upper arms."""
    chest, canvas = film.chest, Canvas(film.pixels)
    top, wide = chest.apex, chest.half_width
    for side in (-1.0, 1.0):
        blade = [(0.62, 1.0), (0.80, 0.2), (1.16, 3.0), (1.02, 6.5), (0.93, 12.5), (0.72, 6.0)]
        outline = [(side * (a * wide - chest.scapula), top + b) for a, b in blade]
        canvas.polygon(outline, level=0.22)
        canvas.line([*outline, outline[0]], width=0.4, level=0.45)
        arm = [
            (side * (wide + 2.8), top + 2.4),
            (side * (wide + 4.6), top + 10),
            (side * 22, top + 24),
        ]
        canvas.line(arm, width=2.0, level=0.55)
        canvas.polygon(_circle(side * (wide + 2.6), top + 2.4, radius=2.0), level=0.6)
        clavicle = [(1.9, 3.2), (4.5, 2.5), (8.0, 0.7), (11.0, 0.0), (wide + 1.5, 0.6)]
        course = [(side * a, top + b + chest.clavicle * (1 - a / 15)) for a, b in clavicle]
        canvas.line(course, width=1.25, level=1.0)
        canvas.line(course, width=0.6, level=0.72)
    return canvas.array(blur=0.14)


def _circle(x: float, y: float, *, radius: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 20)
    return [(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in angles]


def _airway_and_spine(film: Film, total: Array) -> Array:
    """Vertebrae seen through the mediastinum, and the trachea with both main bronchi."""
    chest, x, y = film.chest, film.x, film.y
    columns = slice(*np.searchsorted(x[0], (-6.0, 6.0)))
    near = x[:, columns]
    waist = 0.12 * np.cos(2 * np.pi * y / 2.5)
    spine = ramp(1.75 + waist - np.abs(near), 0.4) * (0.75 + 0.25 * np.cos(2 * np.pi * y / 2.5))
    carina = chest.hilum - 2.4
    trachea = ramp(0.85 - np.abs(near - 0.7 * chest.shift), 0.5) * ramp(carina - y, 1.0)
    bronchus = ramp(0.55 - np.abs((y - carina) - 0.75 * np.abs(near - chest.shift)), 0.5)
    trachea = np.maximum(trachea, 0.7 * bronchus * ramp(3.4 - np.abs(near - chest.shift), 1.0))
    total[:, columns] += 0.085 * chest.bone * spine - 0.13 * trachea
    return total


def vascular_tree(chest: Chest, rng: np.random.Generator, *, pixels: int) -> Array:
    """Vessels that fan out from both hila and taper, float32 in 0..1, (pixels, pixels)."""
    canvas = Canvas(pixels)
    reach = (sum(chest.domes) / 2 - chest.apex) / 2
    fan = np.linspace(-1, 1, 13)
    # Few vessels run level: most climb to the apex or fall to the base.
    angles = 85 * np.sign(fan) * np.abs(fan) ** 0.6
    for side, hilum in ((-1.0, chest.hilum + 0.5), (1.0, chest.hilum - 0.5)):
        turned = np.deg2rad(angles + rng.uniform(-6, 6, 13))
        bends, lengths = rng.uniform(-0.4, 0.4, 13), rng.uniform(0.9, 1.15, 13) * reach
        for angle, bend, length in zip(turned, bends, lengths, strict=True):
            root = (chest.shift + side * 2.6, hilum + 1.9 * float(np.sin(angle)))
            _vessel(
                canvas, root, side=side, angle=angle, bend=bend, length=length, size=chest.vessels
            )
    return canvas.array(blur=0.07) + np.float32(0.5 * chest.vessels) * _hila(chest, pixels)


def _vessel(
    canvas: Canvas,
    root: tuple[float, float],
    *,
    side: float,
    angle: float,
    bend: float,
    length: float,
    size: float,
) -> None:
    """A curved trunk that tapers away from the hilum, with a side branch at each joint."""
    steps = np.linspace(0, 1, 5)
    turns = angle + bend * steps + 0.1 * np.sin(7 * steps + 9 * bend)
    along = length * (0.86 + 0.3 * max(0.0, np.sin(angle))) * steps
    xs, ys = root[0] + side * np.cos(turns) * along, root[1] + np.sin(turns) * along
    widths = (0.42 * size * (1 - steps) ** 1.3 + 0.07).tolist()
    trunk = list(zip(xs.tolist(), ys.tolist(), strict=True))
    for k in range(4):
        level = 0.75 - 0.45 * k / 4
        canvas.line(trunk[k : k + 2], width=widths[k], level=level)
        turn, branch = float(turns[k]) + (0.6 if k % 2 else -0.6), 0.35 * length * (1.1 - k / 4)
        x, y = trunk[k]
        end = (x + side * math.cos(turn) * branch, y + math.sin(turn) * branch)
        canvas.line([(x, y), end], width=0.6 * widths[k], level=0.8 * level)


def _hila(chest: Chest, pixels: int) -> Array:
    """The soft shadows of both hila, the left one higher."""
    axis = (((np.arange(pixels) + 0.5) / pixels - 0.5) * CANVAS_CM).astype(np.float32)
    shadows = np.zeros((pixels, pixels), dtype=np.float32)
    for side, y in ((-1.0, chest.hilum + 0.7), (1.0, chest.hilum - 0.3)):
        across = np.exp(-(((axis - chest.shift - side * 3.2) / 1.2) ** 2))
        shadows += np.outer(np.exp(-(((axis - y) / 2.1) ** 2)), across)
    return shadows


BOX_GRID = 1024  # NIH gives its boxes in pixels of the 1024 x 1024 image


@dataclass(frozen=True)
class PhantomBox:
    """Where a finding shows: left, top, width and height on a 1024 grid, as in NIH's box list."""

    finding: str
    x: float
    y: float
    width: float
    height: float

    def row(self) -> str:
        """The box as the last five cells of NIH's list, which says Infiltrate."""
        name = "Infiltrate" if self.finding == "Infiltration" else self.finding
        return f"{name},{self.x:.3f},{self.y:.3f},{self.width:.3f},{self.height:.3f}"


def draw_phantom(
    findings: Sequence[str] = (),
    *,
    seed: int = 0,
    patient: int = 1,
    follow_up: int = 0,
    sex: str = "M",
    age: int = 50,
    view: str = "PA",
    size: int = 256,
    severity: float | None = None,
) -> tuple[npt.NDArray[np.uint8], list[PhantomBox]]:
    """Draw one film of a patient with the given properties; see `draw_exam`.

    Two calls that differ in `findings` alone show the same chest, exposure and noise without and
    with the signs.
    """
    names = tuple(canonical(name) for name in findings)
    exam = Exam(patient, follow_up, sex, age, view, names)
    return draw_exam(exam, seed=seed, size=size, severity=severity)


def draw_exam(
    exam: Exam, *, seed: int, size: int, severity: float | None = None
) -> tuple[npt.NDArray[np.uint8], list[PhantomBox]]:
    """Draw one film; `severity` (0 subtle .. 1) overrides what the seed would choose.

    Returns:
        The image, uint8 of shape (size, size), bright where dense, and the boxes of its findings.
    """
    signs = {n: sample_sign(exam, n, seed=seed, severity=severity) for n in exam.findings}
    chest = reshape(sample_chest(exam, seed=seed), signs)
    film = Film(chest, pixels=round(size * CANVAS_CM / FILM_CM))
    found = add_signs(film, signs)
    # Each purpose has its own stream, so that a sign moves no vessel and changes no noise.
    tree, tissue = (np.random.default_rng([seed, exam.patient, purpose]) for purpose in (5, 6))
    vessels = vascular_tree(chest, tree, pixels=film.pixels)
    beam = density(film, tissue, vessels=vessels)
    rng = np.random.default_rng([seed, exam.patient, 7, exam.follow_up])
    pose = _Pose.sample(rng, view=exam.view)
    image = _expose(pose.project(beam, size=size), rng, view=exam.view)
    boxes = [pose.box(name, box) for name, some in found.items() for box in some]
    return image, [box for box in boxes if box is not None]


@dataclass(frozen=True)
class _Pose:
    """How the chest lies on the film: turned (radians), enlarged, shifted (cm)."""

    angle: float
    zoom: float
    shift: tuple[float, float]

    @classmethod
    def sample(cls, rng: np.random.Generator, *, view: str) -> "_Pose":
        limit = 0.06 if view == "AP" else 0.035
        angle = float(np.clip(rng.normal(0, 0.5 * limit), -limit, limit))
        across, down = rng.uniform(-0.8, 0.8, 2)
        return cls(angle, float(rng.uniform(0.94, 1.05)), (float(across), float(down)))

    def project(self, density: Array, *, size: int) -> Array:
        """The film, (size, size), out of the larger canvas."""
        scale = density.shape[0] / CANVAS_CM  # canvas pixels per cm
        step = FILM_CM / size * scale / self.zoom
        a, b = step * float(np.cos(self.angle)), step * float(np.sin(self.angle))
        middle = density.shape[0] / 2
        x0 = middle - (a + b) * size / 2 - self.shift[0] * scale
        y0 = middle - (a - b) * size / 2 - self.shift[1] * scale
        film = Image.fromarray(density).transform(
            (size, size),
            Image.Transform.AFFINE,
            (a, b, x0, -b, a, y0),
            resample=Image.Resampling.BILINEAR,
        )
        return np.asarray(film)

    def box(self, finding: str, box: Box) -> PhantomBox | None:
        """A canvas box (cm) as an upright box on the film, or None where it lies outside."""
        corners = np.array([(x, y) for x in box[0::2] for y in box[1::2]]) + self.shift
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = corners @ np.array([[cos, sin], [-sin, cos]]) * self.zoom
        points = np.clip((turned / FILM_CM + 0.5) * BOX_GRID, 0, BOX_GRID)
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        if x1 - x0 < 1 or y1 - y0 < 1:
            return None
        return PhantomBox(finding, x0, y0, x1 - x0, y1 - y0)


def _expose(density: Array, rng: np.random.Generator, *, view: str) -> npt.NDArray[np.uint8]:
    """Exposure, contrast, noise, side marker and collimation: what differs from film to film."""
    gamma, white = float(np.exp(rng.normal(0, 0.18))), float(rng.uniform(1.0, 1.2))
    veil = float(rng.uniform(0.0, 0.08)) + (0.08 if view == "AP" else 0.0)  # scatter
    gray = np.clip(density / np.float32(white), 0, 1) ** np.float32(gamma)
    gray = veil + (float(rng.uniform(0.97, 1.0)) - veil) * gray
    noise = float(rng.uniform(0.006, 0.022))
    gray = gray + noise * rng.standard_normal(gray.shape, dtype=np.float32)
    image = Image.fromarray((np.clip(gray, 0, 1) * 255).astype(np.uint8))
    _mark_side(image, rng)
    _collimate(image, rng)
    return np.array(image)


def _mark_side(image: Image.Image, rng: np.random.Generator) -> None:
    """A lead letter: mostly L on the image's right, else R on its left."""
    size, left_letter = image.width, bool(rng.random() < 0.75)
    height = size * float(rng.uniform(0.03, 0.045))
    x = (
        size * float(rng.uniform(0.87, 0.93))
        if left_letter
        else size * float(rng.uniform(0.05, 0.1))
    )
    y = size * float(rng.uniform(0.04, 0.12))
    strokes = (
        [[(0, 0), (0, 1), (0.55, 1)]]
        if left_letter
        else [
            [(0, 1), (0, 0), (0.45, 0), (0.55, 0.25), (0.45, 0.5), (0, 0.5)],
            [(0.25, 0.5), (0.6, 1)],
        ]
    )
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        points = [(x + a * height, y + b * height) for a, b in stroke]
        draw.line(points, fill=250, width=max(1, size // 128))


def _collimate(image: Image.Image, rng: np.random.Generator) -> None:
    """On some films, black (rarely white) strips along the edges."""
    strips = rng.uniform(0.005, 0.06, 4) * (rng.random(4) < 0.4) * (rng.random() < 0.35)
    left, top, right, bottom = (int(strip * image.width) for strip in strips)
    fill = 255 if rng.random() < 0.1 else 0
    frame = Image.new("L", image.size, fill)
    inside = (left, top, image.width - right, image.height - bottom)
    frame.paste(image.crop(inside), inside[:2])
    image.paste(frame)
