"""Localisation scores: the pointing game and overlap of maps with boxes, beside chance."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_lightning.data.decode_resize import UnreadableImageError
from xray_lightning.data.manifest import read_manifest
from xray_lightning.data.sources.nih import FILE, read_boxes
from xray_lightning.data.splits import make_split, own_split
from xray_lightning.deploy.preprocess import Preprocessing
from xray_lightning.deploy.saliency.maps import BATCH, Explainer, Maps
from xray_lightning.errors import UserError
from xray_lightning.evaluation.bootstrap import FEW_WITH, Estimate, mean_of_defined, resampled
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.predictions import ENOUGH_PATIENTS, Bools, Floats, Integers

LEVELS = (0.25, 0.5, 0.75)  # thresholds that binarise a map, as shares of its largest value
PLACE = ["left", "top", "right", "bottom"]


@dataclass(frozen=True)
class Score:
    """A localisation score of the maps of one finding, or the mean over findings."""

    value: float
    ci95: tuple[float, float] | None  # by resampling patients
    chance: float  # expected score of a random point, or of as many random pixels
    # Score of other patients' maps of the same finding on these boxes. The gain over it comes from
    # the image, not from where such findings usually lie.
    another: float
    why: str | None = None  # why there is no interval

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "ci95": None if self.ci95 is None else list(self.ci95),
            **({} if self.why is None else {"ci95_undefined": self.why}),
            "chance": self.chance,
            "another_patient": None if np.isnan(self.another) else self.another,
        }


@dataclass(frozen=True)
class Localisation:
    """Localisation scores of one model and method, by finding, and as "macro" their mean."""

    images: dict[str, int]  # number of scored images with boxes, by finding
    pointing: dict[str, Score]  # share of maps whose largest value lies in a box
    overlap: dict[float, dict[str, Score]]  # by level, mean intersection over union with the boxes
    unreadable: dict[str, str]  # images with boxes that cannot be read, and why

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "pointing": {name: one.as_json() for name, one in self.pointing.items()},
            "iou": {
                f"{level:g}": {name: one.as_json() for name, one in scores.items()}
                for level, scores in self.overlap.items()
            },
            "unreadable": self.unreadable,
        }


MACRO = "macro"


def localise(
    explainer: Explainer,
    boxes: pd.DataFrame,
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: Display = unseen,
) -> Localisation:
    """Score a model's maps against boxes.

    Args:
        boxes: as `boxes_to_score` gives them.
        resamples: draws of patients for the intervals.
        seed: of the draws, and of the choice of another patient's map for each image.

    Raises:
        UserError: no readable image has a box of a finding that the model knows.
    """
    boxes = boxes[boxes["finding"].isin(explainer.findings)]
    unreadable: dict[str, str] = {}
    outcomes: dict[str, dict[str, Floats]] = {}
    patients: dict[str, list[str]] = {}
    random = np.random.default_rng(seed)
    with progress("explaining", boxes.groupby("finding")["image"].nunique().sum()) as advance:
        for finding in explainer.findings:
            rows = boxes[boxes["finding"] == finding]
            names, inside, maps = _cases(explainer, rows, finding, unreadable)
            if names:
                patients[finding] = names
                others = _others(names, random)
                outcomes[finding] = _outcomes(np.stack(inside), np.concatenate(maps), others)
            advance(rows["image"].nunique())
    if not outcomes:
        raise UserError(
            "there is no box of a finding that the model knows, around one in an image that can be "
            "read: nothing to score"
        )
    scores = _scores(outcomes, patients, resamples=resamples, seed=seed)
    images = {finding: len(names) for finding, names in patients.items()}
    return Localisation(
        images, scores["hit"], {level: scores[f"{level}"] for level in LEVELS}, unreadable
    )


def _cases(
    explainer: Explainer, boxes: pd.DataFrame, finding: str, unreadable: dict[str, str]
) -> tuple[list[str], list[Bools], list[Maps]]:
    """Patients, box masks and batches of maps of readable images; adds others to `unreadable`."""
    size, place = explainer.model.image_size, explainer.findings.index(finding)
    prepare = Preprocessing(size)
    patients: list[str] = []
    inside: list[Bools] = []
    maps: list[Maps] = []

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for image, rows in boxes.groupby("image"):
            path = rows["path"].iloc[0]
            try:
                decoded = prepare.file(path).pixels
            except UnreadableImageError as error:
                unreadable[str(image)] = str(error).removeprefix(f"{path}: ")
                continue
            inside.append(box_mask(rows[PLACE].to_numpy(), size))
            patients.append(rows["patient_id"].iloc[0])
            yield decoded

    found = pixels()
    while batch := list(islice(found, BATCH)):
        maps.append(explainer.maps(np.stack(batch)[:, None], place))
    return patients, inside, maps


def _outcomes(inside: Bools, maps: Maps, others: Integers) -> dict[str, Floats]:
    """Scores (N,) by name: of each image's own map, of another patient's map, and by chance.

    Args:
        inside: pixels in a box, (N, S, S).
        maps: (N, S, S).
        others: for each image, the index of another patient's; its own index if there is none.
    """
    area = inside.mean(axis=(1, 2))
    found: dict[str, Floats] = {"chance": area}
    for name, of in (("own", maps), ("another", maps[others])):
        found[f"{name}_hit"] = _hits(of, inside)
        for level in LEVELS:
            found[f"{name}_{level}"] = _overlap(_marked(of, level), inside)
    for level in LEVELS:
        # As many pixels as in the binarised map, placed at random: expected intersection over
        # expected union.
        share = _marked(maps, level).mean(axis=(1, 2))
        both = share * area
        found[f"chance_{level}"] = both / (share + area - both)
    missing = others == np.arange(len(others))
    for name in found:
        if name.startswith("another"):
            found[name] = np.where(missing, np.nan, found[name])
    return found


def box_mask(boxes: Floats, size: int) -> Bools:
    """Mask of the pixels of a square whose centre lies in a box: bool (size, size).

    Args:
        boxes: left, top, right and bottom, in shares of the image: (N, 4).
    """
    middles = (np.arange(size) + 0.5) / size
    inside = np.zeros((size, size), dtype=bool)
    for left, top, right, bottom in boxes:
        rows = (middles >= top) & (middles <= bottom)
        columns = (middles >= left) & (middles <= right)
        # A box too thin to hold a pixel's centre gets the row or column at the box's centre.
        for near, start, end in ((rows, top, bottom), (columns, left, right)):
            if not near.any():
                near[min(size - 1, int((start + end) / 2 * size))] = True
        inside |= rows[:, None] & columns
    return inside


def _hits(maps: Maps, inside: Bools) -> Floats:
    """Whether each map's largest value lies in a box; an all-zero map never hits."""
    flat = maps.reshape(len(maps), -1)
    largest = flat.argmax(axis=1)
    hit = inside.reshape(len(maps), -1)[np.arange(len(maps)), largest]
    hits: Floats = (hit & (flat.max(axis=1) > 0)).astype(np.float64)
    return hits


