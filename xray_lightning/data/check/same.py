"""Images that show the same under several names."""

from collections.abc import Mapping, Sequence

import pandas as pd

from xray_lightning.data.check.pictures import Picture
from xray_lightning.data.check.remarks import Remark, remark
from xray_lightning.data.check.sides import SplitFound


def same_pictures(
    pictures: Mapping[str, Picture],
    table: pd.DataFrame,
    findings: Sequence[str],
    splits: Sequence[SplitFound],
) -> list[Remark]:
    """Images whose decoded pixels are those of an earlier one, to the bit.

    They contradict each other where their patient, their labels or their side of a split differ.
    Images of a single shade are all alike, and are left out.
    """
    groups: dict[bytes, list[str]] = {}
    for name in sorted(pictures):
        if pictures[name].pixels and not pictures[name].blank:
            groups.setdefault(pictures[name].pixels, []).append(name)
    repeated = {name: group[0] for group in groups.values() for name in group[1:]}
    if not repeated:
        return []
    concerned = table["image"].isin({*repeated, *repeated.values()})
    rows = table[concerned].set_index("image")
    labels = dict(zip(rows.index, map(tuple, rows[list(findings)].to_numpy()), strict=True))
    patients = rows["patient_id"].to_dict()
    harmless, contradictory = {}, {}
    for name, first in repeated.items():
        differing = []
        if patients[name] != patients[first]:
            differing.append("patient")
        if labels[name] != labels[first]:
            differing.append("labels")
        differing += [
            f"side of the split {split.name}"
            for split in splits
            if _sides(split, name) != _sides(split, first)
        ]
        alike = pictures[name].content == pictures[first].content
        text = f"same {'bytes' if alike else 'pixels'} as {first}"
        if differing:
            contradictory[name] = f"{text}, but another {' and '.join(differing)}"
        else:
            harmless[name] = text
    return remark("duplicate_conflict", contradictory) + remark("duplicate_image", harmless)


def _sides(split: SplitFound, image: str) -> frozenset[str]:
    return frozenset(side for side, images in split.sides.items() if image in images)
