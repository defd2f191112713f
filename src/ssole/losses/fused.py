"""Both nuclear norms of SSOLE and their gradients in one pass over the embeddings: the usual case, float32 and B, V <= D.

With G the Gram matrix of raw rows z_i (of a view, or of an image), s_i = 1 / |z_i|, C = S G S that of unit rows u_i, and A the gradient
matrix of a norm, so that d norm / d u = A u (A = C^(-1/2) for a view, H^T (H C H^T)^(-1/2) H for the deviations of an image),

    d norm / d z = S (A - diag(d)) S z,        d_i = u_i . (A u)_i = (A C)_ii

So normalization and contrasts too only ever touch k x k matrices. z is read twice for the Gram matrices and twice for the gradient.

Shape suffixes: B images, V views, D embedding dimensions, N any batch, k rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ssole.losses.checks import check_rows
from ssole.losses.gram import gram_product, multiply_into, product_dtype
from ssole.losses.nuclear import first_order_only
from ssole.losses.roots import inverse_root


def view_and_image_norms(z_BVD: Tensor, contrasts: Tensor | None, *, normalize: bool, check: bool) -> tuple[Tensor, Tensor]:
    """Nuclear norms, in float64, of every view (V,) and of every image (B,), the latter after `contrasts` (C, V) when given.

    `z_BVD` is float32, or float64 on an accelerator, with B, V <= D. `check` raises as `check_rows` does.
    """
    return _Norms.apply(z_BVD, contrasts, normalize, check)  # type: ignore[no-any-return]


class _Norms(Function):
    @staticmethod
    def forward(ctx: Any, z_BVD: Tensor, contrasts: Tensor | None, normalize: bool, check: bool) -> tuple[Tensor, Tensor]:
        g_VBB, g_BVV = gram_product(z_BVD.transpose(0, 1)), gram_product(z_BVD)
        squares_VB = g_VBB.diagonal(dim1=1, dim2=2).clone()
        if check:
            check_rows(z_BVD, squares_VB.T, zero_is_error=normalize)
        s_VB = squares_VB.rsqrt() if normalize else torch.ones_like(squares_VB)
        views = _differentiate(g_VBB, s_VB, squares_VB, None, normalize)
        images = _differentiate(g_BVV, s_VB.T, squares_VB.T, contrasts, normalize)
        ctx.dtypes = [
            product_dtype(z_BVD, noise=half.noise, size=half.size, squares=squares_VB)
            for half in (views, images)
        ]
        ctx.save_for_backward(z_BVD, s_VB, views.half, images.half)
        return views.norms, images.norms

    @staticmethod
    def backward(ctx: Any, grad_V: Tensor, grad_B: Tensor) -> tuple[Tensor, None, None, None]:
        z_BVD, s_VB, views_VBB, images_BVV = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(z_BVD.device.type, enabled=False):
            out_BVD = torch.empty_like(z_BVD)
            columns_VB, columns_BV = s_VB * grad_V[:, None], s_VB.T * grad_B[:, None]
            by_view = z_BVD.transpose(0, 1)
            multiply_into(out_BVD.transpose(0, 1), views_VBB, by_view, columns_Nk=columns_VB, dtype=ctx.dtypes[0])
            multiply_into(out_BVD, images_BVV, z_BVD, columns_Nk=columns_BV, dtype=ctx.dtypes[1], accumulate=True)
        return first_order_only(out_BVD, grad_V, grad_B, z_BVD), None, None, None


class _Differentiated(NamedTuple):
    norms: Tensor
    """(N,)"""
    half: Tensor
    """(N, k, k): S (A - diag(d)); the gradient matrix but for the factor S on the right."""
    noise: Tensor
    size: Tensor
    """Scalars for `product_dtype`: how much rounding could add to the gradient, and how long it is. As sums of squares."""


def _differentiate(g_Nkk: Tensor, s_Nk: Tensor, squares_Nk: Tensor, contrasts: Tensor | None, normalize: bool) -> _Differentiated:
    """Norms and gradient matrices; overwrites `g_Nkk`, since every pass over fresh memory of this size costs as much as arithmetic."""
    if normalize:
        g_Nkk.mul_(s_Nk[:, :, None]).mul_(s_Nk[:, None, :])
    if contrasts is None:
        rank = g_Nkk.shape[-1]
        norms_N, a_Nkk = inverse_root(g_Nkk)
    else:
        rank = len(contrasts)
        norms_N, w_NCC = inverse_root(contrasts @ g_Nkk @ contrasts.T)
        a_Nkk = contrasts.T @ w_NCC @ contrasts
    size_Nk = torch.full_like(s_Nk, rank / g_Nkk.shape[-1])  # squared length of the rows of U V^T, on average
    if normalize:
        d_Nk = g_Nkk.mul_(a_Nkk).sum(-1)
        a_Nkk.diagonal(dim1=1, dim2=2).sub_(d_Nk)
        a_Nkk.mul_(s_Nk[:, :, None])
        size_Nk = (size_Nk - d_Nk.square()).clamp(min=0) * s_Nk.square()
    lengths_Nk = (squares_Nk * s_Nk.square()).sqrt()
    noise = a_Nkk.square().sum() if normalize else (a_Nkk * lengths_Nk[:, None, :]).square().sum()
    return _Differentiated(norms_N, a_Nkk, noise, size_Nk.sum())
