"""Fine-tuning: rates and weight decay by depth and kind of layer, and epochs of the head alone."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from xray_lightning.errors import UserError, check_whole

# The block in a parameter's name: `layer2.0`, `blocks.3`, `stages.1` or `features.denseblock2`.
_BLOCK = re.compile(r"^(?:features\.)?[^.]*?(?:\d+|(?:\.\d+)+)(?=\.)")


@dataclass(frozen=True)
class FineTuning:
    """How a backbone with loaded weights is fine-tuned; all None trains every layer alike.

    Attributes:
        layer_decay: each block's learning rate is this share of the rate of the block after it
            (Clark et al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022).
        decay_all: false for no weight decay on biases and on weights of one dimension, those of
            norms (He et al., "Bag of Tricks", CVPR 2019).
        freeze_epochs: in this many first epochs only the head is trained and the backbone is
            frozen (Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022); its
            batch norms still update their running statistics.
        freeze_blocks: this many first blocks (of each network, if there are several) and the
            layers before them are never trained; their activations need no gradient. Batch norms
            as in `freeze_epochs`.
        probe: true to begin with a head that is a logistic regression on the features of the
            loaded weights: see `training.linear_probe`.
        freeze_norm: true for batch norms that keep the means and variances of the loaded weights,
            as detectors are trained (He et al., "Deep Residual Learning", CVPR 2016, appendix A).
            None is true if `probe` is, as its head was fitted to features computed with these.
    """

    layer_decay: float | None = None
    decay_all: bool | None = None
    freeze_epochs: int | None = None
    freeze_blocks: int | None = None
    probe: bool | None = None
    freeze_norm: bool | None = None

    def __post_init__(self) -> None:
        share = self.layer_decay
        if share is not None and (
            not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1
        ):
            raise UserError(f"fine_tuning.layer_decay={share} must be above 0, at most 1")
        for key in ("decay_all", "probe", "freeze_norm"):
            if not isinstance(value := getattr(self, key), bool | None):
                raise UserError(f"fine_tuning.{key}={value} must be true or false")
        for key in ("freeze_epochs", "freeze_blocks"):
            if (number := getattr(self, key)) is not None:
                check_whole(f"fine_tuning.{key}", number, least=0)

    def parameters(self, module: nn.Module) -> Iterable[Any]:
        """The optimizer's parameters, ungrouped, or in groups with their own rate and decay."""
        if self.layer_decay is None and self.decay_all is not False:
            return module.parameters()
        return list(self._groups(module))

    def frozen(self, backbone: nn.Module, *, epoch: int) -> dict[str, nn.Parameter]:
        """The parameters of a backbone that this epoch leaves as they are, by name.

        Raises:
            UserError: the backbone has fewer blocks, or does not say which layer is its head.
        """
        if epoch >= (self.freeze_epochs or 0):
            return self._first_blocks(backbone) if self.freeze_blocks else {}
        head = getattr(backbone, "head_prefix", None)
        if head is None:
            raise UserError(
                "fine_tuning.freeze_epochs: this backbone has no head_prefix, such as 'fc.', "
                "by which its head can be told from the rest"
            )
        named = backbone.named_parameters()
        return {name: parameter for name, parameter in named if not name.startswith(head)}

    def _first_blocks(self, backbone: nn.Module) -> dict[str, nn.Parameter]:
        depths = _depths(backbone)
        frozen = self.freeze_blocks or 0
        # With several networks, the one with the fewest blocks limits `freeze_blocks`.
        last = min((depth + away for depth, away in depths.values()), default=0)
        if frozen >= last:
            blocks = max(0, last - 1)
            raise UserError(
                f"fine_tuning.freeze_blocks={frozen}: this backbone has {blocks} blocks"
            )
        named = backbone.named_parameters()
        return {name: parameter for name, parameter in named if depths[name][0] <= frozen}

    def fix_norms(self, module: nn.Module) -> None:
        """Put batch norms into eval mode if `freeze_norm`, or by default `probe`, is true."""
        if self.probe if self.freeze_norm is None else self.freeze_norm:
            for layer in module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def scale(self, optimizer: Optimizer) -> None:
        """Give each group its share of the optimizer's rate."""
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group.get("lr_share", 1.0)

    def _groups(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        depths = _depths(module)
        kinds: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            spared = self.decay_all is False and (parameter.ndim <= 1 or name.endswith(".bias"))
            kinds.setdefault((depths[name][1], spared), []).append(parameter)
        # The group nearest the head first, since the first group's rate is the one displayed.
        for away, spared in sorted(kinds):
            share = (self.layer_decay or 1.0) ** away
            group: dict[str, Any] = {"params": kinds[away, spared], "lr_share": share}
            yield group | ({"weight_decay": 0.0} if spared else {})


def without_gradient(
    classifier: nn.Module, frozen: Mapping[str, nn.Parameter], images: Tensor
) -> Tensor:
    """Logits (B, findings) that give these parameters of the backbone a zero gradient."""
    fixed = {f"backbone.{name}": parameter.detach() for name, parameter in frozen.items()}
    logits: Tensor = functional_call(classifier, fixed, images)
    # DDP waits for a gradient of every parameter; this 0 is removed before the optimizer's step.
    return logits + 0 * sum(parameter.sum() for parameter in frozen.values())


def check_rates(optimizer: Optimizer, scheduler: object) -> None:
    """Refuse a schedule that sets one rate for all groups.

    Raises:
        UserError: it is OneCycleLR, and the groups have rates of their own.
    """
    # OneCycleLR has overwritten the rates by now; `lr_share` still shows that they differed.
    shares = {group.get("lr_share", 1.0) for group in optimizer.param_groups}
    if isinstance(scheduler, OneCycleLR) and len(shares) > 1:
        raise UserError(
            "scheduler=one_cycle has one rate for all layers, against fine_tuning.layer_decay; "
            "take scheduler=cosine"
        )


def _depths(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Each parameter's depth in its network, and its distance from the head, in blocks.

    Depth is 0 before the first block, 1 in it, and so on. Layers after the last block, including
    the head, are one deeper than that block, at distance 0.
    """
    prefixes = getattr(getattr(module, "backbone", module), "inner_prefixes", ())
    places: dict[str, tuple[str, int]] = {}
    blocks: dict[str, dict[str, int]] = {}
    for name, _ in module.named_parameters():
        bare = name.removeprefix("backbone.")
        network = next((prefix for prefix in prefixes if bare.startswith(prefix)), "")
        known = blocks.setdefault(network, {})
        block = _BLOCK.match(bare.removeprefix(network))
        if block is not None:
            depth = known.setdefault(block[0], len(known) + 1)
        else:
            depth = len(known) + 1 if known else 0
        places[name] = network, depth
    lasts = {network: len(known) + 1 if known else 0 for network, known in blocks.items()}
    longest = max(lasts.values(), default=0)
    # The head of networks side by side belongs to none of them.
    outside = {network for network, last in lasts.items() if not network and last < longest}
    return {
        name: (longest, 0) if network in outside else (depth, lasts[network] - depth)
        for name, (network, depth) in places.items()
    }
