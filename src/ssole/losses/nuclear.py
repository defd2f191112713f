"""The nuclear norm and its exact minimum-norm subgradient.

Everything here goes through Gram matrices. With A of shape (m, n), k = min(m, n) and G the k x k Gram matrix of its
smaller side,

    ||A||_* = tr(G^(1/2))            d||A||_* / dG = G^(-1/2) / 2            dG -> dA:  A' = (G' + G'^T) A

so the gradient is G^(-1/2) A = U V^T, the polar factor of A. G^(-1/2) is the pseudo-inverse root, which makes U V^T run
over the non-zero modes only: the subgradient of minimum norm (Watson 1992, "Characterization of the subdifferential of
some matrix norms"). Nothing ever differentiates through singular vectors.

G squares the condition number kappa of A, so it is formed and factored in float64 even when A is float32: the
gradient's error is then about 1e-16 kappa^2, which reaches 1e-4 only at kappa = 1e6. (With G in float32 that happens at
kappa = 40.) For float64 input on the CPU the norm comes from an SVD of A itself, which squares nothing.

Shape suffixes: N any batch, m and n the matrix, k = min(m, n); B images, V views, D embedding dimensions, C = V - 1
contrasts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ssole.losses.gram import gram_product, multiply_into, product_dtype
from ssole.losses.roots import inverse_root


def nuclear_norm(x: Tensor) -> Tensor:
    """Sum of the singular values of each matrix in `x`, with the exact minimum-norm subgradient.

    Args:
        x: (..., m, n), float16, bfloat16, float32 or float64, finite, no dimension empty.

    Returns:
        (...,) in float32 for half-precision and float32 input, in float64 for float64.

    The gradient with respect to `x` is U V^T over the non-zero singular values, in the dtype of `x`. Relative to the
    largest, zero means below 3e-8 sqrt(k) on the CPU (for float64: max(m, n) * eps), and fades out below 1e-6 on
    accelerators. Autocast does not apply inside.

    Raises:
        ValueError: `x` has fewer than two dimensions, is empty, or is not of a floating-point dtype.
        RuntimeError: on differentiating twice.
    """
    if x.ndim < 2:
        raise ValueError(f"nuclear_norm needs a matrix or a batch of matrices (..., m, n), got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"nuclear_norm got an empty tensor of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"nuclear_norm needs a floating-point tensor, got {x.dtype}; convert it with .float()")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_Nmn = x.reshape(-1, *x.shape[-2:])
    with torch.autocast(x.device.type, enabled=False):
        if dtype == torch.float64 and x.device.type == "cpu":
            value_N: Tensor = _SvdNorm.apply(x_Nmn, False)
        else:
            value_N = trace_root(gram(x_Nmn.to(dtype)))
    return value_N.to(dtype).reshape(x.shape[:-2])


def gram(x_Nmn: Tensor) -> Tensor:
    """Float64 Gram matrices (N, k, k) of the smaller side of `x_Nmn`; differentiable once."""
    return _Gram.apply(x_Nmn)  # type: ignore[no-any-return]


def trace_root(g_Nkk: Tensor) -> Tensor:
    """tr(G^(1/2)) of float64 Gram matrices, (N,); its gradient is half the pseudo-inverse root."""
    return _TraceRoot.apply(g_Nkk)  # type: ignore[no-any-return]


def all_modes_norm(x_Nmn: Tensor) -> Tensor:
    """ABLATION ONLY. The nuclear norm whose gradient keeps the null modes an SVD happens to return.

    The gradient is U V^T over all k modes. Where a singular value is zero its vectors are arbitrary, and so is what
    they add: a rank-one term of unit length that is no part of the gradient. `nuclear_norm` is the right one; see
    `SSOLELoss(gradient=...)`.
    """
    return _SvdNorm.apply(x_Nmn, True)  # type: ignore[no-any-return]


class _TraceRoot(Function):
    @staticmethod
    def forward(ctx: Any, g_Nkk: Tensor) -> Tensor:
        value_N, inverse_root_Nkk = inverse_root(g_Nkk)
        ctx.save_for_backward(g_Nkk, inverse_root_Nkk)
        return value_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> Tensor:
        g_Nkk, inverse_root_Nkk = ctx.saved_tensors
        return first_order_only(grad_N[:, None, None] * inverse_root_Nkk / 2, grad_N, g_Nkk)


class _Gram(Function):
    @staticmethod
    def forward(ctx: Any, x_Nmn: Tensor) -> Tensor:
        g_Nkk = gram_product(x_Nmn)
        ctx.save_for_backward(x_Nmn, g_Nkk)
        return g_Nkk

    @staticmethod
    def backward(ctx: Any, grad_Nkk: Tensor) -> Tensor:
        x_Nmn, g_Nkk = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(x_Nmn.device.type, enabled=False):
            a_Nkk = grad_Nkk + grad_Nkk.mT
            squares_Nk = g_Nkk.diagonal(dim1=1, dim2=2)

            def noise_and_size() -> tuple[Tensor, Tensor]:
                return (a_Nkk.square() * squares_Nk[:, None, :]).sum(), ((a_Nkk @ g_Nkk) * a_Nkk).sum()

            dtype = product_dtype(x_Nmn, squares_Nk, noise_and_size)
            out_Nmn = torch.empty_like(x_Nmn)
            multiply_into(out_Nmn, a_Nkk, x_Nmn, dtype=dtype)
        return first_order_only(out_Nmn, grad_Nkk, x_Nmn)


class _SvdNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_Nmn: Tensor, keep_null_modes: bool) -> Tensor:
        u_Nmk: Tensor
        s_Nk: Tensor
        u_Nmk, s_Nk, vh_Nkn = torch.linalg.svd(x_Nmn, full_matrices=False)
        if not keep_null_modes:
            # The usual numerical rank (as in LAPACK, NumPy and torch.linalg.matrix_rank).
            cutoff_N1 = s_Nk[:, :1] * max(x_Nmn.shape[-2:]) * torch.finfo(s_Nk.dtype).eps
            u_Nmk = u_Nmk * (s_Nk > cutoff_N1)[:, None, :]
        ctx.save_for_backward(x_Nmn, u_Nmk @ vh_Nkn)
        return s_Nk.sum(-1)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        x_Nmn, polar_Nmn = ctx.saved_tensors
        gradient_Nmn: Tensor = grad_N[:, None, None] * polar_Nmn
        return first_order_only(gradient_Nmn, grad_N, x_Nmn), None


def first_order_only(gradient: Tensor, *sources: Tensor) -> Tensor:
    """`gradient`, a function of `sources`, as it is; differentiating it raises instead of taking it for a constant."""
    if not torch.is_grad_enabled():
        return gradient
    return _FirstOrderOnly.apply(gradient, *sources)  # type: ignore[no-any-return]


class _FirstOrderOnly(Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "The nuclear norm supports first derivatives only, and this differentiates its gradient. "
            "Call backward() or torch.autograd.grad() without create_graph=True, or detach the gradient."
        )
