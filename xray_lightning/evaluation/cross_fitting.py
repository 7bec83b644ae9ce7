"""Cross-fitting on a site's images: operating points and calibration, judged on other patients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from xray_lightning.evaluation.bootstrap import FEW_PATIENTS
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.ensemble import (
    Member,
    labelled,
    member_logits,
    probabilities_of,
)
from xray_lightning.evaluation.evaluation_data import MappedData
from xray_lightning.evaluation.mapped_findings import MappedFindings
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.hardware import Speed, choose_accelerator, choose_precision
from xray_lightning.progress import Display, unseen
from xray_lightning.runs.predictions import Bools, Floats, Integers, ScoredImages

FOLDS = 5


@dataclass(frozen=True)
class Site:
    """Images of a site with a model's predictions.

    Attributes:
        images: predictions of the site's findings, with its labels.
        single: probabilities of the model's own findings, shape (N, model's findings).
        mapped: which of the model's findings make up each of the site's.
        table: the predictions as they are written.
    """

    images: ScoredImages
    single: Floats
    mapped: MappedFindings
    table: pd.DataFrame

    @classmethod
    def of(
        cls,
        member: Member,
        data: MappedData,
        findings: Mapping[str, Sequence[str]],
        *,
        side: str = "test",
        accelerator: str = "auto",
        precision: str = "32-true",
        progress: Display = unseen,
    ) -> "Site":
        """Run a model on a site's images.

        Args:
            data: as `mapped_data_for` gives them.
            findings: of each finding of the site, the model's findings that make it up.

        Raises:
            UserError: the data cannot be used.
            RunFailedError: a NaN or infinite logit.
        """
        accelerator = choose_accelerator(accelerator)
        precision = choose_precision(precision, accelerator=accelerator)
        Speed().prepare(accelerator=accelerator, local_ranks=1)
        data.prepare_data()
        data.setup()
        rows = data.table(side)
        with progress(f"scoring {side} images", len(rows)) as advance:
            logits = member_logits(
                [member],
                getattr(data, f"{side}_dataloader")(),
                images=len(rows),
                device=torch.device(accelerator),
                precision=precision,
                advance=advance,
            )
        single = probabilities_of(logits[0]).astype(np.float64)
        mapped = MappedFindings.of(findings, tuple(member.described["findings"]))
        table = labelled(data, mapped.probabilities(single).astype(np.float32), side=side)
        names = np.array([str(name) for name in table["image"]], dtype=object)
        order = np.argsort(names, kind="stable")  # as `ScoredImages` has them
        return cls(ScoredImages.of(table), single[order], mapped, table)


def fit_both(
    images: ScoredImages,
    names: Sequence[str],
    rule: OperatingRule,
    calibrator: Calibrator,
    *,
    rows: Bools | None = None,
) -> tuple[OperatingPoints, Calibration]:
    """Fit operating points and calibration of the findings `names` on the images in `rows`."""
    kept = np.ones(len(images.labels), dtype=bool) if rows is None else rows
    columns: dict[str, Any] = {"split": ["val"] * int(kept.sum())}
    for name in names:
        place = images.findings.index(name)
        columns[f"prob_{name}"] = images.scores[kept, place]
        columns[f"label_{name}"] = images.labels[kept, place]
    table = pd.DataFrame(columns)
    return rule.fit(table), calibrator.fit(table)


def why_not(name: str, points: OperatingPoints, calibration: Calibration) -> str | None:
    """Why a finding could not be fitted, without the word "validation"; None if it could."""
    why = points.undefined.get(name) or calibration.undefined.get(name)
    if why is None:
        return None
    return why.replace("on validation, ", "").replace("validation ", "")


def too_few_to_fit(images: ScoredImages) -> dict[str, str]:
    """The findings with too few positive or too few negative patients, each with that reason."""
    having, lacking = images.enough()
    enough = dict(zip(images.findings, having & lacking, strict=True))
    return {name: FEW_PATIENTS for name, fits in enough.items() if not fits}


@dataclass(frozen=True)
class CrossFitted:
    """Calls and calibrated probabilities, each from a fit that has not seen its patient.

    Attributes:
        called: shape (N, findings).
        probabilities: shape (N, findings).
        undefined: the findings that could not be fitted in every fold, and why.
    """

    called: Bools
    probabilities: Floats
    undefined: dict[str, str]

    @classmethod
    def of(
        cls, images: ScoredImages, rule: OperatingRule, calibrator: Calibrator, *, seed: int
    ) -> "CrossFitted":
        """Fit to all folds of patients but one, and apply to that one, fold by fold."""
        undefined = too_few_to_fit(images)
        names = [name for name in images.findings if name not in undefined]
        called, probabilities = np.zeros_like(images.labels), images.scores.copy()
        places = [images.findings.index(name) for name in names]
        for fold in range(FOLDS if names else 0):
            held = _folds(images.count, seed)[images.patients] == fold
            points, calibration = fit_both(images, names, rule, calibrator, rows=~held)
            for name in names:
                if (why := why_not(name, points, calibration)) is not None:
                    undefined.setdefault(name, why)
            scores = images.scores[np.ix_(held, places)]
            cuts = np.array([points.cuts[name] for name in names])
            called[np.ix_(held, places)] = scores >= cuts
            probabilities[np.ix_(held, places)] = calibration.apply(scores, findings=names)
        return cls(called, probabilities, undefined)


def _folds(patients: int, seed: int) -> Integers:
    """The fold of each patient, shape (patients,): random, of equal size, not stratified."""
    order = np.random.default_rng(seed).permutation(patients)
    folds: Integers = order % FOLDS
    return folds
