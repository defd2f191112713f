"""Batch normalisation that compiles to fast loops on CPUs.

`torch.compile` takes the variance of `nn.BatchNorm2d` by Welford's update, whose division in every element keeps the
loop slow. Two plain sums, first of the values and then of their squared distances from the mean, are as exact and
cost one more reading of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssole.models.replace import replace_layers


def make_batch_norm_compile_well(model: nn.Module) -> nn.Module:
    """Replace, in place, the batch norms that :class:`CompiledBatchNorm2d` can stand in for; names and state stay."""
    replace_layers(model, _replaceable, CompiledBatchNorm2d)
    return model


def _replaceable(module: nn.Module) -> bool:
    return (
        type(module) is nn.BatchNorm2d  # a subclass may compute something else
        and module.affine
        and module.track_running_stats
        and module.momentum is not None
    )


class CompiledBatchNorm2d(nn.BatchNorm2d):
    """`norm` with the same state, output and gradients to rounding; faster to train on CPUs once it is compiled."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        with torch.device("meta"):  # the state is taken over
            super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape."""
        one_value = x.numel() == x.shape[1]  # of each channel, which is an error
        if one_value or not (self.training and torch.compiler.is_compiling()):
            return super().forward(x)
        y, mean, var = _Normalize.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, var, x.numel() // x.shape[1])
        out: torch.Tensor = y
        return out

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
        """As `nn.BatchNorm2d` does, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / (count - 1)), self.momentum)


class _Normalize(torch.autograd.Function):
    """(x - mean) / std * weight + bias, with mean and std of each channel; computed in float32 or better."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.mean(_OVER)
        var = (wide - _c(mean)).square().mean(_OVER)
        inv_std = (var + eps).rsqrt()
        y = (wide - _c(mean)) * _c(weight * inv_std) + _c(bias)
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        wide, normal = grad.to(mean.dtype), (x.to(mean.dtype) - _c(mean)) * _c(inv_std)
        grad_bias, grad_weight = wide.sum(_OVER), (wide * normal).sum(_OVER)
        count = x.numel() // x.shape[1]
        grad_x = (wide - _c(grad_bias / count) - normal * _c(grad_weight / count)) * _c(weight * inv_std)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


_OVER = (0, 2, 3)


def _c(x: torch.Tensor) -> torch.Tensor:
    """(C,) as (C, 1, 1)."""
    return x[:, None, None]
