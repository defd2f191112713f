"""tr(G^(1/2)) and the pseudo-inverse root G^(-1/2) of float64 Gram matrices, by the route that suits them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ssole.losses.gram import symmetric_product
from ssole.losses.polar import polar_root

# A mode counts as zero when its eigenvalue in G is below k * RANK_TOLERANCE * (largest eigenvalue): rounding in a
# float64 Gram matrix alone lifts exact zeros to about k * 1e-16, so nothing smaller can be told from zero. In singular
# values: 3e-8 sqrt(k).
RANK_TOLERANCE = 4 * torch.finfo(torch.float64).eps

_LARGE = 128  # from this size on an eigendecomposition takes longer than starting a thread for it


def inverse_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """tr(G^(1/2)), (N,), and G^(-1/2) over the non-zero modes, (N, k, k)."""
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
    """By Cayley-Hamilton: with s = sqrt(det G) and t = sqrt(tr G + 2 s), G^(1/2) = (G + s I) / t.

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


def _root_eigh(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """By eigendecomposition, matrices side by side when large: LAPACK itself gains little from threads, and loses a lot
    of time waiting for them when other processes (the workers of a data loader, say) keep the cores busy."""
    if len(g_Nkk) < 2 or g_Nkk.shape[-1] < _LARGE or torch.compiler.is_compiling():
        return _root_eigh_here(g_Nkk)
    threads = torch.get_num_threads()
    workers = min(threads, len(g_Nkk))
    root_Nkk = torch.empty_like(g_Nkk)
    # A pool for each call: one kept would be a trap in forked processes, and threads start within 0.1 ms.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        parts = list(pool.map(_root_eigh_here, g_Nkk.chunk(workers), root_Nkk.chunk(workers)))
    torch.set_num_threads(threads)  # the workers' setting is also that of threads yet to come
    return torch.cat([trace for trace, _ in parts]), root_Nkk


@torch.no_grad()  # said here because a new thread records gradients whatever its parent does
def _root_eigh_here(g_Nkk: Tensor, out_Nkk: Tensor | None = None) -> tuple[Tensor, Tensor]:
    values_Nk, vectors_Nkk = torch.linalg.eigh(g_Nkk)
    nonzero_Nk = values_Nk > g_Nkk.shape[-1] * RANK_TOLERANCE * values_Nk[:, -1:]
    # Half the power on each side: one product of a matrix with its own transpose then gives a symmetric result.
    half_Nkk = vectors_Nkk.mul_((torch.where(nonzero_Nk, values_Nk, math.inf) ** -0.25)[:, None, :])
    root_Nkk = symmetric_product(half_Nkk, out_Nkk)
    return torch.where(nonzero_Nk, values_Nk, 0).sqrt().sum(-1), root_Nkk
