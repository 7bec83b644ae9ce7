"""From a chest to one grayscale image: pose, exposure, noise, side marker and collimation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from xray_lightning.data.phantom_anatomy import Array
from xray_lightning.data.phantom_film import CANVAS_CM, FILM_CM, Box, Film
from xray_lightning.data.phantom_patients import Exam, sample_chest, sample_sign
from xray_lightning.data.phantom_signs import add_signs, reshape
from xray_lightning.data.phantom_tissue import density, vascular_tree
from xray_lightning.findings import canonical

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
    """Draw one film of a patient of one's choice; see `draw_exam`.

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
