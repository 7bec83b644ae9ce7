"""Shuffled-label baseline: the recipe trained once more where there is nothing to learn.

The label rows of the training images are permuted, each row intact, so that prevalences and
co-occurrences stay the same. A model trained on them should have a test AUROC of 0.5, like chance;
a score well above that does not come from learning from images. One permutation is one random
draw: labels that it happens to give to a view or an age are learnt, and move AUROC by some
hundredths.
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
    """A copy of the data with the label rows of the training images permuted.

    Args:
        data: already set up; its pixels are shared, not read again.
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
    """Ends a fit after as many epochs as the main fit, which may have stopped before its schedule.

    Args:
        epochs: number of epochs that the main fit has completed.
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

    The last epoch's weights are tested: the best epoch on validation would be chosen by true
    labels.

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
    """The `shuffled_labels` block of the metrics: macro AUROC, and the run's paired gain over it.

    Args:
        shuffled, test: predictions of the same images, by `fit_shuffled` and by the run.
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