def _marked(maps: Maps, level: float) -> Bools:
    """Binarised maps (N, S, S): pixels of at least this share of their map's largest value."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    marked: Bools = (maps >= level * largest) & (largest > 0)
    return marked


def _overlap(marked: Bools, inside: Bools) -> Floats:
    both = (marked & inside).sum(axis=(1, 2))
    either = (marked | inside).sum(axis=(1, 2))
    overlap: Floats = both / np.maximum(either, 1)
    return overlap


def _others(patients: Sequence[str], random: np.random.Generator) -> Integers:
    """For each image, a random index of another patient's; its own if all are of one patient."""
    names = np.array(patients, dtype=object)
    others = np.arange(len(names))
    for place, name in enumerate(names):
        candidates = np.flatnonzero(names != name)
        if len(candidates):
            others[place] = random.choice(candidates)
    return others


def _scores(
    outcomes: Mapping[str, Mapping[str, Floats]],
    patients: Mapping[str, Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Score]]:
    """By measure, the score of each finding and their mean."""
    everyone = sorted({name for names in patients.values() for name in names})
    number_of = {name: number for number, name in enumerate(everyone)}
    rows = {
        finding: np.array([number_of[name] for name in names])
        for finding, names in patients.items()
    }
    measures = ("hit", *(str(level) for level in LEVELS))

    def means(drawn: Integers) -> dict[str, Floats]:
        """By measure, each finding's mean (F,), weighted by how often each patient was drawn."""
        return {
            measure: np.array(
                [_mean(outcomes[f][f"own_{measure}"], drawn[rows[f]]) for f in outcomes]
            )
            for measure in measures
        }

    plain, draws = resampled(means, patients=len(everyone), resamples=resamples, seed=seed)
    found: dict[str, dict[str, Score]] = {}
    for measure in measures:
        chance = "chance" if measure == "hit" else f"chance_{measure}"
        scores: dict[str, Score] = {}
        for place, (finding, of) in enumerate(outcomes.items()):
            scores[finding] = _score(
                plain[measure][place],
                draws[measure][:, place],
                chance=of[chance],
                another=of[f"another_{measure}"],
                patients=len(set(patients[finding])),
            )
        macro = _score(
            np.nanmean(plain[measure]),
            mean_of_defined(draws[measure]),
            chance=np.array([one.chance for one in scores.values()]),
            another=np.array([one.another for one in scores.values()]),
            patients=len(everyone),
        )
        found[measure] = scores | {MACRO: macro}
    return found


