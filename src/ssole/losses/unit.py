"""Nuclear norms of matrices whose rows are first scaled to unit length, by small Gram matrices, with exact gradients.

With rows z_i, s_i = 1 / |z_i|, u_i = s_i z_i, and A U the gradient of a norm with respect to U, the gradient with
respect to z is

    S (A U - diag(d) U),        d_i = u_i . (A U)_i

For wide matrices that is S (A - diag(d)) S z with d_i = (A C)_ii, where C = S G S and G is the Gram matrix of the raw
rows: then normalization touches k x k matrices only, and unit rows are never formed. A = C^(-1/2), or H^T (H C
H^T)^(-1/2) H when the norm is that of contrasts H U. For tall matrices A U = U (U^T U)^(-1/2).

`SSOLELoss` takes the norms of every view, (V, B, D), and of every image, (B, V, D), of one tensor; float32 on any
device, or float64 on accelerators. Without normalization s = 1 and d = 0.

Shape suffixes: N any batch, m rows, n columns; B images, V views, D embedding dimensions, C contrasts.
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


def unit_norms(x_Nmn: Tensor, *, normalize: bool, contrasts: Tensor | None = None, check: bool = False) -> Tensor:
    """Nuclear norms (N,), in float64, of `x_Nmn` with unit rows, after `contrasts` (C, m) when given, which needs m <=
    n.

    `check` raises as `check_rows` does.
    """
    if x_Nmn.shape[1] <= x_Nmn.shape[2]:
        return _Wide.apply(x_Nmn, contrasts, normalize, check)  # type: ignore[no-any-return]
    return _Tall.apply(x_Nmn, normalize, check)  # type: ignore[no-any-return]


def view_and_image_norms(
    z_BVD: Tensor, *, normalize: bool, contrasts: Tensor | None, check: bool
) -> tuple[Tensor, Tensor]:
    """`unit_norms` of every view (V,) and of every image (B,); needs B, V <= D.

    One function for both, so that their gradients meet in one tensor of the size of `z`.
    """
    return _ViewsAndImages.apply(z_BVD, contrasts, normalize, check)  # type: ignore[no-any-return]


class _ViewsAndImages(Function):
    @staticmethod
    def forward(
        ctx: Any, z_BVD: Tensor, contrasts: Tensor | None, normalize: bool, check: bool
    ) -> tuple[Tensor, Tensor]:
        images = _wide_forward(z_BVD, contrasts, normalize, check)
        views = _wide_forward(z_BVD.transpose(0, 1), None, normalize, check=False)
        ctx.dtypes = images.dtype, views.dtype
        ctx.save_for_backward(z_BVD, images.s, images.half, views.s, views.half)
        return views.norms, images.norms

    @staticmethod
    def backward(ctx: Any, grad_V: Tensor, grad_B: Tensor) -> tuple[Tensor, None, None, None]:
        z_BVD, s_BV, images_BVV, s_VB, views_VBB = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(z_BVD.device.type, enabled=False):
            out_BVD = torch.empty_like(z_BVD)
            columns_VB, columns_BV = s_VB * grad_V[:, None], s_BV * grad_B[:, None]
            out, x = out_BVD.transpose(0, 1), z_BVD.transpose(0, 1)
            multiply_into(out, views_VBB, x, columns_Nk=columns_VB, dtype=ctx.dtypes[1])
            multiply_into(out_BVD, images_BVV, z_BVD, columns_Nk=columns_BV, dtype=ctx.dtypes[0], accumulate=True)
        return first_order_only(out_BVD, grad_V, grad_B, z_BVD), None, None, None


class _Wide(Function):
    @staticmethod
    def forward(ctx: Any, x_Nmn: Tensor, contrasts: Tensor | None, normalize: bool, check: bool) -> Tensor:
        norms_N, s_Nm, half_Nmm, ctx.dtype = _wide_forward(x_Nmn, contrasts, normalize, check)
        ctx.save_for_backward(x_Nmn, s_Nm, half_Nmm)
        return norms_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None]:
        x_Nmn, s_Nm, half_Nmm = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(x_Nmn.device.type, enabled=False):
            out_Nmn = torch.empty_like(x_Nmn)
            multiply_into(out_Nmn, half_Nmm, x_Nmn, columns_Nk=s_Nm * grad_N[:, None], dtype=ctx.dtype)
        return first_order_only(out_Nmn, grad_N, x_Nmn), None, None, None


class _Half(NamedTuple):
    norms: Tensor
    """(N,)"""
    s: Tensor
    """(N, m)"""
    half: Tensor
    """(N, m, m): S (A - diag(d)), the gradient matrix but for the factor S on its right."""
    dtype: torch.dtype
    """For the product with z."""


def _wide_forward(x_Nmn: Tensor, contrasts: Tensor | None, normalize: bool, check: bool) -> _Half:
    c_Nmm = gram_product(x_Nmn)
    squares_Nm = c_Nmm.diagonal(dim1=1, dim2=2).clone()
    if check:
        check_rows(x_Nmn, squares_Nm, zero_is_error=normalize)
    s_Nm = squares_Nm.rsqrt() if normalize else torch.ones_like(squares_Nm)
    # In place, here and below: a pass over fresh memory of this size costs as much as the arithmetic.
    if normalize:
        c_Nmm.mul_(s_Nm[:, :, None]).mul_(s_Nm[:, None, :])
    if contrasts is None:
        rank = c_Nmm.shape[-1]
        norms_N, a_Nmm = inverse_root(c_Nmm)
    else:
        rank = len(contrasts)
        norms_N, w_NCC = inverse_root(contrasts @ c_Nmm @ contrasts.T)
        a_Nmm = contrasts.T @ w_NCC @ contrasts
    d_Nm = torch.zeros_like(s_Nm)
    if normalize:
        d_Nm = c_Nmm.mul_(a_Nmm).sum(-1)
        a_Nmm.diagonal(dim1=1, dim2=2).sub_(d_Nm)
        a_Nmm.mul_(s_Nm[:, :, None])

    def noise_and_size() -> tuple[Tensor, Tensor]:
        noise = (a_Nmm * (s_Nm * squares_Nm.sqrt())[:, None, :]).square().sum()
        mean_square = rank / c_Nmm.shape[-1]  # of the rows of A U
        return noise, ((mean_square - d_Nm.square()).clamp(min=0) * s_Nm.square()).sum()

    return _Half(norms_N, s_Nm, a_Nmm, product_dtype(x_Nmn, squares_Nm, noise_and_size))


class _Tall(Function):
    @staticmethod
    def forward(ctx: Any, x_Nmn: Tensor, normalize: bool, check: bool) -> Tensor:
        lengths_Nm = torch.linalg.vector_norm(x_Nmn, dim=-1, dtype=torch.float64)
        if check:
            check_rows(x_Nmn, lengths_Nm, zero_is_error=normalize)
        s_Nm = 1 / lengths_Nm if normalize else torch.ones_like(lengths_Nm)
        g_Nnn = gram_product(x_Nmn, rows_Nm=s_Nm if normalize else None)
        norms_N, w_Nnn = inverse_root(g_Nnn)

        def noise_and_size() -> tuple[Tensor, Tensor]:
            noise = (w_Nnn.square() * g_Nnn.diagonal(dim1=1, dim2=2)[:, None, :]).sum()
            # ||U W||_F^2 = n, less the sum of d^2, d being norm / m on average
            return noise, (x_Nmn.shape[2] - (norms_N.square() / x_Nmn.shape[1] if normalize else 0 * norms_N)).sum()

        ctx.dtype = product_dtype(x_Nmn, lengths_Nm.square(), noise_and_size)
        ctx.normalize = normalize
        ctx.save_for_backward(x_Nmn, s_Nm, w_Nnn)
        return norms_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        x_Nmn, s_Nm, w_Nnn = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(x_Nmn.device.type, enabled=False):
            s_Nm1, w_Nnn = s_Nm[..., None].to(ctx.dtype), w_Nnn.to(ctx.dtype)
            u_Nmn = x_Nmn * s_Nm1
            p_Nmn = u_Nmn @ w_Nnn
            if ctx.normalize:
                p_Nmn.addcmul_(u_Nmn, torch.linalg.vecdot(u_Nmn, p_Nmn)[..., None], value=-1)
            out_Nmn = p_Nmn.mul_(s_Nm1 * grad_N[:, None, None].to(ctx.dtype)).to(x_Nmn.dtype)
        return first_order_only(out_Nmn, grad_N, x_Nmn), None, None
