"""Why a figure does not exist: the reasons that stand beside a null."""

from collections.abc import Mapping
from typing import Any

NO_POSITIVES = "no image has the finding"
NO_NEGATIVES = "every image has the finding"
NO_FINDINGS = "no finding has both images with it and images without it"
ALL_THE_SAME = "all labels are the same"
FEW_PATIENTS = "needs at least ten patients with the finding and ten without"
FEW_WITH = "needs at least ten patients with the finding"
FEW_WITHOUT = "needs at least ten patients without the finding"
FEW_OF_ALL = "needs a finding that at least two patients have and two lack"
ONE_PATIENT = "needs at least two patients"
# An interval of no width would claim certainty just where there is too little to err in.
NO_SPREAD = "every resample gives the same, which does not tell how sure that is"
NO_RESAMPLES = "no resamples were asked for"
NO_PREVALENCES = "no prevalences of the training images were given"


def reasons(figures: Mapping[str, Any], why: Mapping[str, str]) -> dict[str, str]:
    """The reason of each figure that is None; `why` must have one for each that can be."""
    return {name: why[name] for name, value in figures.items() if value is None}
