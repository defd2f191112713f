"""Inverse square roots of float64 Gram matrices: closed forms, eigendecomposition, and matrix products alone.

Shape suffixes: N any batch, k the size of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor

from ssole.losses.kernels import constant, similarity_kernel, symmetric_product

# A mode counts as zero when its eigenvalue in G is below k * RANK_TOLERANCE * (largest eigenvalue): rounding in a
# float64 Gram matrix alone lifts exact zeros to about k * 1e-16, so nothing smaller can be told from zero. In singular
# values: 3e-8 sqrt(k).
RANK_TOLERANCE = 4 * torch.finfo(torch.float64).eps

_ZERO = 1e-200  # least norm of a Gram matrix to divide by: its reciprocal and inverse root are finite
_EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_SPREAD = ((0.5**0.5, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, -(0.5**0.5)))
_INFINITY = ((math.inf,),)
_FARTHEST = (2 / 3) ** 0.5  # magnitude of an eigenvalue of a 3 x 3 matrix with trace 0 and Frobenius norm 1, at most
_LARGE = 128  # from this size on an eigendecomposition takes longer than starting a thread for it

# Coefficients (a, b, c) of the steps of `polar_root`. Each p(s) = a s + b s^3 + c s^5 is the odd quintic closest to 1
# on the interval to which the steps before it bring [1e-6, 1]; the last one ends within 1e-12 of 1. Smaller singular
# values do not matter: float64 Gram matrices hold none below 1e-8 of the largest. tests/losses/test_roots.py
# recomputes the table.
POLAR_STEPS = (
    (8.514258082455061, -25.281575954766762, 18.767309358053616),
    (4.257075196727444, -3.1601662884723885, 0.5864767658688971),
    (4.256827871287443, -3.1599952222165437, 0.5864572527839935),
    (4.255775367659347, -3.159267214384499, 0.5863742109078696),
    (4.251301905827406, -3.156172446623302, 0.5860212008399751),
    (4.232387470106397, -3.143078118361003, 0.5845276048318678),
    (4.154156380573669, -3.088757958065057, 0.578332235615464),
    (3.858359158839555, -2.880825305417297, 0.5546316341256833),
    (3.049598399511326, -2.284988803847999, 0.4870608274247126),
    (2.1120559374120123, -1.4938364726601678, 0.40010250263692665),
    (1.8783836569504426, -1.2537545015168519, 0.3753756481422353),
    (1.875, -1.25, 0.375),
    (1.875, -1.25, 0.375),
)


Root: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from Gram matrices G (N, k, k) to norms (N,) and the W (N, k, k) whose W A is their gradient; G = A A^T."""


def inverse_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """tr(G^(1/2)), (N,), and G^(-1/2) over the non-zero modes, (N, k, k), of float64 Gram matrices."""
    k = g_Nkk.shape[-1]
    if k == 1:
        root_N11 = g_Nkk.sqrt()
        return root_N11[:, 0, 0], torch.where(root_N11 > 0, 1 / root_N11, 0)
    if k == 2:
        return _root_2x2(g_Nkk)
    on_cpu = g_Nkk.device.type == "cpu"
    if k == 3 and not (on_cpu and torch.compiler.is_compiling()):  # torch 2.8 compiles it to code that writes too far
        return _root_3x3(g_Nkk)
    # eigh checks for errors on the host: on an accelerator that would wait for the device on every step.
    return _root_eigh(g_Nkk) if on_cpu else polar_root(g_Nkk)


