"""Layers that train faster on CPUs: convolutions and batch norms with the weights and results of PyTorch's own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssole.models.batch_norm import has_own_code, replace_layers, share_state, update_statistics

SMALL_MAP = 16  # output positions of an image (4x4); in larger maps, copying patches costs more than it saves
_LONG = 1 << 15  # rows from which a product is divided among threads
_OVER = (0, 2, 3)  # dimensions of maps (N, C, H, W) that a batch norm averages over


def speed_up_convolutions(model: nn.Module) -> nn.Module:
    """Model with :class:`FastConv2d` for its plain convolutions, changed in place; names and weights stay."""
    return replace_layers(model, _replaceable_conv, FastConv2d)


def speed_up_compiled_batch_norms(model: nn.Module) -> nn.Module:
    """Model with :class:`CompiledBatchNorm2d` for its plain batch norms, changed in place; names and state stay."""
    return replace_layers(model, _replaceable_norm, CompiledBatchNorm2d)


def _replaceable_conv(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d  # a subclass may compute something else
        and not has_own_code(module)
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.bias is None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class FastConv2d(nn.Conv2d):
    """Convolution with a faster gradient of the weight, for small output maps and for 1x1 kernels in bfloat16.

    It shares the weight of `conv`. Outputs are the same, and gradients are the same to rounding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        with torch.device("meta"):  # draws no initial weight: that of `conv` is used
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                stride=conv.stride,  # type: ignore[arg-type]
                padding=conv.padding,  # type: ignore[arg-type]
                bias=False,
            )
        self.weight = conv.weight
        self._parts = 1 << (torch.get_num_threads() - 1).bit_length()  # set here, because the compiler cannot trace it
        self.train(conv.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) to (N, C_out, H_out, W_out)."""
        trained_on_cpu = torch.is_grad_enabled() and x.device.type == "cpu" and x.ndim == 4
        if not trained_on_cpu:
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
    """PyTorch's convolution and its gradient of the input, with the gradient of the weight by `_weight_gradient`."""

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
            # not `torch.nn.grad.conv2d_input`, which loses the memory format
            convolution_backward = torch.ops.aten.convolution_backward
            grad_x = convolution_backward(grad, x, weight, None, *like_forward, [True, False, False])[0]
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
    """Sum over images and positions of (gradient of the output) x (patch of the input), in the weight's `shape`."""
    out, channels, height, width = shape
    rows = grad.permute(0, 2, 3, 1).reshape(-1, out)
    if height == width == 1 and padding == (0, 0):
        columns = x.permute(0, 2, 3, 1)[:, :: stride[0], :: stride[1]].reshape(-1, channels)
        return _long_product(rows, columns, parts).view(out, channels, 1, 1)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))  # channels last
    patches = x.unfold(1, height, stride[0]).unfold(2, width, stride[1]).permute(0, 1, 2, 4, 5, 3)
    patches = patches.reshape(-1, height * width * channels)
    product = rows.T @ patches
    return product.view(out, height, width, channels).permute(0, 3, 1, 2)


def _long_product(a: torch.Tensor, b: torch.Tensor, parts: int) -> torch.Tensor:
    """Product a.T @ b of long and narrow a and b, as a sum over `parts` (a power of two) equal parts of the rows.

    The result is too small to be divided among threads, so the rows are divided. The number of parts is halved until it
    divides the rows.
    """
    parts = math.gcd(len(a), parts)
    if parts == 1 or len(a) < _LONG:
        return a.T @ b
    a, b = a.unflatten(0, (parts, -1)), b.unflatten(0, (parts, -1))
    return torch.bmm(a.mT, b).sum(0)


def _replaceable_norm(module: nn.Module) -> bool:
    return (
        type(module) is nn.BatchNorm2d  # a subclass may compute something else
        and not has_own_code(module)
        and module.affine
        and module.track_running_stats
        and module.momentum is not None
    )


class CompiledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that `torch.compile` makes faster in training on CPUs.

    It shares weights and state with `norm`. Outputs, gradients and state are the same to rounding.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        with torch.device("meta"):  # takes no memory: the state of `norm` is used
            super().__init__(norm.num_features, norm.eps, norm.momentum)
        share_state(self, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (N, C, H, W) to the same shape."""
        one_value = x.numel() == x.shape[1]  # in each channel, for which PyTorch's own layer raises its error
        if one_value or not (self.training and torch.compiler.is_compiling()):
            return super().forward(x)
        y, mean, var = _Normalize.apply(x, self.weight, self.bias, self.eps)
        update_statistics(self, mean, var, x.numel() // x.shape[1])
        out: torch.Tensor = y
        return out


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


def _c(x: torch.Tensor) -> torch.Tensor:
    """x of shape (C,) as (C, 1, 1), to broadcast over maps (N, C, H, W)."""
    return x[:, None, None]
