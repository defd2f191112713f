"""Nuclear norms with exact minimum-norm subgradients, by one autograd function.

With A of shape (m, n), k = min(m, n) and G the k x k Gram matrix of its smaller side,

    ||A||_* = tr(G^(1/2))            d||A||_* / dA = G^(-1/2) A = U V^T            (A G^(-1/2) for tall A)

G^(-1/2) is the pseudo-inverse root, so U V^T runs over the non-zero modes only: the subgradient of minimum norm (Watson
1992, "Characterization of the subdifferential of some matrix norms"). No gradient passes through singular vectors.

G squares the condition number kappa of A, so it is formed and factored in float64 even when A is float32. The error of
the gradient is then about 1e-16 kappa^2, which reaches 1e-4 only at kappa = 1e6, or on accelerators where A lacks rank.
(With G in float32 that happens at kappa = 40.) For float64 input on the CPU the norm comes from an SVD of A itself,
which squares nothing.

`_NuclearNorms` is the autograd function. It follows a route (`device` has those of accelerators) with two methods:

    norms(x)                            the norms, the tensors to save, and the dtype of the gradient's products
    gradient(dtype, x, *saved, *grads)  the gradient with respect to x

Shape suffixes: N any batch, m and n the matrix, k = min(m, n); B images, V views, D dimensions, C = V - 1 contrasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from ssole.losses import device
from ssole.losses.kernels import gram_product, multiply_into, product_dtype, where_float64_is
from ssole.losses.roots import RANK_TOLERANCE, Root, inverse_root


def nuclear_norm(x: Tensor) -> Tensor:
    """Sum of the singular values of each matrix in `x`, with the exact minimum-norm subgradient.

    Args:
        x: (..., m, n), float16, bfloat16, float32 or float64, finite, no dimension empty.

    Returns:
        (...,) in float32 for half-precision and float32 input, in float64 for float64.

    The gradient with respect to `x` is U V^T over the non-zero singular values, in the dtype of `x`. Relative to the
    largest, zero means below 3e-8 sqrt(k) on the CPU (for float64: max(m, n) * eps), and fades out below 1e-6 on
    accelerators. Autocast does not apply inside. Of `x` on an Apple GPU (MPS), the CPU computes it.

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
    home, x = x.device, where_float64_is(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    route = _Svd() if dtype == torch.float64 and x.device.type == "cpu" else _Gram()
    with torch.autocast(x.device.type, enabled=False):
        value_N: Tensor = _NuclearNorms.apply(x.reshape(-1, *x.shape[-2:]).to(dtype), route)
    return value_N.to(dtype).reshape(x.shape[:-2]).to(home)


def all_modes_norm(x_Nmn: Tensor) -> Tensor:
    """Nuclear norm with the gradient of the published code, U V^T over all k modes: FOR ABLATIONS ONLY."""
    return _NuclearNorms.apply(x_Nmn, _Svd(keep_null_modes=True))  # type: ignore[no-any-return]


def unit_norms(x_Nmn: Tensor, contrasts: Tensor | None = None, *, normalize: bool, root: Root = inverse_root) -> Tensor:
    """Nuclear norms (N,), in float64, of `x_Nmn` with rows scaled to unit length, by Gram matrices.

    `normalize=False` leaves rows as they are. `contrasts` (C, m) are multiplied from the left after scaling. They and
    another `root` than that of the nuclear norm need m <= n. The root is of the Gram matrices of the scaled rows, or of
    their contrasts.
    """
    wide = _Wide if x_Nmn.device.type == "cpu" else device.Wide
    route = wide(normalize, contrasts, root) if x_Nmn.shape[1] <= x_Nmn.shape[2] else _Tall(normalize)
    return _NuclearNorms.apply(x_Nmn, route)  # type: ignore[no-any-return]


def image_and_view_norms(
    z_BVD: Tensor, contrasts: Tensor | None, *, normalize: bool, root: Root, view_root: Root
) -> tuple[Tensor, Tensor]:
    """Norms of every image (B,) and of every view (V,), as of `unit_norms`; B, V <= D.

    Contrasts and root are of images, view_root is of views.

    One call for both, so that their gradients add up in one tensor of the size of `z`.
    """
    route: _Route
    if z_BVD.device.type == "cpu":
        images = _Wide(normalize, contrasts, root)
        route = _ImagesAndViews(images, _Wide(normalize, root=view_root))
    else:
        route = device.ImagesAndViews(device.Wide(normalize, contrasts, root), view_root)
    return _NuclearNorms.apply(z_BVD, route)  # type: ignore[no-any-return]


class _NuclearNorms(Function):
    """The autograd function of this package: nuclear norms by a route, and their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: _Route) -> Tensor | tuple[Tensor, ...]:
        norms, saved, ctx.dtype = route.norms(x)
        ctx.route = route
        ctx.save_for_backward(x, *saved)
        return norms

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, *saved = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            gradient = ctx.route.gradient(ctx.dtype, x, *saved, *grads)
        if torch.is_grad_enabled():  # with create_graph=True
            gradient = _FirstOrderOnly.apply(gradient, *grads, x)
        return gradient, None


class _FirstOrderOnly(Function):
    """Guard against second derivatives: differentiating `gradient` raises instead of taking it for a constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "The nuclear norm supports first derivatives only, and this differentiates its gradient. "
            "Call backward() or torch.autograd.grad() without create_graph=True, or detach the gradient."
        )