def frobenius_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(tr G), (N,), and I / sqrt(tr G), (N, k, k): :func:`inverse_root` for the Frobenius norm.

    A trace below `k RANK_TOLERANCE` counts as zero: rounding leaves as much of the deviations of equal unit rows.
    """
    k = g_Nkk.shape[-1]
    squares_N = g_Nkk.diagonal(dim1=1, dim2=2).sum(-1)
    norms_N = torch.where(squares_N <= k * RANK_TOLERANCE, 0, squares_N).sqrt()  # NaN stays NaN
    inverse_N = torch.where(norms_N > 0, 1 / norms_N, 0)
    return norms_N, inverse_N[:, None, None] * torch.eye(k, dtype=g_Nkk.dtype, device=g_Nkk.device)


def kernel_root(c_Nkk: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """tr(K^(1/2)), (N,), the norm in the feature space of a kernel, and K^(-1/2) * k'(C), by entry, of cosines C.

    K is the kernel matrix of the cosines (:func:`ssole.losses.kernels.similarity_kernel`).
    """
    k_Nkk, slope_Nkk = similarity_kernel(c_Nkk, temperature)
    norms_N, w_Nkk = inverse_root(k_Nkk)
    return norms_N, w_Nkk.mul_(slope_Nkk)


def _root_2x2(g_N22: Tensor) -> tuple[Tensor, Tensor]:
    """`inverse_root` by Cayley-Hamilton: with s = sqrt(det G) and t = sqrt(tr G + 2 s), G^(1/2) = (G + s I) / t.

    Its inverse is (adj G + s I) / (s t).
    """
    a_N, b_N, c_N = g_N22[:, 0, 0], g_N22[:, 0, 1], g_N22[:, 1, 1]
    trace_N = a_N + c_N
    det_N = a_N * c_N - b_N * b_N
    full_rank_N = det_N > 2 * RANK_TOLERANCE * trace_N**2
    s_N = torch.where(full_rank_N, det_N, 0).sqrt()
    t_N = (trace_N + 2 * s_N).sqrt()
    adjugate_N22 = torch.stack([c_N + s_N, -b_N, -b_N, a_N + s_N], -1).reshape(-1, 2, 2)
    # Rank one: G = tr(G) u u^T, so its pseudo-inverse root is G / tr(G)^(3/2). Rank zero: 0.
    numerator_N22 = torch.where(full_rank_N[:, None, None], adjugate_N22, g_N22)
    denominator_N = t_N * torch.where(full_rank_N, s_N, trace_N)
    scale_N = torch.where(denominator_N > 0, 1 / denominator_N, 0)
    return t_N, numerator_N22 * scale_N[:, None, None]


def _root_3x3(g_N33: Tensor) -> tuple[Tensor, Tensor]:
    """`inverse_root` by one eigenvector in closed form, and Cayley-Hamilton on the plane that remains.

    That is G^(-1/2) = v v^T / sqrt(value) + ((t + s) P - R) / (s sqrt(t + 2 s)), with P = I - v v^T the plane,
    R = P G P, t = tr R and s the root of its determinant within the plane, as in `_root_2x2`. Here and in
    `_eigenvector_3x3` constant factors are arguments of other operations (alpha, value), which saves kernels.
    """
    eye_33, infinity_11 = constant(_EYE, g_N33.device), constant(_INFINITY, g_N33.device)
    mean_N11 = g_N33.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    value_N11, v_N13 = _eigenvector_3x3(g_N33, mean_N11)
    line_N33 = v_N13.mT * v_N13
    plane_N33 = eye_33 - line_N33
    rest_N33 = plane_N33 @ g_N33 @ plane_N33
    t_N11 = rest_N33.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None].clamp(min=0)
    zero_N11 = 9 * RANK_TOLERANCE * mean_N11
    length_N11 = torch.linalg.vector_norm(rest_N33, dim=(1, 2), keepdim=True)
    square_N11 = torch.addcmul(t_N11.square(), length_N11, length_N11, value=-1)  # 2 s^2
    full_rank_N11 = square_N11 > zero_N11 * t_N11
    s_N11 = (square_N11 * full_rank_N11).sqrt()  # sqrt(2) s; `root_N33` has the factor above and below
    # Rank one: R / t^(3/2), as there. Rank zero: 0.
    scale_N11 = torch.add(t_N11, s_N11, alpha=2**0.5).sqrt() * torch.where(full_rank_N11, s_N11, -(2**0.5) * t_N11)
    scale_N11 = torch.where(t_N11 > zero_N11, scale_N11, infinity_11)
    weight_N11 = torch.add(s_N11, t_N11, alpha=2**0.5) * full_rank_N11
    root_N33 = torch.sub(weight_N11 * plane_N33, rest_N33, alpha=2**0.5) / scale_N11
    root_N33 = torch.addcmul(root_N33, torch.where(value_N11 > zero_N11, value_N11, infinity_11).rsqrt(), line_N33)
    return (g_N33 * root_N33).sum((1, 2)), root_N33


def _eigenvector_3x3(g_N33: Tensor, mean_N11: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalue (N, 1, 1) apart from the two others, which may be equal, and its unit eigenvector (N, 1, 3).

    With q the mean of the eigenvalues and B = (G - q I) / p, of Frobenius norm 1, it is q + p m. Here m has the sign of
    det B and magnitude sqrt(2 / 3) cos(acos(sqrt(54) |det B|) / 3) (Smith, "Eigenvalues of a symmetric 3 x 3
    matrix", 1961). The adjugate of B - m I is a multiple of v v^T, at least 1, so that its largest row gives v to full
    precision.
    """
    eye_33, spread_33 = constant(_EYE, g_N33.device), constant(_SPREAD, g_N33.device)
    b_N33 = torch.addcmul(g_N33, mean_N11, eye_33, value=-1)
    p_N11 = torch.linalg.vector_norm(b_N33, dim=(1, 2), keepdim=True)
    # Where G is a multiple of I up to rounding, any direction will do.
    b_N33 = torch.where(p_N11 > 1e-14 * mean_N11, b_N33 / p_N11, spread_33)
    det_N11 = (b_N33[:, :1] * torch.linalg.cross(b_N33[:, 1:2], b_N33[:, 2:])).sum(-1, keepdim=True)
    cos_N11 = ((54**0.5 * det_N11.abs()).clamp(max=1).acos() / 3).cos().copysign(det_N11)
    below_N33 = torch.addcmul(b_N33, cos_N11, eye_33, value=-_FARTHEST)
    rows_N33 = torch.linalg.cross(below_N33.roll(-1, 1), below_N33.roll(-2, 1))
    largest_N13 = rows_N33.diagonal(dim1=1, dim2=2).argmax(-1)[:, None, None].expand(-1, 1, 3)
    v_N13 = rows_N33.gather(1, largest_N13)
    value_N11 = torch.addcmul(mean_N11, p_N11, cos_N11, value=_FARTHEST)
    return value_N11, v_N13 / torch.linalg.vector_norm(v_N13, dim=-1, keepdim=True)


