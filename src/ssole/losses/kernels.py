"""Kernels of the losses: products with float64 Gram matrices, and inverse square roots of them.

Gram matrices are float64 also where A is float32, because forming G = A A^T squares the condition number of A.

Shape suffixes: N any batch, m and n the matrix, k = min(m, n) its smaller side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# Elements converted to float64 at a time (8 MB). One small reused buffer: a whole float64 copy of A would cost more in
# page faults than the products do.
_CHUNK = 1 << 20
# Blocks below this size multiply too slowly for `symmetric_product` to gain.
_BLOCK = 48
# Largest rounding error of a product in float32, as a share of the result. Above it the product runs in float64.
_SINGLE_PRECISION_NOISE = 1e-5
# Below this many elements float64 is as quick as estimating that error.
_SMALL = 1 << 14

# A mode counts as zero when its eigenvalue in G is below k * RANK_TOLERANCE * (largest eigenvalue): rounding in a
# float64 Gram matrix alone lifts exact zeros to about k * 1e-16, so nothing smaller can be told from zero. In singular
# values: 3e-8 sqrt(k).
RANK_TOLERANCE = 4 * torch.finfo(torch.float64).eps

_LARGE = 128  # from this size on an eigendecomposition takes longer than starting a thread for it

# Coefficients (a, b, c) of the steps of `polar_root`. Each p(s) = a s + b s^3 + c s^5 is the odd quintic closest to 1
# on the interval to which the steps before it bring [1e-6, 1]; the last one ends within 1e-12 of 1. Smaller singular
# values do not matter: float64 Gram matrices hold none below 1e-8 of the largest. tests/losses/test_kernels.py
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


# --- products


def gram_product(x_Nmn: Tensor, rows_Nm: Tensor | None = None) -> Tensor:
    """Float64 Gram matrices of the smaller side, (N, k, k): A A^T when m <= n, else A^T A.

    Rows are multiplied by `rows_Nm` first.
    """
    n_matrices, m, n = x_Nmn.shape
    if not _on_cpu(x_Nmn):
        x_Nmn = x_Nmn.double() if rows_Nm is None else x_Nmn * rows_Nm[..., None].double()
        return x_Nmn @ x_Nmn.mT if m <= n else x_Nmn.mT @ x_Nmn
    k, chunk = min(m, n), _chunk(x_Nmn)
    g_Nkk = x_Nmn.new_empty(n_matrices, k, k, dtype=torch.float64)
    buffer = x_Nmn.new_empty(min(chunk, n_matrices), m, n, dtype=torch.float64)
    for start in range(0, n_matrices, chunk):
        part = slice(start, start + chunk)
        x = buffer[: len(g_Nkk[part])].copy_(x_Nmn[part])
        if rows_Nm is not None:
            x.mul_(rows_Nm[part, :, None])
        symmetric_product(x if m <= n else x.mT, g_Nkk[part])
    return g_Nkk


def symmetric_product(a_Nkn: Tensor, out_Nkk: Tensor | None = None) -> Tensor:
    """A A^T. For large k only the blocks on and below the diagonal are multiplied, about 5/8 of the work."""
    k = a_Nkn.shape[1]
    if k < 4 * _BLOCK or not _on_cpu(a_Nkn):
        return torch.bmm(a_Nkn, a_Nkn.mT) if out_Nkk is None else torch.bmm(a_Nkn, a_Nkn.mT, out=out_Nkk)
    out_Nkk = a_Nkn.new_empty(len(a_Nkn), k, k) if out_Nkk is None else out_Nkk
    step = -(-k // 4)
    for a, out in zip(a_Nkn, out_Nkk, strict=True):
        for start in range(0, k, step):
            rows, done = slice(start, start + step), slice(0, min(start + step, k))
            torch.mm(a[rows], a[done].T, out=out[rows, done])
            out[:start, rows] = out[rows, :start].T
    return out_Nkk


def multiply_into(
    out_Nmn: Tensor,
    a_Nkk: Tensor,
    x_Nmn: Tensor,
    *,
    columns_Nk: Tensor | None = None,
    dtype: torch.dtype,
    accumulate: bool = False,
) -> Tensor:
    """`out_Nmn` after A X (wide X) or X A (tall X) is written to it, or added to it, computed in `dtype`.

    A is float64, and its columns are multiplied by `columns_Nk` first.
    """
    _, m, n = x_Nmn.shape
    chunk = _chunk(x_Nmn)
    for start in range(0, len(x_Nmn), chunk):
        part = slice(start, start + chunk)
        x, a, out = x_Nmn[part].to(dtype), a_Nkk[part], out_Nmn[part]
        a = (a if columns_Nk is None else a * columns_Nk[part, None, :]).to(dtype)
        left, right = (a, x) if m <= n else (x, a)
        if out.dtype == dtype:
            out.baddbmm_(left, right, beta=int(accumulate))
        elif accumulate:
            out.add_(torch.bmm(left, right))
        else:
            out.copy_(torch.bmm(left, right))
    return out_Nmn


def product_dtype(x: Tensor, squares: Tensor, noise_and_size: Callable[[], tuple[Tensor, Tensor]]) -> torch.dtype:
    """Precision of a gradient product W A: float32 where it is accurate enough and pays, else float64.

    Rounding W and the sums to float32 leaves an error of about eps sqrt(noise), with noise = ||W diag(row lengths
    of A)||_F^2, where the result has length sqrt(size). Their ratio grows with the condition number of A. `squares` are
    the squared row lengths of A: where they are extreme, entries of W leave the range of float32. Reading these values
    would make an accelerator wait, so only the CPU does.
    """
    if x.dtype == torch.float64 or x.numel() < _SMALL or not _on_cpu(x):
        return torch.float64
    noise, size = noise_and_size()
    noise_allowed = (_SINGLE_PRECISION_NOISE / torch.finfo(torch.float32).eps) ** 2 * size
    moderate = ((squares > 1e-20) & (squares < 1e20)) | (squares == 0)
    return torch.float32 if bool((noise <= noise_allowed) & moderate.all()) else torch.float64


def _on_cpu(x: Tensor) -> bool:
    """Whether to work in parts and in place. torch.compile plans memory itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _chunk(x_Nmn: Tensor) -> int:
    """Number of matrices to take at a time: few on the CPU, all elsewhere, where each launch costs time."""
    matrices = _CHUNK // (x_Nmn.shape[1] * x_Nmn.shape[2]) if _on_cpu(x_Nmn) else len(x_Nmn)
    return max(1, matrices)