@dataclass(frozen=True)
class _Svd:
    """Route by an SVD of A itself."""

    keep_null_modes: bool = False

    def norms(self, x_Nmn: Tensor) -> tuple[Tensor, tuple[Tensor], None]:
        u_Nmk, s_Nk, vh_Nkn = torch.linalg.svd(x_Nmn, full_matrices=False)
        if not self.keep_null_modes:
            # The usual numerical rank (as in LAPACK, NumPy and torch.linalg.matrix_rank).
            cutoff_N1 = s_Nk[:, :1] * max(x_Nmn.shape[-2:]) * torch.finfo(s_Nk.dtype).eps
            u_Nmk = u_Nmk * (s_Nk > cutoff_N1)[:, None, :]
        return s_Nk.sum(-1), (u_Nmk @ vh_Nkn,), None

    def gradient(self, _: None, x_Nmn: Tensor, polar_Nmn: Tensor, grad_N: Tensor) -> Tensor:
        return grad_N[:, None, None] * polar_Nmn


@dataclass(frozen=True)
class _Gram:
    """Route by the Gram matrix G and its inverse root W: the gradient is W A, or A W for tall A."""

    def norms(self, x_Nmn: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], None]:
        g_Nkk = gram_product(x_Nmn)
        norms_N, w_Nkk = inverse_root(g_Nkk)
        return norms_N, (g_Nkk, w_Nkk), None

    def gradient(self, _: None, x_Nmn: Tensor, g_Nkk: Tensor, w_Nkk: Tensor, grad_N: Tensor) -> Tensor:
        half_Nkk = grad_N[:, None, None] * w_Nkk / 2
        a_Nkk = half_Nkk + half_Nkk.mT  # W is symmetric only up to rounding
        squares_Nk = g_Nkk.diagonal(dim1=1, dim2=2)

        def noise_and_size() -> tuple[Tensor, Tensor]:
            return (a_Nkk.square() * squares_Nk[:, None, :]).sum(), ((a_Nkk @ g_Nkk) * a_Nkk).sum()

        dtype = product_dtype(x_Nmn, squares_Nk, noise_and_size)
        return multiply_into(torch.empty_like(x_Nmn), a_Nkk, x_Nmn, dtype=dtype)


@dataclass(frozen=True)
class _Wide:
    """Route for wide matrices with unit rows, which are never formed: normalization touches k x k matrices only.

    With rows z_i, s_i = 1 / |z_i|, and G and C = S G S the Gram matrices of raw and unit rows, the gradient is

        S (A - diag(d)) S z,        d_i = (A C)_ii

    with A = C^(-1/2), or H^T (H C H^T)^(-1/2) H for contrasts H, or what another root gives in place of the power
    -1/2. Without normalization s = 1 and d = 0.
    """

    normalize: bool
    contrasts: Tensor | None = None
    root: Root = inverse_root

    def norms(self, x_Nmn: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], torch.dtype]:
        c_Nmm = gram_product(x_Nmn)
        squares_Nm = c_Nmm.diagonal(dim1=1, dim2=2).clone()
        s_Nm = squares_Nm.rsqrt() if self.normalize else torch.ones_like(squares_Nm)
        # In place here and below: a pass over fresh memory of this size costs as much as the arithmetic.
        if self.normalize:
            c_Nmm.mul_(s_Nm[:, :, None]).mul_(s_Nm[:, None, :])
        if self.contrasts is None:
            norms_N, a_Nmm = self.root(c_Nmm)
        else:
            g_NCC = self.contrasts @ c_Nmm @ self.contrasts.T
            # Rounding leaves so much where all rows are equal, in directions of no meaning. NaN stays NaN.
            rounding_N = x_Nmn.shape[1] * RANK_TOLERANCE * c_Nmm.diagonal(dim1=1, dim2=2).sum(-1)
            g_NCC.mul_((g_NCC.diagonal(dim1=1, dim2=2).sum(-1) > rounding_N)[:, None, None])
            norms_N, w_NCC = self.root(g_NCC)
            a_Nmm = self.contrasts.T @ w_NCC @ self.contrasts
        unit_Nmm = None if self.root is inverse_root else c_Nmm.clone()
        d_Nm = torch.zeros_like(s_Nm)
        if self.normalize:
            d_Nm = c_Nmm.mul_(a_Nmm).sum(-1)
            a_Nmm.diagonal(dim1=1, dim2=2).sub_(d_Nm)
            a_Nmm.mul_(s_Nm[:, :, None])

        def noise_and_size() -> tuple[Tensor, Tensor]:
            noise = (a_Nmm * (s_Nm * squares_Nm.sqrt())[:, None, :]).square().sum()
            if unit_Nmm is not None:
                return noise, ((a_Nmm @ unit_Nmm) * a_Nmm).sum()
            rank = c_Nmm.shape[-1] if self.contrasts is None else len(self.contrasts)
            mean_square = rank / c_Nmm.shape[-1]  # of the rows of A U
            return noise, ((mean_square - d_Nm.square()).clamp(min=0) * s_Nm.square()).sum()

        return norms_N, (s_Nm, a_Nmm), product_dtype(x_Nmn, squares_Nm, noise_and_size)

    def gradient(self, dtype: torch.dtype, x_Nmn: Tensor, s_Nm: Tensor, left_Nmm: Tensor, grad_N: Tensor) -> Tensor:
        columns_Nm = s_Nm * grad_N[:, None]
        return multiply_into(torch.empty_like(x_Nmn), left_Nmm, x_Nmn, columns_Nk=columns_Nm, dtype=dtype)


