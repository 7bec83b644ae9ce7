"""The 14 findings of NIH ChestX-ray14, and the way between "A|B" and a multi-hot row."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# In the order of Wang et al., "ChestX-ray8", CVPR 2017, which most published tables keep.
FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"

# Spellings met in NIH's own files: the box list says "Infiltrate".
ALIASES = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}

_COLUMN = {name: column for column, name in enumerate(FINDINGS)}


def canonical(name: str) -> str:
    """The finding's one spelling; raises KeyError for a name that is no finding."""
    name = name.strip()
    name = ALIASES.get(name, name)
    if name not in _COLUMN:
        raise KeyError(name)
    return name


def encode(labels: str) -> npt.NDArray[np.uint8]:
    """Turn "Effusion|Mass" or "No Finding" into a multi-hot row.

    Returns:
        A uint8 array of shape (14,), 1 where the finding is present.

    Raises:
        KeyError: a label that is no finding.
        ValueError: "No Finding" together with a finding, or no label at all.
    """
    names = [name.strip() for name in labels.split("|") if name.strip()]
    if not names:
        raise ValueError("no label")
    if NO_FINDING in names and len(set(names)) > 1:
        raise ValueError(f"{NO_FINDING!r} together with a finding: {labels!r}")
    row = np.zeros(len(FINDINGS), dtype=np.uint8)
    for name in names:
        if name != NO_FINDING:
            row[_COLUMN[canonical(name)]] = 1
    return row


def decode(row: Iterable[float]) -> str:
    """Turn a multi-hot row of shape (14,) into "Effusion|Mass", or "No Finding"."""
    names = [name for name, present in zip(FINDINGS, row, strict=True) if present]
    return "|".join(names) or NO_FINDING
