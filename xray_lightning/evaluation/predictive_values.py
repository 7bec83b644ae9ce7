"""Predictive values of calls, among the test images and at a stated prevalence.

PPV is the share of right calls among the images that are called positive, NPV that among those
that are called negative. Both depend on the prevalence: on a test set with more ill patients than a
clinic sees, PPV is higher than in the clinic. The clinic's values follow from sensitivity,
specificity and a stated prevalence (Bayes; Altman & Bland, BMJ 1994; 309:102).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xray_lightning.errors import UserError, printable
from xray_lightning.evaluation.bootstrap import FEW_PATIENTS, Estimate, share, undefined_reasons
from xray_lightning.runs.predictions import (
    ENOUGH_PATIENTS,
    Bools,
    Floats,
    ScoredImages,
    one_class,
)

KEY = "evaluation.prevalence"
NONE_CALLED = "no image is called positive"
ALL_CALLED = "every image is called positive"
FEW_CALLED = "needs at least ten patients with an image that is called positive"
FEW_CLEARED = "needs at least ten patients with an image that is called negative"

Draws = Mapping[str, Floats]  # by score


@dataclass(frozen=True)
class StatedPrevalence:
    """The prevalence of findings at the place of use, as stated by the user.

    Attributes:
        of_all: prevalence of every finding that `by_finding` does not name; None if not stated.
        by_finding: prevalence of single findings.
    """

    of_all: float | None = None
    by_finding: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, given: object, *, key: str = KEY) -> "StatedPrevalence":
        """From None, one number, or a mapping from findings to numbers, each between 0 and 1.

        Args:
            key: the name of the option, for messages.

        Raises:
            UserError: anything else.
        """
        if given is None:
            return cls()
        if isinstance(given, Mapping):
            named = {str(name): _share(value, f"{key}.{name}") for name, value in given.items()}
            return cls(by_finding=named)
        return cls(_share(given, key))

    @classmethod
    def of_options(cls, texts: Sequence[str], *, key: str = "--prevalence") -> "StatedPrevalence":
        """From options such as "0.02" and "Pneumothorax=0.03", each stated at most once.

        Raises:
            UserError: an option that is neither, or a finding stated twice.
        """
        stated: dict[str, float] = {}
        for text in texts:
            name, _, number = text.rpartition("=")
            name = name.strip()
            if name in stated:
                raise UserError(f"{key} {printable(text)}: it is stated twice; give it once")
            try:
                stated[name] = _share(float(number), f"{key} {printable(text)}")
            except ValueError as error:
                raise UserError(
                    f"{key} {printable(text)} must be a number such as 0.02, or a finding with "
                    "one, such as Pneumothorax=0.02"
                ) from error
        return cls(stated.pop("", None), stated)

    @classmethod
    def chosen(
        cls, asked: "StatedPrevalence | None", of_run: Mapping[str, Any], findings: Sequence[str]
    ) -> "StatedPrevalence":
        """`asked` (--prevalence), checked against the findings; else the run's configuration.

        Raises:
            UserError: `asked` names another finding, or the configuration holds no prevalence.
        """
        if asked is None:
            return cls.of(of_run.get("prevalence"))
        asked.of_findings(findings, key="--prevalence")
        return asked

    def of_findings(self, findings: Sequence[str], *, key: str = KEY) -> Floats:
        """The stated prevalence of each finding, shape (findings,); NaN if none is stated.

        Raises:
            UserError: it names a finding that is none of these.
        """
        for name in self.by_finding:
            if name not in findings:
                raise UserError(
                    f"{key} names {printable(name)}, which is none of the findings: "
                    f"{', '.join(findings)}"
                )
        rest = np.nan if self.of_all is None else self.of_all
        return np.array([self.by_finding.get(name, rest) for name in findings], dtype=np.float64)


def _share(value: object, what: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1:  # type: ignore[operator]
        shown = "" if "=" in what or " " in what else f"={printable(str(value))}"
        raise UserError(f"{what}{shown} must be a number between 0 and 1, such as 0.02")
    return float(value)  # type: ignore[arg-type]


def at_prevalence(scores: Draws, prevalence: Floats) -> dict[str, Floats]:
    """PPV and NPV by Bayes, from sensitivity and specificity (..., findings); NaN: undefined.

    Args:
        scores: with `sensitivity` and `specificity`.
        prevalence: of each finding, shape (findings,).
    """
    sensitivity, specificity = scores["sensitivity"], scores["specificity"]
    hits, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    passed, alarms = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
    return {
        "ppv_at_stated_prevalence": share(hits, hits + alarms),
        "npv_at_stated_prevalence": share(passed, passed + missed),
    }


def predictive_values(
    images: ScoredImages, called: Bools, plain: Draws, draws: Draws, *, stated: Floats
) -> dict[str, dict[str, Any]]:
    """The figures of each finding and, under `undefined_reason`, why some are None.

    Args:
        images: the predictions.
        called: whether each image is called positive, shape (N, findings).
        plain: `ppv`, `npv`, `sensitivity` and `specificity` of the table itself.
        draws: the same of each resample, with a first axis of the resamples.
        stated: prevalences, shape (findings,); NaN where none is stated, which adds no figures.
    """
    plain, draws = ({**one, **at_prevalence(one, stated)} for one in (plain, draws))
    enough = np.logical_and(*images.enough())
    found = {}
    for column, finding in enumerate(images.findings):
        calls, prevalence = called[:, column], float(stated[column])
        sides = one_class(images.labels[:, column])
        none = sides or (None if calls.any() else NONE_CALLED)
        every = sides or (ALL_CALLED if calls.all() else None)
        reasons = {
            "ppv": (none, few_patients(images, calls, FEW_CALLED)),
            "npv": (every, few_patients(images, ~calls, FEW_CLEARED)),
        }
        figures: dict[str, Any] = {}
        if not np.isnan(prevalence):
            few = None if enough[column] else FEW_PATIENTS
            figures["stated_prevalence"] = prevalence
            reasons["ppv_at_stated_prevalence"] = none, few
            reasons["npv_at_stated_prevalence"] = every, few
        estimates = {}
        for name, (why, few) in reasons.items():
            value = float("nan") if why else float(plain[name][column])
            drawn = draws[name][:, column]
            estimates[name] = Estimate.of(value, drawn, undefined=why, few=few)
            figures |= estimates[name].figures(name)
        found[finding] = figures | {"undefined_reason": undefined_reasons(figures, estimates)}
    return found


def few_patients(images: ScoredImages, kept: Bools, reason: str) -> str | None:
    """`reason` if too few patients have an image in the mask `kept` (N,); else None."""
    patients = len(np.unique(images.patients[kept]))
    return None if patients >= ENOUGH_PATIENTS else reason