@dataclass(frozen=True)
class _ImagesAndViews:
    """Two routes at once, for the images of `z` (B, V, D) and for its views."""

    images: _Wide
    views: _Wide

    def norms(self, z_BVD: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], tuple[torch.dtype, torch.dtype]]:
        n_B, images, images_dtype = self.images.norms(z_BVD)
        r_V, views, views_dtype = self.views.norms(z_BVD.transpose(0, 1))
        return (n_B, r_V), (*images, *views), (images_dtype, views_dtype)

    def gradient(self, dtypes: tuple[torch.dtype, torch.dtype], z_BVD: Tensor, *saved_and_grads: Tensor) -> Tensor:
        s_BV, images_BVV, s_VB, views_VBB, grad_B, grad_V = saved_and_grads
        out_BVD = torch.empty_like(z_BVD)
        out, z = out_BVD.transpose(0, 1), z_BVD.transpose(0, 1)
        multiply_into(out, views_VBB, z, columns_Nk=s_VB * grad_V[:, None], dtype=dtypes[1])
        columns_BV = s_BV * grad_B[:, None]
        return multiply_into(out_BVD, images_BVV, z_BVD, columns_Nk=columns_BV, dtype=dtypes[0], accumulate=True)


@dataclass(frozen=True)
class _Tall:
    """Route for tall matrices with unit rows u_i = s_i z_i, s_i = 1 / |z_i|.

    With W = (U^T U)^(-1/2), and with s = 1 and d = 0 without normalization, the gradient with respect to z is

        S (U W - diag(d) U),        d_i = u_i . (U W)_i
    """

    normalize: bool

    def norms(self, x_Nmn: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], torch.dtype]:
        lengths_Nm = torch.linalg.vector_norm(x_Nmn, dim=-1, dtype=torch.float64)
        s_Nm = 1 / lengths_Nm if self.normalize else torch.ones_like(lengths_Nm)
        g_Nnn = gram_product(x_Nmn, rows_Nm=s_Nm if self.normalize else None)
        norms_N, w_Nnn = inverse_root(g_Nnn)

        def noise_and_size() -> tuple[Tensor, Tensor]:
            noise = (w_Nnn.square() * g_Nnn.diagonal(dim1=1, dim2=2)[:, None, :]).sum()
            # ||U W||_F^2 = n, less the sum of d^2, where d is norm / m on average.
            lost_N = norms_N.square() / x_Nmn.shape[1] if self.normalize else 0 * norms_N
            return noise, (x_Nmn.shape[2] - lost_N).sum()

        return norms_N, (s_Nm, w_Nnn), product_dtype(x_Nmn, lengths_Nm.square(), noise_and_size)

    def gradient(self, dtype: torch.dtype, x_Nmn: Tensor, s_Nm: Tensor, w_Nnn: Tensor, grad_N: Tensor) -> Tensor:
        s_Nm1 = s_Nm[..., None].to(dtype)
        u_Nmn = x_Nmn * s_Nm1
        p_Nmn = u_Nmn @ w_Nnn.to(dtype)
        if self.normalize:
            p_Nmn.addcmul_(u_Nmn, torch.linalg.vecdot(u_Nmn, p_Nmn)[..., None], value=-1)
        return p_Nmn.mul_(s_Nm1 * grad_N[:, None, None].to(dtype)).to(x_Nmn.dtype)


_Route: TypeAlias = _Svd | _Gram | _Wide | _Tall | _ImagesAndViews | device.Wide | device.ImagesAndViews