def _root_eigh(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """`inverse_root` by eigendecomposition, with one thread for each of several large matrices.

    LAPACK itself gains little from threads. It waits for them a lot when other processes, such as the workers of a data
    loader, keep the cores busy.
    """
    if len(g_Nkk) < 2 or g_Nkk.shape[-1] < _LARGE or torch.compiler.is_compiling():
        return _root_eigh_in_this_thread(g_Nkk)
    threads = torch.get_num_threads()
    workers = min(threads, len(g_Nkk))
    root_Nkk = torch.empty_like(g_Nkk)
    is_inference = torch.is_inference_mode_enabled()  # a new thread is not in it

    def part(g_Nkk: Tensor, out_Nkk: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(is_inference):
            return _root_eigh_in_this_thread(g_Nkk, out_Nkk)

    try:
        # A new pool for each call: a kept one would not survive a fork, and threads start within 0.1 ms.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            parts = list(pool.map(part, g_Nkk.chunk(workers), root_Nkk.chunk(workers)))
    finally:
        torch.set_num_threads(threads)  # the workers' setting also applies to threads that start later
    return torch.cat([trace for trace, _ in parts]), root_Nkk


@torch.no_grad()  # a new thread records gradients, also where its parent does not
def _root_eigh_in_this_thread(g_Nkk: Tensor, out_Nkk: Tensor | None = None) -> tuple[Tensor, Tensor]:
    values_Nk, vectors_Nkk = torch.linalg.eigh(g_Nkk)
    # Negated, so that NaN stays NaN: a LAPACK may return it without an error, and it compares as False.
    nonzero_Nk = ~(values_Nk <= g_Nkk.shape[-1] * RANK_TOLERANCE * values_Nk[:, -1:])
    # Half the power on each side: the root is then one product of a matrix with its own transpose.
    half_Nkk = vectors_Nkk.mul_((torch.where(nonzero_Nk, values_Nk, math.inf) ** -0.25)[:, None, :])
    root_Nkk = symmetric_product(half_Nkk, out_Nkk)
    return torch.where(nonzero_Nk, values_Nk, 0).sqrt().sum(-1), root_Nkk


def polar_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """`inverse_root` by matrix products only: no host synchronization, and fast wherever matrix products are.

    The odd quintic p(s) = a s + b s^3 + c s^5 closest to 1 on [l, u] sends singular values in [l, u] to [1 - e, 1 + e].
    The next one is the closest to 1 on that interval, and so on. Such greedy compositions are optimal (Amsel, Persson,
    Musco and Gower, "The Polar Express", 2025). In terms of G, with Y -> G^(1/2) and Z -> G^(-1/2), one step is

        R = Z Y,     T = a I + b R + c R^2,     Y <- Y T,     Z <- T Z          (from Y = G, Z = I)

    This coupled order is the stable one (Higham, "Functions of Matrices", 2008, section 6.4).

    For all data, singular values down to 1e-6 of the bound on the largest one arrive at 1 within 1e-12. Smaller ones
    arrive at 8e6 s, a soft version of the cutoff of the minimum-norm subgradient. Rounding errors are amplified by up
    to the square of that slope: where G has null modes, G^(-1/2) A is off by about 1e-4, as it may be at condition
    number 1e6. The number of steps is fixed: the host could not end them earlier without waiting for a residual.
    """
    # The largest eigenvalue is at most the Frobenius norm. The clamp is for zero matrices, which stay zero.
    bound_N11 = torch.linalg.vector_norm(g_Nkk, dim=(-2, -1), keepdim=True).clamp_min(_ZERO)
    y_Nkk = g_Nkk / bound_N11
    a, b, c = POLAR_STEPS[0]  # here Z = I, so that R = Y
    # This is T - a I: the products below add a times their other factor.
    t_Nkk = torch.baddbmm(y_Nkk, y_Nkk, y_Nkk, beta=b, alpha=c)
    y_Nkk, z_Nkk = torch.baddbmm(y_Nkk, y_Nkk, t_Nkk, beta=a), t_Nkk
    z_Nkk.diagonal(dim1=-2, dim2=-1).add_(a)
    for a, b, c in POLAR_STEPS[1:-1]:
        r_Nkk = z_Nkk @ y_Nkk
        t_Nkk = torch.baddbmm(r_Nkk, r_Nkk, r_Nkk, beta=b, alpha=c)
        y_Nkk, z_Nkk = torch.baddbmm(y_Nkk, y_Nkk, t_Nkk, beta=a), torch.baddbmm(z_Nkk, t_Nkk, z_Nkk, beta=a)
    a, b, c = (coefficient / 2 for coefficient in POLAR_STEPS[-1])  # half of Z, to which its transpose is added
    r_Nkk = z_Nkk @ y_Nkk
    z_Nkk = torch.baddbmm(z_Nkk, torch.baddbmm(r_Nkk, r_Nkk, r_Nkk, beta=b, alpha=c), z_Nkk, beta=a)
    root_Nkk = (z_Nkk + z_Nkk.mT) * bound_N11.rsqrt()
    return (g_Nkk * root_Nkk).sum((-2, -1)), root_Nkk
