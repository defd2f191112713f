"""The nuclear norm and its exact minimum-norm subgradient.

Everything here goes through Gram matrices. With A of shape (m, n), k = min(m, n) and G the k x k Gram matrix of its smaller side,

    ||A||_* = tr(G^(1/2))            d||A||_* / dG = G^(-1/2) / 2            dG -> dA:  A' = (G' + G'^T) A

so the gradient is G^(-1/2) A = U V^T, the polar factor of A. G^(-1/2) is the pseudo-inverse root, which makes U V^T run over the
non-zero modes only: the subgradient of minimum norm (Watson 1992, "Characterization of the subdifferential of some matrix norms").
Nothing ever differentiates through singular vectors.

G squares the condition number kappa of A, so it is formed and factored in float64 even when A is float32: the gradient's error is then
about 1e-16 kappa^2, which reaches 1e-4 only at kappa = 1e6. (With G in float32 that happens at kappa = 40.) For float64 input on the
CPU the norm comes from an SVD of A itself, which squares nothing.

Shape suffixes: N any batch, m and n the matrix, k = min(m, n).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ssole.losses.polar import polar_root

# A mode counts as zero when its eigenvalue in G is below k * _RANK_TOLERANCE * (largest eigenvalue): rounding in a float64 Gram matrix
# alone lifts exact zeros to about k * 1e-16, so nothing smaller can be told from zero.
_RANK_TOLERANCE = 4 * torch.finfo(torch.float64).eps
# Elements converted to float64 at a time (8 MB). One small reused buffer: a whole float64 copy of A would cost more in page faults
# than the products do.
_CHUNK = 1 << 20
# The product G' A runs in float32 while its rounding error is estimated to stay below this share of the result, in float64 otherwise.
_SINGLE_PRECISION_NOISE = 1e-5


def nuclear_norm(x: Tensor) -> Tensor:
    """Sum of the singular values of each matrix in `x`, with the exact minimum-norm subgradient.

    Args:
        x: (..., m, n), float16, bfloat16, float32 or float64, finite, no dimension empty.

    Returns:
        (...,) in float32 for half-precision and float32 input, in float64 for float64.

    The gradient with respect to `x` is U V^T over the non-zero singular values, in the dtype of `x`. Autocast does not apply inside.

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
            value_N = _SvdNorm.apply(x_Nmn, False)
        else:
            value_N = trace_root(gram(x_Nmn.to(dtype)))
    return value_N.to(dtype).reshape(x.shape[:-2])


def gram(x_Nmn: Tensor) -> Tensor:
    """Float64 Gram matrices (N, k, k) of the smaller side of float32 or float64 `x_Nmn`; differentiable once."""
    return _Gram.apply(x_Nmn)  # type: ignore[no-any-return]


def grams_of_views_and_images(z_BVD: Tensor) -> tuple[Tensor, Tensor]:
    """`gram` of the B x D matrix of every view and the V x D matrix of every image, (V, B, B) and (B, V, V); needs B, V <= D.

    One function for both so that their gradients meet in one tensor of the size of `z`.
    """
    return _ViewsAndImages.apply(z_BVD)  # type: ignore[no-any-return]


def trace_root(g_Nkk: Tensor) -> Tensor:
    """tr(G^(1/2)) of float64 Gram matrices, (N,); its gradient is half the pseudo-inverse root."""
    return _TraceRoot.apply(g_Nkk)  # type: ignore[no-any-return]


def all_modes_norm(x_Nmn: Tensor) -> Tensor:
    """ABLATION ONLY. The nuclear norm whose gradient keeps the null modes an SVD happens to return.

    The gradient is U V^T over all k modes. Where a singular value is zero its vectors are arbitrary, and so is what they add: a rank-one
    term of unit length that is no part of the gradient. `nuclear_norm` is the right one; see `SSOLELoss(gradient=...)`.
    """
    return _SvdNorm.apply(x_Nmn, True)  # type: ignore[no-any-return]


class _TraceRoot(Function):
    @staticmethod
    def forward(ctx: Any, g_Nkk: Tensor) -> Tensor:
        value_N, inverse_root_Nkk = inverse_root(g_Nkk)
        ctx.save_for_backward(inverse_root_Nkk)
        return value_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> Tensor:
        (inverse_root_Nkk,) = ctx.saved_tensors
        return first_order_only(grad_N[:, None, None] * inverse_root_Nkk / 2, grad_N)


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
            out_Nmn = torch.empty_like(x_Nmn)
            multiply_into(out_Nmn, grad_Nkk + grad_Nkk.mT, x_Nmn, g_Nkk, accumulate=False)
        return first_order_only(out_Nmn, grad_Nkk)


