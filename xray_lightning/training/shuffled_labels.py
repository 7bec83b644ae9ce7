"""Shuffled labels: the recipe trained once more where there is nothing to learn, as a baseline.

The training images' rows of labels are dealt out to them anew, whole, so that prevalences and what
goes together stay. A model of them should rank the test images as chance does, at 0.5; what is
well above that has come to the scores by another way than learning from images. One shuffle is one
draw: what it gives to a view or an age by chance is learnt, and moves AUROC by some hundredths.
"""

from copy import copy
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.evaluation.bootstrap import Estimate, undefined_reasons
from xray_lightning.evaluation.compare import compare
from xray_lightning.evaluation.resampled_scores import Resampled
from xray_lightning.models.classifier import Classifier
from xray_lightning.runs.predictions import prediction_table


def with_shuffled_labels(data: XrayDataModule, *, seed: int) -> XrayDataModule:
    """The same data, its training images with one another's rows of labels.

    Args:
        data: set up; its pixels are shared, not read again.
        seed: of the permutation.
    """
    train = data.table("train").copy()
    findings = list(data.findings)
    order = np.random.default_rng(seed).permutation(len(train))
    train[findings] = train[findings].to_numpy()[order]
    shuffled = copy(data)
    vars(shuffled)["_tables"] = {
        **{side: data.table(side) for side in ("val", "test")},
        "train": train,
    }
    return shuffled


class EndAfter(Callback):
    """Ends a fit after so many epochs, be its schedule longer: the main one may have ended early.

    Args:
        epochs: those that the main fit has done.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def fit_shuffled(
    trainer: Trainer, classifier: Classifier, data: XrayDataModule, *, seed: int
) -> pd.DataFrame:
    """Train on shuffled labels and predict the test images.

    The weights are the last epoch's: the best on validation would be chosen by true labels.

    Args:
        trainer: a new one, without loggers and without callbacks that save.
        classifier: not trained yet.
        data: set up, with its true labels.
        seed: of the shuffle.

    Returns:
        The test predictions, on every rank.
    """
    shuffled = with_shuffled_labels(data, seed=seed)
    trainer.fit(classifier, datamodule=shuffled, weights_only=True)
    trainer.test(classifier, datamodule=shuffled, verbose=False, weights_only=True)
    return prediction_table(
        data.table("test"), classifier.outputs, side="test", findings=data.findings
    )


def shuffled_scores(
    shuffled: pd.DataFrame, test: pd.DataFrame, *, resamples: int, seed: int
) -> dict[str, Any]:
    """The `shuffled_labels` of the metrics: AUROC, and the run's gain over it, paired.

    Args:
        shuffled, test: predictions of the same images, of `fit_shuffled` and of the run.
        resamples, seed: of the bootstrap, as for the run.
    """
    alone = Resampled.of(shuffled, resamples=resamples, seed=seed)
    found = {
        "auroc_macro": Estimate.of(
            alone.plain["auroc_macro"],
            alone.drawn["auroc_macro"],
            undefined=alone.undefined["auroc_macro"],
            few=alone.few["auroc_macro"],
        ),
        "gain": compare(shuffled, test, resamples=resamples, seed=seed).auroc_macro,
    }
    figures = {k: v for name, one in found.items() for k, v in one.figures(name).items()}
    return figures | {"undefined_reason": undefined_reasons(figures, found)}
