"""Convolutions with a fast weight gradient over small maps or of single positions, for training on CPUs.

oneDNN, which PyTorch convolves with on x86, computes the weight gradient of a convolution over a map of a few positions
at a tenth of the speed of a matrix product (`benchmarks/encoder.py`), and in small-image networks that is the
largest single cost of a step. The gradient *is* a matrix product, of the output's gradient with the input's patches.
In bfloat16 that is also up to three times faster for 1x1 convolutions over maps of any size: no copies of patches.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ssole.models.replace import replace_layers

_input_gradient = torch.ops.aten.convolution_backward  # `torch.nn.grad.conv2d_input` would lose the memory format
_LONG = 1 << 15  # rows
SMALL_MAP = 16  # output positions an image (4x4): above it, copying patches costs more than the product saves


def speed_up_convolutions(model: nn.Module) -> nn.Module:
    """Replace, in place, the convolutions that :class:`FastConv2d` can stand in for; names and weights stay."""
    replace_layers(model, _replaceable, FastConv2d)
    return model


def _replaceable(module: nn.Module) -> bool:
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
