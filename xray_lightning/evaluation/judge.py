"""Judge of a run: operating points and calibration fitted on validation, applied to its test."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.errors import UserError
from xray_lightning.evaluation.abstention import AbstentionRule
from xray_lightning.evaluation.calibration import Calibration, Calibrator
from xray_lightning.evaluation.fitted_in_checkpoint import (
    abstention_of,
    check_tta,
    describe_best,
    fitted_of,
    tta_of,
)
from xray_lightning.evaluation.grouping import SUBGROUPS
from xray_lightning.evaluation.metadata_baseline import CombinedModel, MetadataModel
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.operating_points import OperatingPoints, OperatingRule
from xray_lightning.models.checkpoint import read_checkpoint

log = logging.getLogger(__name__)


def training_prevalences(data: XrayDataModule) -> dict[str, float]:
    """The share of the training images with each finding.

    Args:
        data: after `setup`.
    """
    shares = data.labels("train").mean(axis=0)
    return dict(zip(data.findings, shares.tolist(), strict=True))


class Judge:
    """Fits operating points and calibration on validation, and scores the test with them.

    Args:
        resamples: patient-level bootstrap resamples behind the intervals; 0 for none.
        seed: of the resamples.
        subgroups: the columns that images are grouped by; none for no subgroups.
        operating_point: the rule by which each finding's threshold is chosen.
        calibration: how probabilities are calibrated, beside the raw ones; None for not at all.
        abstention: how the thresholds are chosen below which the model says no; None for none.
        shuffled: whether the run trains its recipe again, on shuffled labels.
        prevalence: of the findings at the place of use; see `StatedPrevalence.of`.
        tta: `flip`: validation and test after the fit use the mean logits of each image and its
            mirror image; None for the image alone.

    Raises:
        UserError: an option out of range, or no rule for operating points.
    """

    def __init__(
        self,
        *,
        operating_point: OperatingRule | None,
        calibration: Calibrator | None = None,
        abstention: AbstentionRule | None = None,
        resamples: int = 1000,
        seed: int = 0,
        shuffled: bool = False,
        prevalence: object = None,
        subgroups: Sequence[str] = SUBGROUPS,
        tta: str | None = None,
    ) -> None:
        check_tta(tta, key="evaluation.tta")
        self.tta = tta
        if not isinstance(operating_point, OperatingRule):
            given = "null" if operating_point is None else operating_point
            raise UserError(
                f"evaluation.operating_point={given}: sensitivity needs a threshold; "
                "give a rule, evaluation.operating_point.rule=youden"
            )
        if calibration is not None and not isinstance(calibration, Calibrator):
            raise UserError(
                f"evaluation.calibration={calibration} is neither null nor a method; give "
                "evaluation.calibration.method=platt"
            )
        if not isinstance(shuffled, bool):
            raise UserError(f"evaluation.shuffled={shuffled} must be true or false")
        if abstention is not None and not isinstance(abstention, AbstentionRule):
            raise UserError(
                f"evaluation.abstention={abstention} is neither null nor a rule; give "
                "evaluation.abstention.alpha=0.05"
            )
        self.abstention = abstention
        self.operating_point, self.calibration = operating_point, calibration
        self.shuffled = shuffled
        self.evaluator = Evaluator(
            resamples=resamples, seed=seed, prevalence=prevalence, subgroups=subgroups
        )

    def check(self, findings: Sequence[str]) -> None:
        """Refuse, before any training, options that do not fit these findings.

        Raises:
            UserError: a prevalence is stated of another finding.
        """
        self.evaluator.prevalence.of_findings(findings)

    def __call__(
        self,
        *,
        val: pd.DataFrame,
        test: pd.DataFrame,
        checkpoint: Path,
        fit: bool,
        prevalences: Mapping[str, float],
        metadata: MetadataModel | None = None,
    ) -> dict[str, Any]:
        """The `metrics.test` part of results.json.

        Args:
            val, test: predictions of the checkpoint; see `Evaluator`.
            checkpoint: the file. If `fit`, the fitted values are stored in it. Else its own values
                are used; those it lacks are fitted for these metrics and not stored.
            fit: whether the checkpoint is the run's own.
            prevalences: share of training images with each finding.
            metadata: the baseline that sees no image, fitted on training images.

        Raises:
            XrayError: predictions that cannot be scored, or a checkpoint that cannot be read or
                written.
        """
        points, calibration, abstention = None, None, None
        if not fit:
            described = read_checkpoint(checkpoint)["xray"]
            if tta_of(described) == self.tta:
                points, calibration = fitted_of(described)
                abstention = abstention_of(described)
            elif fitted_of(described)[0] is not None:
                log.warning("%s was fitted with another evaluation.tta: fitted anew", checkpoint)
        self._tell_what_differs(checkpoint, points, calibration)
        points = points or self.operating_point.fit(val)
        wanted = self.calibration
        calibration = None if wanted is None else calibration or wanted.fit(val)
        rule = self.abstention
        abstention = None if rule is None else abstention or rule.fit(val, points)
        if fit:
            describe_best(
                checkpoint,
                operating_points=points,
                calibration=calibration,
                abstention=abstention,
                tta=self.tta,
            )
        return self.evaluator(
            test,
            operating_points=points,
            calibration=calibration,
            abstention=abstention,
            prevalences=prevalences,
            metadata=metadata,
            combined=None if metadata is None else CombinedModel.fit(val, metadata),
        )

    def _tell_what_differs(
        self, checkpoint: Path, points: OperatingPoints | None, calibration: Calibration | None
    ) -> None:
        """Warn if a checkpoint was fitted by another rule or method than this run configures."""
        rule, wanted = self.operating_point, self.calibration
        if points is not None and (points.rule, points.target) != (rule.rule, rule.target):
            own, named = (f"rule {one.rule}, target {one.target}" for one in (points, rule))
            told = "%s keeps its own operating points (%s), not those that this run names (%s)"
            log.warning(told, checkpoint, own, named)
        if calibration is not None and wanted is not None and calibration.method != wanted.method:
            told = "%s keeps its own calibration (%s), not the one that this run names (%s)"
            log.warning(told, checkpoint, calibration.method, wanted.method)
