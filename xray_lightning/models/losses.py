"""Multi-label losses: one value per image, the mean over its findings.

Each returns (B,) rather than a mean over the batch, so that the caller can weight images exactly
when ranks or steps hold unequal numbers of them. All compute in float32, whatever the autocast.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from xray_lightning.errors import UserError
from xray_lightning.findings import FINDINGS


class FindingsLoss(nn.Module, ABC):
    """From logits (B, findings) and targets (B, findings) of 0 and 1 to a loss (B,)."""

    def size_to(self, findings: int) -> None:
        """Make room for this many findings; most losses need none."""

    def fit_to(self, *, positives: Tensor, images: int) -> None:
        """Learn what the loss needs from the training split; most need nothing.

        Args:
            positives: images with each finding in the training split, shape (findings,).
            images: number of images in the training split.
        """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.elementwise(logits.float(), targets.float()).mean(dim=1)

    @abstractmethod
    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each finding of each image, shape (B, findings), from float32 tensors."""


class BinaryCrossEntropy(FindingsLoss):
    """Cross-entropy of each finding by itself, all weighted equally."""

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class WeightedBinaryCrossEntropy(FindingsLoss):
    """Cross-entropy whose positives weigh negatives / positives of the training split.

    A finding that the training split holds never, or in every image, has weight 1.

    Args:
        max_weight: cap on a weight, so that a finding with a handful of positives does not
            drown the others (Hernia's would be about 490 on ChestX-ray14).
        findings: number of findings.
    """

    pos_weight: Tensor  # (findings,), NaN until fit_to or a state dict has filled it

    def __init__(self, *, max_weight: float = 100.0, findings: int = len(FINDINGS)) -> None:
        super().__init__()
        if not max_weight > 0:
            raise UserError(f"loss.max_weight={max_weight}: must be above 0")
        self.max_weight = max_weight
        self.register_buffer("pos_weight", torch.full((findings,), torch.nan))
        self._known = False  # spares a look at the device's memory in every step

    def size_to(self, findings: int) -> None:
        self.pos_weight = torch.full((findings,), torch.nan)

    def fit_to(self, *, positives: Tensor, images: int) -> None:
        positives = positives.to(device="cpu", dtype=torch.float64)
        if positives.shape != self.pos_weight.shape:
            raise ValueError(
                f"positives of shape {tuple(positives.shape)} "
                f"for pos_weight {tuple(self.pos_weight.shape)}"
            )
        negatives = images - positives
        weight = (negatives / positives.clamp(min=1)).clamp(max=self.max_weight)
        one_class = (positives == 0) | (negatives == 0)
        self.pos_weight.copy_(torch.where(one_class, 1.0, weight))

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self._known:
            self._known = bool(self.pos_weight.isfinite().all())
        if not self._known:
            raise UserError(
                "weighted_bce has no weights yet: call fit_to with the training split's positives"
            )
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight.float(), reduction="none"
        )


class Focal(FindingsLoss):
    """Focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

    Args:
        alpha: weight of the positives in 0..1 (negatives have 1 - alpha), or -1 for none.
        gamma: focusing exponent; 0 is cross-entropy.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        if not (0 <= alpha <= 1 or alpha == -1):
            raise UserError(f"loss.alpha={alpha}: must lie in 0..1, or be -1 for no weighting")
        _check_exponent("gamma", gamma)
        self.alpha = alpha
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = sigmoid_focal_loss(logits, targets, alpha=self.alpha, gamma=self.gamma)
        return loss


class Asymmetric(FindingsLoss):
    """Asymmetric loss (Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021).

    With p = sigmoid(logit) and p_m = max(p - clip, 0), equations 4 to 7 there:

        positive: -(1 - p)^gamma_pos log(p)
        negative: -p_m^gamma_neg log(1 - p_m)

    Args:
        gamma_pos, gamma_neg: focusing exponents; the paper's are 0 and 4 on MS-COCO.
        clip: probability below which a negative costs nothing; the paper's is 0.05.
    """

    def __init__(
        self, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
    ) -> None:
        super().__init__()
        _check_exponent("gamma_pos", gamma_pos)
        _check_exponent("gamma_neg", gamma_neg)
        if not 0 <= clip < 1:
            raise UserError(f"loss.clip={clip}: must be at least 0 and below 1")
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.clip = clip

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        absent = torch.sigmoid(-logits)  # 1 - p, exact where p is close to 1
        positive = absent**self.gamma_pos * F.logsigmoid(logits)
        if self.clip > 0:
            # 1 - p_m is at least clip, so that its logarithm is safe.
            log_absent = torch.log((absent + self.clip).clamp(max=1))
        else:
            log_absent = F.logsigmoid(-logits)
        shifted = (torch.sigmoid(logits) - self.clip).clamp(min=0)  # p_m
        negative = shifted**self.gamma_neg * log_absent
        return -(targets * positive + (1 - targets) * negative)


def _check_exponent(name: str, gamma: float) -> None:
    """Refuse an exponent whose gradient is infinite where the probability is exactly 0 or 1."""
    if not (gamma == 0 or gamma >= 1):
        raise UserError(f"loss.{name}={gamma}: must be 0 or at least 1, for finite gradients")