def _score(
    value: np.floating, drawn: Floats, *, chance: Floats, another: Floats, patients: int
) -> Score:
    few = FEW_WITH if patients < ENOUGH_PATIENTS else None
    found = Estimate.of(float(value), drawn, few=few)
    return Score(
        float(value), found.ci95, _mean_of_defined(chance), _mean_of_defined(another), found.reason
    )


def _mean(values: Floats, weights: Integers) -> float:
    total = weights.sum()
    return float(values @ weights / total) if total else float("nan")


def _mean_of_defined(values: Floats) -> float:
    return float(mean_of_defined(values[None])[0])


class Box(NamedTuple):
    """A box around a finding, in shares of the image's width and height."""

    finding: str
    left: float
    top: float
    right: float
    bottom: float


log = logging.getLogger(__name__)

ABOVE = 3  # folders searched upwards for boxes; NIH's images are in DIR/images_001/images


def boxes_of(paths: Sequence[str], *, file: Path | None) -> Mapping[str, Sequence[Box]]:
    """The boxes of images, by path.

    Args:
        file: the list of boxes; None for the nearest one beside the images or in folders above.

    Raises:
        UserError: `file` is missing or faulty. A faulty list that was found without `file` is
            logged and left out.
    """
    nearest, read = cache(_nearest), cache(partial(_read, asked_for=file is not None))
    found: dict[str, Sequence[Box]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        place = file or nearest(Path(folder))
        if place is not None and name in read(place):
            found[path] = read(place)[name]
    return found


def _nearest(folder: Path) -> Path | None:
    folders = [folder, *folder.absolute().parents][:ABOVE]
    return next((one / FILE for one in folders if (one / FILE).is_file()), None)


def _read(file: Path, *, asked_for: bool) -> dict[str, list[Box]]:
    try:
        boxes = read_boxes(file)
    except UserError as error:
        if asked_for:
            raise
        log.warning("%s; no boxes are shown", error)
        return {}
    found: dict[str, list[Box]] = {}
    for image, *box in boxes.itertuples(index=False):
        found.setdefault(str(image), []).append(Box(*box))
    return found


SIDES = ("test", "all")


def boxes_to_score(root: Path, *, images: Path | None = None, side: str = "test") -> pd.DataFrame:
    """The boxes of a data set, with the file and patient of their images.

    Args:
        root: folder of NIH's table, lists and boxes.
        images: folder of the images; `root` when None.
        side: `test`, the images of the official test list, or `all` of them.

    Returns:
        Columns of `read_boxes`, `path` and `patient_id`, for images with a table row and a file.

    Raises:
        UserError: a file is missing or cannot be read, or no box is left.
    """
    if side not in SIDES:
        raise UserError(f"--side {side} is unknown; choose one of {', '.join(SIDES)}")
    manifest = read_manifest(root, images=images)
    boxes = read_boxes(root / FILE)
    rows = manifest.table[["image", "path", "patient_id"]]
    if side == "test":
        name = own_split(manifest)
        if name is None:
            raise UserError(
                f"{root} brings no split along, so that nobody knows which images are for testing; "
                "give --side all"
            )
        rows = rows[rows["image"].isin(make_split(manifest, name).sides["test"])]
    found = boxes.merge(rows[rows["path"] != ""], on="image")
    if found.empty:
        raise UserError(
            f"{root / FILE}: none of {len(boxes):,} boxes is of an image that is there and on the "
            f"side asked for ({side})"
        )
    return found
