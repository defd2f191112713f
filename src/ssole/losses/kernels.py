"""Kernels of the losses: products with float64 Gram matrices.

Gram matrices are float64 also where A is float32, because forming G = A A^T squares the condition number of A.

Shape suffixes: N any batch, m and n the matrix, k = min(m, n) its smaller side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

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


def where_float64_is(x: Tensor) -> Tensor:
    """`x`; of one on an Apple GPU (MPS), which has neither float64 nor its eigenvalues, a copy on the CPU."""
    return x.cpu() if x.device.type == "mps" else x


def constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A float64 matrix of constants, which callers must not change. Cached: a GPU would wait for a copy."""
    return _matrix(rows, device) if torch.compiler.is_compiling() else _kept_matrix(rows, device)


def _matrix(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(device)


@lru_cache(maxsize=64)
def _kept_matrix(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first, the constants may serve in training later
        return _matrix(rows, device)


def helmert(like: Tensor) -> Tensor:
    """Helmert matrix H: orthonormal contrasts (V - 1, V) of the views of `like` (B, V, D), in float64.

    Row i - 1 sets views 0 to i - 1 against view i. All rows are orthogonal to the constant vector, so ||H Z||_* is the
    nuclear norm of the deviations from the mean, without their exact zero mode.
    """
    rows = []
    for i in range(1, like.shape[1]):
        length = math.sqrt(i * (i + 1))
        rows.append((*[1 / length] * i, -i / length, *[0.0] * (like.shape[1] - i - 1)))
    return constant(tuple(rows), like.device)


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
    """Kernel matrices of cosines at a temperature t, and their derivatives.

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
