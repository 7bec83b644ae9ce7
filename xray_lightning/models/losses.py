"""Multi-label losses: one value per image, the mean over its findings.

Each returns (B,) rather than a mean over the batch, so that the caller can weight images exactly
when ranks or steps hold unequal numbers of them. All compute in float32, whatever the autocast.
All five rows of the paper's study have `BinaryCrossEntropy` (`conf/loss/bce.yaml`).
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
        """Set the number of findings; most losses do not need it."""

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
    """Cross-entropy of each finding by itself, all weighted equally.

    Args:
        smoothing: share s of label smoothing: targets are s / 2 and 1 - s / 2 in the place of 0
            and 1 (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, of two
            classes).
    """

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise UserError(f"loss.smoothing={smoothing}: must be at least 0 and below 1")
        self.smoothing = smoothing

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.smoothing:  # spares the default two operations a step
            targets = torch.lerp(targets, torch.full_like(targets, 0.5), self.smoothing)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class _FittedLoss(FindingsLoss):
    """A loss with one constant per finding, computed from the training split.

    Args:
        name: name of their buffer (findings,), NaN until `fit_to` or a state dict has filled it.
    """

    def __init__(self, name: str, *, findings: int) -> None:
        super().__init__()
        self._name = name
        self._known = False  # avoids a synchronisation with the device in every step
        self.size_to(findings)

    def size_to(self, findings: int) -> None:
        self.register_buffer(self._name, torch.full((findings,), torch.nan))

    def fit_to(self, *, positives: Tensor, images: int) -> None:
        buffer = self.get_buffer(self._name)
        positives = positives.to(device="cpu", dtype=torch.float64)
        if positives.shape != buffer.shape:
            raise ValueError(
                f"positives of shape {tuple(positives.shape)} "
                f"for {self._name} {tuple(buffer.shape)}"
            )
        buffer.copy_(self.fitted(positives, images - positives))

    @abstractmethod
    def fitted(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """The constants (findings,), from counts of images with and without each, float64."""

    def buffer(self) -> Tensor:
        """The constants (findings,), float32.

        Raises:
            UserError: they have been neither fitted nor loaded.
        """
        buffer = self.get_buffer(self._name)
        if not self._known:
            self._known = bool(buffer.isfinite().all())
        if not self._known:
            raise UserError(
                f"loss: {self._name} is not known yet: call fit_to with the training split's "
                "positives"
            )
        return buffer.float()


class WeightedBinaryCrossEntropy(_FittedLoss):
    """Cross-entropy whose positives weigh negatives / positives of the training split.

    A finding that no training image or every one has gets weight 1.

    Args:
        max_weight: cap on a weight, so that a finding with a handful of positives does not
            drown the others (Hernia's would be about 490 on ChestX-ray14).
        findings: number of findings.
    """

    pos_weight: Tensor  # (findings,)

    def __init__(self, *, max_weight: float = 100.0, findings: int = len(FINDINGS)) -> None:
        if not max_weight > 0:
            raise UserError(f"loss.max_weight={max_weight}: must be above 0")
        super().__init__("pos_weight", findings=findings)
        self.max_weight = max_weight

    def fitted(self, positives: Tensor, negatives: Tensor) -> Tensor:
        weight = (negatives / positives.clamp(min=1)).clamp(max=self.max_weight)
        return torch.where((positives == 0) | (negatives == 0), 1.0, weight)

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.buffer(), reduction="none"
        )


class LogitAdjusted(_FittedLoss):
    """Cross-entropy of logits to which each finding's log odds in the training split are added.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10, for two
    classes: the model learns logits for a prevalence of 1/2, and its probabilities must be read
    so (calibration restores the actual prevalence). A finding that no training image or every one
    has is not adjusted.

    Args:
        tau: share of the log odds that is added; 1 in the paper, 0 for plain cross-entropy.
        findings: number of findings.
    """

    log_odds: Tensor  # (findings,)

    def __init__(self, *, tau: float = 1.0, findings: int = len(FINDINGS)) -> None:
        if not tau >= 0:
            raise UserError(f"loss.tau={tau}: must be at least 0")
        super().__init__("log_odds", findings=findings)
        self.tau = tau

    def fitted(self, positives: Tensor, negatives: Tensor) -> Tensor:
        one_class = (positives == 0) | (negatives == 0)
        return torch.where(one_class, 0.0, (positives / negatives).log())

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits + self.tau * self.buffer(), targets, reduction="none"
        )


class AucMargin(_FittedLoss):
    """AUC-margin loss (Yuan et al., "Large-scale Robust Deep AUC Maximization", ICCV 2021).

    With s = sigmoid(logit), prevalence p and margin m, its equation 7 for one image and finding:

        positive: (1 - p) (s - a)^2 - 2 (1 - p) alpha s
        negative:      p  (s - b)^2 + 2      p  alpha s
        both:     2 p (1 - p) m alpha - p (1 - p) alpha^2

    minimised over the model, a and b (the mean scores of both classes) and maximised over alpha,
    which stays at 0 or above. All three are parameters, one per finding, that the run's optimizer
    steps; alpha's gradient is negated. A finding of which the training split has only positives or
    only negatives adds nothing. Meant for a model already trained with cross-entropy.

    Args:
        margin: how far positives should score above negatives, above 0.
        findings: number of findings.
    """

    prevalence: Tensor  # (findings,)

    def __init__(self, *, margin: float = 1.0, findings: int = len(FINDINGS)) -> None:
        if not margin > 0:
            raise UserError(f"loss.margin={margin}: must be above 0")
        super().__init__("prevalence", findings=findings)
        self.margin = margin

    def size_to(self, findings: int) -> None:
        super().size_to(findings)
        self.a, self.b, self.alpha = (nn.Parameter(torch.zeros(findings)) for _ in range(3))

    def fitted(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return positives / (positives + negatives)

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        score, share = logits.sigmoid(), self.buffer()
        with torch.no_grad():
            self.alpha.clamp_(min=0)
        alpha = 2 * self.alpha.detach() - self.alpha  # its value, with the gradient of -alpha
        positive = (1 - share) * ((score - self.a) ** 2 - 2 * alpha * score)
        negative = share * ((score - self.b) ** 2 + 2 * alpha * score)
        both = share * (1 - share) * (2 * self.margin - alpha) * alpha
        return targets * positive + (1 - targets) * negative + both


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
