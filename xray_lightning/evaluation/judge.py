"""What a run's test is judged at, and by what: fitted on validation, applied to test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from xray_lightning.errors import UserError
from xray_lightning.evaluation.calibration import Calibrator
from xray_lightning.evaluation.fitted import describe_best, fitted_of
from xray_lightning.evaluation.metrics import Evaluator
from xray_lightning.evaluation.thresholds import OperatingRule
from xray_lightning.training.checkpoints import read_checkpoint


class Judge:
    """Fits operating points and calibration on validation, and scores the test with them.

    Args:
        resamples: patient-level bootstrap resamples behind the intervals; 0 for none.
        seed: of the resamples.
        operating_point: the rule by which each finding's threshold is chosen.
        calibration: how probabilities are calibrated, beside the raw ones; None for not at all.

    Raises:
        UserError: an option out of range, or no rule.
    """

    def __init__(
        self,
        *,
        operating_point: OperatingRule | None,
        calibration: Calibrator | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        if operating_point is None:
            raise UserError(
                "evaluation.operating_point=null: sensitivity needs a threshold; give a rule"
            )
        self.operating_point, self.calibration = operating_point, calibration
        self.evaluator = Evaluator(resamples=resamples, seed=seed)

    def __call__(
        self,
        *,
        val: pd.DataFrame,
        test: pd.DataFrame,
        checkpoint: Path,
        fit: bool,
        prevalences: Mapping[str, float],
    ) -> dict[str, Any]:
        """The `metrics.test` part of results.json.

        Args:
            val, test: predictions of the checkpoint; see `Evaluator`.
            checkpoint: the file. What is fitted is stored in it where `fit` is true; else what it
                holds is used, and only what it lacks is fitted, for these figures alone.
            fit: whether the checkpoint is the run's own.
            prevalences: share of training images with each finding.

        Raises:
            XrayError: what cannot be scored, or a checkpoint that cannot be read or written.
        """
        points, calibration = None, None
        if not fit:
            points, calibration = fitted_of(read_checkpoint(checkpoint)["xray"])
        points = points or self.operating_point.fit(val)
        if self.calibration is not None:
            calibration = calibration or self.calibration.fit(val)
        if fit:
            describe_best(checkpoint, operating_points=points, calibration=calibration)
        return self.evaluator(
            test, operating_points=points, calibration=calibration, prevalences=prevalences
        )