class _ViewsAndImages(Function):
    @staticmethod
    def forward(ctx: Any, z_BVD: Tensor) -> tuple[Tensor, Tensor]:
        g_VBB, g_BVV = gram_product(z_BVD.transpose(0, 1)), gram_product(z_BVD)
        ctx.save_for_backward(z_BVD, g_VBB, g_BVV)
        return g_VBB, g_BVV

    @staticmethod
    def backward(ctx: Any, grad_VBB: Tensor, grad_BVV: Tensor) -> Tensor:
        z_BVD, g_VBB, g_BVV = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(z_BVD.device.type, enabled=False):
            out_BVD = torch.empty_like(z_BVD)
            multiply_into(out_BVD.transpose(0, 1), grad_VBB + grad_VBB.mT, z_BVD.transpose(0, 1), g_VBB, accumulate=False)
            multiply_into(out_BVD, grad_BVV + grad_BVV.mT, z_BVD, g_BVV, accumulate=True)
        return first_order_only(out_BVD, grad_VBB)


class _SvdNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_Nmn: Tensor, keep_null_modes: bool) -> Tensor:
        u_Nmk, s_Nk, vh_Nkn = torch.linalg.svd(x_Nmn, full_matrices=False)
        if not keep_null_modes:
            # The usual numerical rank (as in LAPACK, NumPy and torch.linalg.matrix_rank).
            cutoff_N1 = s_Nk[:, :1] * max(x_Nmn.shape[-2:]) * torch.finfo(s_Nk.dtype).eps
            u_Nmk = u_Nmk * (s_Nk > cutoff_N1)[:, None, :]
        ctx.save_for_backward(u_Nmk @ vh_Nkn)
        return s_Nk.sum(-1)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (polar_Nmn,) = ctx.saved_tensors
        return first_order_only(grad_N[:, None, None] * polar_Nmn, grad_N), None


def inverse_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """tr(G^(1/2)), (N,), and the pseudo-inverse root G^(-1/2), (N, k, k), of float64 Gram matrices, by the route that suits them."""
    k = g_Nkk.shape[-1]
    if k == 1:
        return _root_1x1(g_Nkk)
    if k == 2:
        return _root_2x2(g_Nkk)
    # eigh checks for errors on the host: on an accelerator that would wait for the device on every step.
    return _root_eigh(g_Nkk) if g_Nkk.device.type == "cpu" else polar_root(g_Nkk)


def _root_1x1(g_N11: Tensor) -> tuple[Tensor, Tensor]:
    root_N11 = g_N11.sqrt()
    return root_N11[:, 0, 0], torch.where(root_N11 > 0, 1 / root_N11, 0)


def _root_2x2(g_N22: Tensor) -> tuple[Tensor, Tensor]:
    """Cayley-Hamilton: with s = sqrt(det G) and t = sqrt(tr G + 2 s), G^(1/2) = (G + s I) / t, whose inverse is (adj(G) + s I) / (s t)."""
    a_N, b_N, c_N = g_N22[:, 0, 0], g_N22[:, 0, 1], g_N22[:, 1, 1]
    trace_N = a_N + c_N
    det_N = a_N * c_N - b_N * b_N
    full_rank_N = det_N > _RANK_TOLERANCE * trace_N**2
    s_N = torch.where(full_rank_N, det_N, 0).sqrt()
    t_N = (trace_N + 2 * s_N).sqrt()
    adjugate_N22 = torch.stack([c_N + s_N, -b_N, -b_N, a_N + s_N], -1).reshape(-1, 2, 2)
    # Rank one: G = tr(G) u u^T, so its pseudo-inverse root is G / tr(G)^(3/2). Rank zero: 0.
    numerator_N22 = torch.where(full_rank_N[:, None, None], adjugate_N22, g_N22)
    denominator_N = torch.where(full_rank_N, s_N * t_N, trace_N * t_N)
    scale_N = torch.where(denominator_N > 0, 1 / denominator_N, 0)
    return t_N, numerator_N22 * scale_N[:, None, None]


