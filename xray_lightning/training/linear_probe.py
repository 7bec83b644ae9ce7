"""Linear probe: a head initialised by logistic regression on the features of the first weights.

The features of each training image are computed once, by the network in evaluation mode: no
augmentation, no dropout, batch norms with the statistics of the first weights. Fine-tuning from
such a head distorts the features less than from a random one (Kumar et al., "Fine-Tuning can
Distort Pretrained Features", ICLR 2022).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from xray_lightning.data.datamodule import XrayDataModule
from xray_lightning.data.folds import stratified_folds
from xray_lightning.errors import UserError
from xray_lightning.models.backbones import StagePooling
from xray_lightning.models.classifier import Classifier
from xray_lightning.models.gathered_outputs import finding_auroc, in_table_order, macro

log = logging.getLogger(__name__)

PENALTIES = tuple(10 ** (power / 2) for power in range(4, -5, -1))  # from 100 to 0.01
FOLDS = 5
STEPS = 60  # of L-BFGS, for each penalty


class LinearProbe(Callback):
    """Fits the head before the first step of a fit, unless the fit resumes from a checkpoint.

    Of several L2 penalties, the one with the best out-of-fold macro AUROC is kept, in
    cross-validation over the training patients: the validation split of a small data set has too
    few images to choose by. Each rank computes the features of its shard; all take rank 0's head.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        classifier = cast(Classifier, pl_module)
        head = linear_head(classifier.backbone)
        data: XrayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        features, targets = _features(trainer, classifier, data, head)
        patients = data.table("train")["patient_id"].to_numpy(dtype=str)
        labels = data.labels("train").astype(bool)
        folds = torch.from_numpy(stratified_folds(labels, patients, folds=FOLDS, seed=0))
        backbone = classifier.backbone
        fit = best_fit(
            *(features, targets),
            folds=folds.to(features.device),
            widths=backbone.widths if isinstance(backbone, StagePooling) else None,
        )
        for parameter, value in ((head.weight, fit.weight), (head.bias, fit.bias)):
            kept = value.to(parameter)
            if trainer.world_size > 1:
                torch.distributed.broadcast(kept, 0)
            with torch.no_grad():
                parameter.copy_(kept)
        if trainer.is_global_zero:
            log.info(
                "linear probe: macro AUROC %.4f out of fold, of %d features and an L2 penalty of "
                "%.2g",
                *(fit.auroc, fit.weight.shape[1], fit.penalty),
            )


def _features(
    trainer: Trainer, classifier: Classifier, data: XrayDataModule, head: nn.Linear
) -> tuple[Tensor, Tensor]:
    """The head's input for each training image, float32 (N, D), and targets (N, findings)."""
    found: list[Tensor] = []
    parts: list[tuple[Tensor, ...]] = []
    hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    training = classifier.training
    classifier.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in data.in_order("train"):
                # By .forward(): calling a compiled backbone would skip the hook.
                classifier.backbone.forward(classifier.inputs(batch.images))
                parts.append((batch.rows, found.pop().float(), batch.targets))
    finally:
        hook.remove()
        classifier.train(training)
    _, features, targets = in_table_order(parts, ranks=trainer.world_size)
    return features, targets


def linear_head(backbone: nn.Module) -> nn.Linear:
    """The last layer of a backbone.

    Raises:
        UserError: it is not one linear layer, or the backbone does not say which it is.
    """
    prefix = getattr(backbone, "head_prefix", "")
    head = backbone.get_submodule(prefix.rstrip(".")) if prefix else None
    if isinstance(head, nn.Sequential):  # with dropout before it
        layers = [layer for layer in head if not isinstance(layer, nn.Dropout)]
        head = layers[0] if len(layers) == 1 else None
    if not isinstance(head, nn.Linear):
        raise UserError(
            "fine_tuning.probe=true needs a head of one linear layer; take model.hidden=[]"
        )
    return head


class LinearFit(NamedTuple):
    """Logistic regressions of all findings on the same features."""

    weight: Tensor  # (findings, D)
    bias: Tensor  # (findings,)
    penalty: float  # factor of half the sum of squared weights, for standardised features
    auroc: float = math.nan  # macro, mean over held-out folds; NaN if it is undefined in all

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, findings) of features (N, D)."""
        return F.linear(features, self.weight, self.bias)


def best_fit(
    features: Tensor, targets: Tensor, *, folds: Tensor, widths: Sequence[int] | None = None
) -> LinearFit:
    """The logistic regression with the penalty that has the best out-of-fold macro AUROC.

    Args:
        features: (N, D).
        targets: (N, findings).
        folds: each image's fold (N,); all images of a patient have the same one.
        widths: sizes of consecutive groups of features; each group is scaled to the same total
            variance whatever its size. None for one group.
    """
    share = torch.ones(features.shape[1], device=features.device)
    if widths is not None:
        groups = torch.tensor(widths, device=features.device)
        share = (groups.float().mean() / groups).sqrt().repeat_interleave(groups)
    # AUROC is computed within each fold, since the folds' models differ in their intercepts.
    by_penalty: list[list[float]] = [[] for _ in PENALTIES]
    for fold in torch.unique(folds):
        held = folds == fold
        if not held.all():
            fits = _path(features[~held], targets[~held], share)
            for aurocs, fit in zip(by_penalty, fits, strict=True):
                scores = fit.logits(features[held]).sigmoid().cpu()
                aurocs.append(float(macro(finding_auroc(scores, targets[held].cpu()))))
    known = [[auroc for auroc in aurocs if not math.isnan(auroc)] for aurocs in by_penalty]
    means = [fmean(aurocs) if aurocs else -1.0 for aurocs in known]
    best = means.index(max(means))  # in a tie, the largest penalty
    fit = next(islice(_path(features, targets, share), best, None))
    return fit._replace(auroc=means[best] if known[best] else math.nan)


def _path(features: Tensor, targets: Tensor, share: Tensor) -> Iterator[LinearFit]:
    """One fit per penalty, each started from the solution of the one before.

    Args:
        share: standard deviation that each feature is scaled to, (D,).
    """
    mean, scale = features.mean(dim=0), (features.std(dim=0, correction=0) + 1e-6) / share
    scaled = (features - mean) / scale
    weight = torch.zeros(targets.shape[1], features.shape[1], device=features.device)
    bias = torch.logit(targets.mean(dim=0).clamp(1e-4, 1 - 1e-4))
    for penalty in PENALTIES:
        weight, bias = _fit(scaled, targets, weight=weight, bias=bias, penalty=penalty)
        folded = weight / scale
        yield LinearFit(folded, bias - folded @ mean, penalty)


def _fit(
    features: Tensor, targets: Tensor, *, weight: Tensor, bias: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """Minimise the findings' summed mean cross-entropy + penalty / 2 x the sum of weight ** 2."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight, bias)
        total = F.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]
        total = total + penalty / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
