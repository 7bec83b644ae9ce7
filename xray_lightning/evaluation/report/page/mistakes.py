"""The mistakes that a model was surest of, as pictures: where its errors, or the labels', show."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from xray_lightning.data.files import find_named
from xray_lightning.data.images import decode_gray
from xray_lightning.errors import UserError
from xray_lightning.page.frame import data_uri

MOST = 6  # of each kind
MOST_PER_FINDING = 2  # so that one finding does not fill all places
SIDE = 224  # pixels of a picture's longer side
_QUALITY = 80  # of its JPEG
_LEAST = 1e-7  # probabilities nearer to 0 or 1 are told apart by rounding alone
_ANCESTORS = 4  # folders above the run's that its relative data.root may be meant from


@dataclass(frozen=True)
class Mistake:
    """One image that was called wrongly for one finding.

    Attributes:
        times: how many times the odds of the probability are those of the threshold, or the
            other way round for a finding that was missed; at least 1.
        picture: a data URI; None with the `reason`.
    """

    image: str
    finding: str
    probability: float
    threshold: float
    times: float
    picture: str | None = None
    reason: str | None = None


def most_confident(
    predictions: pd.DataFrame, thresholds: Mapping[str, float], *, missed: bool
) -> list[Mistake]:
    """The false alarms, or the missed findings, that the model was surest of.

    Probabilities of a rare and of a common finding do not compare, nor do their distances from
    two thresholds. So mistakes are ordered by odds: those of the probability over those of the
    finding's own threshold, which is what the model has added to the evidence that would just
    have been enough. An image is taken once, a finding at most twice.

    Args:
        predictions: see `Evaluator`.
        thresholds: operating point by finding; findings without one are left out.
        missed: whether to look for missed findings rather than for false alarms.
    """
    found: list[Mistake] = []
    for finding, cut in thresholds.items():
        scores = predictions[f"prob_{finding}"].to_numpy(dtype=np.float64)
        present = predictions[f"label_{finding}"].to_numpy() == 1
        wrong = np.flatnonzero(present & (scores < cut) if missed else ~present & (scores >= cut))
        sure = np.abs(_log_odds(scores[wrong]) - _log_odds(np.array(cut)))
        # More than could be shown, as some images may be taken by another finding.
        for place in np.argsort(-sure, kind="stable")[: MOST + MOST_PER_FINDING]:
            image = str(predictions["image"].iloc[wrong[place]])
            score, times = float(scores[wrong[place]]), float(np.exp(sure[place]))
            found.append(Mistake(image, finding, score, float(cut), times))
    found.sort(key=lambda mistake: (-mistake.times, mistake.image, mistake.finding))
    return _varied(found)


def _log_odds(probability: np.ndarray) -> np.ndarray:
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: np.ndarray = np.log(inside / (1 - inside))
    return odds


def _varied(mistakes: Iterable[Mistake]) -> list[Mistake]:
    kept: list[Mistake] = []
    for mistake in mistakes:
        of_finding = sum(other.finding == mistake.finding for other in kept)
        taken = any(other.image == mistake.image for other in kept)
        if of_finding < MOST_PER_FINDING and not taken and len(kept) < MOST:
            kept.append(mistake)
    return kept


def with_pictures(
    mistakes: Sequence[Mistake], *, root: str | None, run_folder: Path
) -> list[Mistake]:
    """The mistakes with their pictures, or with the reason why there is none.

    Args:
        root: the folder of the images, as the run's configuration names it.
        run_folder: a relative root is looked for here and in the folders above, too: a run lies
            below the folder that it was started in.
    """
    folder = _folder(root, run_folder)
    if folder is None:
        reason = f"{root or 'the folder of its images'} is not there"
        return [replace(mistake, reason=reason) for mistake in mistakes]
    try:
        paths, _ = find_named(folder, frozenset(filter(_inside, (m.image for m in mistakes))))
    except UserError as error:
        return [replace(mistake, reason=str(error)) for mistake in mistakes]
    return [_pictured(mistake, paths.get(mistake.image), folder) for mistake in mistakes]


def _inside(image: str) -> bool:
    """Whether a name leads to no place outside of the folder that it is looked for in."""
    path = PurePosixPath(image)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _folder(root: str | None, run_folder: Path) -> Path | None:
    if not root:
        return None
    above = [run_folder.resolve(), *run_folder.resolve().parents][: _ANCESTORS + 1]
    return next((p for p in (Path(root), *(a / root for a in above)) if os.path.isdir(p)), None)


def _pictured(mistake: Mistake, path: str | None, folder: Path) -> Mistake:
    if path is None:
        return replace(mistake, reason=f"no file of this name in {folder}")
    try:
        return replace(mistake, picture=_data_uri(path))
    except UserError as error:
        return replace(mistake, reason=str(error))


def _data_uri(path: str) -> str:
    picture = Image.fromarray(decode_gray(path))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return data_uri(buffer.getvalue(), kind="image/jpeg")