def _root_eigh(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    values_Nk, vectors_Nkk = torch.linalg.eigh(g_Nkk)
    cutoff_N1 = g_Nkk.shape[-1] * _RANK_TOLERANCE * values_Nk[:, -1:]
    nonzero_Nk = values_Nk > cutoff_N1
    # The root of the inverse root, so that one product of a matrix with its own transpose gives a result symmetric to the last bit.
    quarter_Nk = torch.where(nonzero_Nk, values_Nk, math.inf) ** -0.25
    half_Nkk = vectors_Nkk * quarter_Nk[:, None, :]
    return torch.where(nonzero_Nk, values_Nk, 0).sqrt().sum(-1), half_Nkk @ half_Nkk.mT


def gram_product(x_Nmn: Tensor) -> Tensor:
    """`gram` without autograd: A A^T when m <= n, else A^T A, in float64, converting a few matrices at a time."""
    n_matrices, m, n = x_Nmn.shape
    k = min(m, n)
    if x_Nmn.device.type != "cpu" or torch.compiler.is_compiling():
        x_Nmn = x_Nmn.double()
        return x_Nmn @ x_Nmn.mT if m <= n else x_Nmn.mT @ x_Nmn
    g_Nkk = x_Nmn.new_empty(n_matrices, k, k, dtype=torch.float64)
    chunk = max(1, _CHUNK // (m * n))
    buffer = x_Nmn.new_empty(min(chunk, n_matrices), m, n, dtype=torch.float64)
    for start in range(0, n_matrices, chunk):
        part = x_Nmn[start : start + chunk]
        wide = buffer[: len(part)].copy_(part)
        torch.bmm(*((wide, wide.mT) if m <= n else (wide.mT, wide)), out=g_Nkk[start : start + chunk])
    return g_Nkk


def multiply_into(out_Nmn: Tensor, a_Nkk: Tensor, x_Nmn: Tensor, g_Nkk: Tensor, *, accumulate: bool) -> None:
    """Write (or add, with `accumulate`) A X for wide X, X A for tall X, into `out_Nmn`; A symmetric float64, G the Gram matrices of X."""
    n_matrices, m, n = x_Nmn.shape
    dtype = _product_dtype(a_Nkk, x_Nmn, g_Nkk)
    a_Nkk = a_Nkk.to(dtype)
    chunk = n_matrices if x_Nmn.device.type != "cpu" else max(1, _CHUNK // (m * n))
    for start in range(0, n_matrices, chunk):
        part = slice(start, start + chunk)
        x, a, out = x_Nmn[part].to(dtype), a_Nkk[part], out_Nmn[part]
        left, right = (a, x) if m <= n else (x, a)
        if out.dtype != dtype:
            product = torch.bmm(left, right)
            out.add_(product) if accumulate else out.copy_(product)
        else:
            out.baddbmm_(left, right, beta=int(accumulate))


def _product_dtype(a_Nkk: Tensor, x_Nmn: Tensor, g_Nkk: Tensor) -> torch.dtype:
    """float32 when A X survives it, else float64.

    Rounding A and the sums to float32 leaves an error of about eps * ||A diag(row norms of X)||_F, while the result has the norm
    sqrt(tr(A G A)). Their ratio grows with the condition number of X; reading it costs a host synchronization, so only the CPU does.
    """
    if x_Nmn.device.type != "cpu" or x_Nmn.dtype == torch.float64 or torch.compiler.is_compiling():
        return torch.float64
    size_N = ((a_Nkk @ g_Nkk) * a_Nkk).sum((-2, -1))
    noise_N = (a_Nkk.square() * g_Nkk.diagonal(dim1=-2, dim2=-1)[:, None, :]).sum((-2, -1))
    noise = noise_N.sum().clamp(min=0).sqrt() * torch.finfo(torch.float32).eps
    return torch.float32 if bool(noise <= _SINGLE_PRECISION_NOISE * size_N.sum().clamp(min=0).sqrt()) else torch.float64


class _FirstOrderOnly(Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "The nuclear norm supports first derivatives only, and this differentiates its gradient. "
            "Call backward() or torch.autograd.grad() without create_graph=True, or detach the gradient."
        )


def first_order_only(gradient: Tensor, source: Tensor) -> Tensor:
    """`gradient` as it is, but differentiating it raises instead of treating it as a constant."""
    return _FirstOrderOnly.apply(gradient, source) if torch.is_grad_enabled() else gradient
