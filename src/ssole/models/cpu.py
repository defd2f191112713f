"""Layers that train faster on CPUs: convolutions and batch norms with the same weights and results."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def replace_layers(model: nn.Module, replaceable: Callable[[nn.Module], bool], new: Callable[[Any], nn.Module]) -> None:
    """Put new(layer) in the place of every replaceable layer below `model`; names stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if replaceable(child):
                setattr(module, name, new(child))


_input_gradient = torch.ops.aten.convolution_backward  # `torch.nn.grad.conv2d_input` would lose the memory format
_LONG = 1 << 15  # rows
SMALL_MAP = 16  # output positions an image (4x4): above it, copying patches costs more than the product saves


def speed_up_convolutions(model: nn.Module) -> nn.Module:
    """Replace, in place, the convolutions that :class:`FastConv2d` can stand in for; names and weights stay."""
    replace_layers(model, _replaceable_conv, FastConv2d)
    return model


def _replaceable_conv(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d  # a subclass may compute something else
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.bias is None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class FastConv2d(nn.Conv2d):
    """`conv` with the same weight, output and gradients to rounding.

    It trains faster where the output map is small or the kernel a single position.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        with torch.device("meta"):  # the weight is taken over, not drawn
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                stride=conv.stride,  # type: ignore[arg-type]
                padding=conv.padding,  # type: ignore[arg-type]
                bias=False,
            )
        self.weight = conv.weight
        self._parts = 1 << (torch.get_num_threads() - 1).bit_length()  # asked here, where no compiler has to follow
        self.train(conv.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to (N, C_out, H_out, W_out)."""
        differentiated = torch.is_grad_enabled() and x.device.type == "cpu" and x.ndim == 4
        if not differentiated:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        pointwise = self.weight.shape[2:] == (1, 1) and dtype is torch.bfloat16
        if self._positions(x) > SMALL_MAP and not pointwise:
            return super().forward(x)
        y: torch.Tensor = _Convolve.apply(x.to(dtype), self.weight.to(dtype), self.stride, self.padding, self._parts)
        return y

    def _positions(self, x: torch.Tensor) -> int:
        positions = 1
        for dim in (0, 1):
            padded = x.shape[2 + dim] + 2 * int(self.padding[dim])
            positions *= (padded - self.kernel_size[dim]) // self.stride[dim] + 1
        return positions


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int], parts: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.parts = stride, padding, parts
        return F.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            like_forward = (ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1)
            grad_x = _input_gradient(grad, x, weight, None, *like_forward, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, weight.shape, grad, ctx.stride, ctx.padding, ctx.parts)
        return grad_x, grad_weight, None, None, None


def _weight_gradient(
    x: torch.Tensor,
    shape: torch.Size,
    grad: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    parts: int,
) -> torch.Tensor:
    """The sum over images and positions of (output's gradient) x (input's patch), in the weight's shape."""
    out, channels, height, width = shape
    rows = grad.permute(0, 2, 3, 1).reshape(-1, out)
    if height == width == 1 and padding == (0, 0):
        columns = x.permute(0, 2, 3, 1)[:, :: stride[0], :: stride[1]].reshape(-1, channels)
        product = _long_product(rows, columns, parts)
        return product.view(out, channels, 1, 1)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))  # channels last
    patches = x.unfold(1, height, stride[0]).unfold(2, width, stride[1]).permute(0, 1, 2, 4, 5, 3)
    patches = patches.reshape(-1, height * width * channels)
    product = rows.T @ patches
    return product.view(out, height, width, channels).permute(0, 3, 1, 2)


def _long_product(a: torch.Tensor, b: torch.Tensor, parts: int) -> torch.Tensor:
    """a.T @ b, where a and b are many times as long as wide: the result is too small to be divided among threads, so
    that each gets a part of the rows. `parts` is a power of two; fewer are made where they would not be even."""
    parts = math.gcd(len(a), parts)
    if parts == 1 or len(a) < _LONG:
        return a.T @ b
    a, b = a.unflatten(0, (parts, -1)), b.unflatten(0, (parts, -1))
    return torch.bmm(a.mT, b).sum(0)


def make_batch_norm_compile_well(model: nn.Module) -> nn.Module:
    """Replace, in place, the batch norms that :class:`CompiledBatchNorm2d` can stand in for; names and state stay."""
    replace_layers(model, _replaceable_norm, CompiledBatchNorm2d)
    return model


def _replaceable_norm(module: nn.Module) -> bool:
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
