"""Batch normalisation over the images of all ranks, on the CPU (Gloo) as on CUDA (NCCL).

`torch.nn.SyncBatchNorm` refuses CPU tensors, and `torch.distributed.nn.functional.all_reduce`,
which would allow a direct implementation, is deprecated. So this module makes the two all-reduces
itself, one of the statistics and one of their gradients, around PyTorch's own kernels.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all ranks' images together.

    The result and its gradients are those of one process that holds the joined batch; ranks may
    hold unequal numbers of images, but at least one each. With one process, without
    torch.distributed, and in evaluation it is `nn.BatchNorm2d`. All ranks must call it equally
    often.
    """

    def forward(self, input: Tensor) -> Tensor:
        grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.training and grouped):
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _global_statistics(input.detach())
        self._track(mean, var, count)
        weight = self.weight if self.affine else torch.ones_like(mean)
        bias = self.bias if self.affine else torch.zeros_like(mean)
        output: Tensor = _Normalise.apply(input, weight, bias, mean, var, count, self.eps)
        return self._finished(output)

    def _finished(self, output: Tensor) -> Tensor:
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        factor = self.momentum
        if factor is None:  # cumulative average
            factor = 1.0 / float(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        unbiased = var * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var), factor)


def _global_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () of input (B, C, H, W) over all ranks."""
    channels = input.shape[1]
    # The running statistics here are dummies; their dtype makes the result float32 for bf16 input.
    kind = torch.promote_types(input.dtype, torch.float32)
    scratch = torch.zeros(channels, dtype=kind, device=input.device)
    mean, var = torch.batch_norm_update_stats(input, scratch, scratch.clone(), 0.0)
    # Sums of squares lose the variance of a channel far from zero in float32, not in float64.
    mean, var = mean.double(), var.double()
    count = mean.new_full((1,), input.numel() // channels)
    sums = torch.cat([count * mean, count * (var + mean**2), count])
    dist.all_reduce(sums)
    count = sums[-1]
    mean = sums[:channels] / count
    var = (sums[channels:-1] / count - mean**2).clamp(min=0)
    return mean.to(kind), var.to(kind), count.to(kind)


class _Normalise(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are functions of all x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of batch normalisation (Ioffe & Szegedy, ICML 2015, section 3).

        With y the output and z the normalised input, over the N values of all ranks:
        dx = weight / sqrt(var + eps) * (dy - sum(dy) / N - z * sum(dy * z) / N).
        """
        x, weight, mean, var, count = ctx.saved_tensors
        # With constant statistics: the first term, and this rank's sum(dy * z) and sum(dy).
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        # The other two terms are z * scale + shift, which is a batch normalisation of x again.
        factor = -weight * torch.rsqrt(var + ctx.eps) / count
        scale, shift = factor * sums[0], factor * sums[1]
        grad_x += F.batch_norm(x, mean, var, scale, shift, training=False, eps=ctx.eps)
        # The gradients of weight and bias stay this rank's, as any parameter's: DDP averages them.
        return grad_x, grad_weight, grad_bias, None, None, None, None


class PortableSyncBatchNorm(LayerSync):
    """Lightning plugin for it: `Trainer(plugins=[PortableSyncBatchNorm()])`.

    Every `nn.BatchNorm2d` becomes a `SyncBatchNorm2d` in place, keeping its tensors, names and
    mode; so does timm's `BatchNormAct2d`. The DDP strategies apply it before a fit and revert it
    afterwards. Leave `sync_batchnorm=True` off: it selects PyTorch's own layer.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        return _exchange(model, old=nn.BatchNorm2d, new=SyncBatchNorm2d)

    def revert(self, model: nn.Module) -> nn.Module:
        return _exchange(model, old=SyncBatchNorm2d, new=nn.BatchNorm2d)


def _exchange(
    model: nn.Module, *, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]
) -> nn.Module:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new  # the two hold the same and differ in `forward` alone
        elif type(module).__name__ == "BatchNormAct2d" and new is SyncBatchNorm2d:
            module.__class__ = type("BatchNormAct2d", (_SyncBatchNormAct2d, type(module)), {})
        elif isinstance(module, _SyncBatchNormAct2d):
            module.__class__ = type(module).__bases__[1]
    return model


class _SyncBatchNormAct2d(SyncBatchNorm2d):
    """Mixin for timm's batch norm with an activation: precedes timm's class among the bases."""

    def _finished(self, output: Tensor) -> Tensor:
        found: Tensor = self.act(self.drop(output))  # type: ignore[operator]  # timm's two parts
        return found
