"""The 14 findings of NIH ChestX-ray14, checks of other lists, and "A|B" as a multi-hot row."""

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from xray_lightning.errors import UserError, printable

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

# Limits on names of findings, which appear in table headers, metric tags, files and web pages.
MOST_FINDINGS = 200
_NAME = re.compile(r"[^\W_](?:[\w ./()+-]{0,58}[\w)+])?")
# Columns of our own tables, as `folded` gives them: no finding may have such a name.
_TAKEN = frozenset(
    [
        *("nofinding", "image", "images", "path", "patient", "patients", "patientid", "followup"),
        *("age", "sex", "view", "split", "side", "file", "line", "labels"),
        *("aurocmacro", "averageprecisionmacro", "labelaccuracy", "briermacro"),
    ]
)

_COLUMN = {name: column for column, name in enumerate(FINDINGS)}


def canonical(name: str) -> str:
    """The finding's one spelling; raises KeyError for a name that is no finding."""
    name = name.strip()
    name = ALIASES.get(name, name)
    if name not in _COLUMN:
        raise KeyError(name)
    return name


def names_in(labels: str) -> list[str]:
    """The names in "Effusion|Mass", as they are spelled there; none in "No Finding".

    Raises:
        ValueError: "No Finding" together with a finding, or no label at all.
    """
    names = [name.strip() for name in labels.split("|") if name.strip()]
    if not names:
        raise ValueError("no label")
    if NO_FINDING in names and len(set(names)) > 1:
        raise ValueError(f"{NO_FINDING!r} together with a finding: {labels!r}")
    return [name for name in names if name != NO_FINDING]


def encode(labels: str) -> npt.NDArray[np.uint8]:
    """Turn "Effusion|Mass" or "No Finding" into a multi-hot row.

    Returns:
        A uint8 array of shape (14,), 1 where the finding is present.

    Raises:
        KeyError: a label that is no finding.
        ValueError: "No Finding" together with a finding, or no label at all.
    """
    row = np.zeros(len(FINDINGS), dtype=np.uint8)
    for name in names_in(labels):
        row[_COLUMN[canonical(name)]] = 1
    return row


def decode(row: Iterable[float], findings: Iterable[str] = FINDINGS) -> str:
    """Turn a multi-hot row of shape (findings,) into "Effusion|Mass", or "No Finding"."""
    names = [name for name, present in zip(findings, row, strict=True) if present]
    return "|".join(names) or NO_FINDING


def folded(title: str) -> str:
    """A title's letters and digits in lower case, by which titles of columns are compared."""
    return "".join(letter for letter in title.lower() if letter.isalnum())


def check_findings(names: object, *, what: str) -> tuple[str, ...]:
    """Check a list of findings; returns it as a tuple.

    Args:
        names: names of findings, in the order of the model's outputs.
        what: what the list is, for messages, such as a key of the configuration.

    Raises:
        UserError: no list, an empty or overlong one, a name that tables or pages cannot hold, or
            two names with the same letters and digits.
    """
    if not isinstance(names, list | tuple) or not 0 < len(names) <= MOST_FINDINGS:
        raise UserError(
            f"{what}={_shown(names)} must be a list of 1 to {MOST_FINDINGS} findings, such as "
            "[Effusion,Mass]"
        )
    before: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(
                f"{what}: {_shown(name)} cannot be a finding's name: at most 60 letters, digits, "
                "spaces and _ - . / ( ) +, the first a letter or digit"
            )
        same = folded(name)
        if same in _TAKEN:
            raise UserError(f"{what}: {_shown(name)} cannot be a finding's name; it means another")
        if same in before:
            raise UserError(
                f"{what}: {_shown(before[same])} and {_shown(name)} are one finding; give it once"
            )
        before[same] = name
    return tuple(names)


def differing(found: Iterable[str], expected: Iterable[str]) -> str:
    """Two lists of findings shown beside each other, for a message."""
    return f"{', '.join(map(str, found))}, are not {', '.join(expected)}, in this order"


def _shown(value: object) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
