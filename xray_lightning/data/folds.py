"""Folds of images for cross-validation: grouped by patient, stratified by finding."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_lightning.data.manifest import Manifest
from xray_lightning.errors import check_whole


def check_fold(fold: int, folds: int) -> None:
    """Refuse a fold that is not in the range from 0 to `folds` - 1.

    Raises:
        UserError: fewer than two folds, or a fold out of range.
    """
    check_whole("data.folds", folds, least=2)
    check_whole("data.fold", fold, least=0, most=folds - 1)


def sides_of_fold(
    manifest: Manifest, listed: Collection[str], *, fold: int, folds: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The images that train (all folds but `fold`), and those that validate (`fold`).

    Args:
        listed: the images to divide. Those without a row go to training, to be counted as missing.
    """
    rows = manifest.table[manifest.table["image"].isin(listed)]
    of_image = stratified_folds(
        rows[list(manifest.findings)].to_numpy(dtype=bool),
        rows["patient_id"].to_numpy(dtype=str),
        folds=folds,
        seed=seed,
    )
    images = rows["image"].to_numpy(dtype=object)
    without = sorted(set(listed).difference(images))
    return (*images[of_image != fold], *without), tuple(images[of_image == fold])


def stratified_folds(
    labels: npt.NDArray[np.bool_],
    patients: npt.NDArray[Any],
    *,
    folds: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """The fold of each image, 0 to folds - 1; all images of a patient are in the same one.

    Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", ECML
    PKDD 2011) with patients in the place of rows: those with the rarest finding are assigned
    first, each to the fold that lacks most images of it. The order of the images has no effect.

    Args:
        labels: whether each image has each finding, (N, findings).
        patients: name or number of each image's patient, (N,).
        folds: at least 2.
        seed: seed of the order in which patients are assigned, and of ties.
    """
    names, patient_of = np.unique(patients, return_inverse=True)
    images = np.bincount(patient_of)
    positives = np.zeros((len(names), labels.shape[1]))
    np.add.at(positives, patient_of, labels)
    order = np.random.default_rng(seed).permutation(len(names))
    images, positives = images[order], positives[order]
    lacking = np.tile(positives.sum(axis=0) / folds, (folds, 1))  # positives, (folds, findings)
    room = np.full(folds, images.sum() / folds)  # images that each fold still lacks
    fold_of = np.full(len(names), -1)
    while (left := np.flatnonzero(fold_of < 0)).size:
        holders = (positives[left] > 0).sum(axis=0)
        rarest = int(np.where(holders > 0, holders, len(names) + 1).argmin())
        dealt = left[positives[left, rarest] > 0] if holders.any() else left
        # Patients with many images first: those with few can even out the folds afterwards.
        for patient in dealt[np.argsort(-images[dealt], kind="stable")]:
            wish = lacking[:, rarest] if holders.any() else room
            fold = int(np.lexsort((-room, -wish))[0])
            fold_of[patient] = fold
            lacking[fold] -= positives[patient]
            room[fold] -= images[patient]
    of_patient = np.empty_like(fold_of)
    of_patient[order] = fold_of
    return of_patient[patient_of]