def similarity_kernel(c_Nkk: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Kernel matrices of cosines, and their derivatives: with t the temperature,

        k(c) = (exp(c / t) - 1) / (exp(1 / t) - 1)

    The power series of k has positive coefficients, so these are Gram matrices of unit vectors, in infinitely many
    dimensions. For t to infinity, k(c) = c. The diagonal of `c_Nkk` is taken to be exactly 1, or 0 for zero rows.
    """
    # Divided by exp(1 / t), which may overflow, and by expm1, which keeps the digits that a large t would cancel.
    scale = -math.expm1(-1 / temperature)
    weight_Nkk = ((c_Nkk - 1) / temperature).exp()
    k_Nkk = (c_Nkk / -temperature).clamp(max=700).expm1().mul_(weight_Nkk).div_(-scale)
    k_Nkk.diagonal(dim1=1, dim2=2).copy_(c_Nkk.diagonal(dim1=1, dim2=2).round())
    return k_Nkk, weight_Nkk.div_(temperature * scale)


# --- inverse square roots


def inverse_root(g_Nkk: Tensor) -> tuple[Tensor, Tensor]:
    """tr(G^(1/2)), (N,), and G^(-1/2) over the non-zero modes, (N, k, k), of float64 Gram matrices."""
    k = g_Nkk.shape[-1]
    if k == 1:
        root_N11 = g_Nkk.sqrt()
        return root_N11[:, 0, 0], torch.where(root_N11 > 0, 1 / root_N11, 0)
    if k == 2:
        return _root_2x2(g_Nkk)
    # eigh checks for errors on the host: on an accelerator that would wait for the device on every step.
    return _root_eigh(g_Nkk) if g_Nkk.device.type == "cpu" else polar_root(g_Nkk)


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
    # A new pool for each call: a kept one would not survive a fork, and threads start within 0.1 ms.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        parts = list(pool.map(_root_eigh_in_this_thread, g_Nkk.chunk(workers), root_Nkk.chunk(workers)))
    torch.set_num_threads(threads)  # the workers' setting also applies to threads that start later
    return torch.cat([trace for trace, _ in parts]), root_Nkk


@torch.no_grad()  # a new thread records gradients, also where its parent does not
def _root_eigh_in_this_thread(g_Nkk: Tensor, out_Nkk: Tensor | None = None) -> tuple[Tensor, Tensor]:
    values_Nk, vectors_Nkk = torch.linalg.eigh(g_Nkk)
    nonzero_Nk = values_Nk > g_Nkk.shape[-1] * RANK_TOLERANCE * values_Nk[:, -1:]
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
    arrive at 8e6 s, a soft version of the cutoff of the minimum-norm subgradient. Rounding errors are amplified by no
    more than that slope, to 1e-9 in G^(-1/2) A.
    """
    # The largest eigenvalue is at most each of these norms. Zero matrices stay zero with any bound.
    row_sums_N = g_Nkk.abs().sum(-1).amax(-1)
    frobenius_N = torch.linalg.vector_norm(g_Nkk, dim=(-2, -1))
    bound_N11 = torch.minimum(row_sums_N, frobenius_N)[:, None, None]
    bound_N11 = torch.where(bound_N11 > 0, bound_N11, 1)
    y_Nkk = g_Nkk / bound_N11
    z_Nkk = torch.eye(g_Nkk.shape[-1], dtype=g_Nkk.dtype, device=g_Nkk.device).expand_as(g_Nkk)
    for a, b, c in POLAR_STEPS:
        r_Nkk = z_Nkk @ y_Nkk
        # This is T - a I: the products below add a times their other factor.
        t_Nkk = torch.baddbmm(r_Nkk, r_Nkk, r_Nkk, beta=b, alpha=c)
        y_Nkk, z_Nkk = torch.baddbmm(y_Nkk, y_Nkk, t_Nkk, beta=a), torch.baddbmm(z_Nkk, t_Nkk, z_Nkk, beta=a)
    root_N11 = bound_N11.sqrt()
    trace_N = y_Nkk.diagonal(dim1=-2, dim2=-1).sum(-1) * root_N11[:, 0, 0]
    return trace_N, (z_Nkk + z_Nkk.mT) / (2 * root_N11)
