"""Products with float64 Gram matrices: G = A A^T of a small side, and its way back, G' A.

Shape suffixes: N any batch, m and n the matrix, k = min(m, n) its smaller side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Elements converted to float64 at a time (8 MB). One small reused buffer: a whole float64 copy of A would cost more in
# page faults than the products do.
_CHUNK = 1 << 20
# Smaller blocks than this multiply too slowly for `symmetric_product` to gain.
_BLOCK = 48
# G' A runs in float32 while its rounding error is estimated to stay below this share of the result, in float64
# otherwise.
_SINGLE_PRECISION_NOISE = 1e-5
# Below this many elements float64 is as quick as finding out.
_SMALL = 1 << 14


def gram_product(x_Nmn: Tensor, rows_Nm: Tensor | None = None) -> Tensor:
    """Float64 Gram matrices of the smaller side, (N, k, k): A A^T when m <= n, else A^T A.

    Rows are multiplied by `rows_Nm` first.
    """
    n_matrices, m, n = x_Nmn.shape
    if x_Nmn.device.type != "cpu" or torch.compiler.is_compiling():
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
    if k < 4 * _BLOCK or a_Nkn.device.type != "cpu" or torch.compiler.is_compiling():
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
) -> None:
    """Write A X for wide X or X A for tall X to `out_Nmn`, or add it there, computing in `dtype`.

    A is float64, its columns multiplied by `columns_Nk` first.
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


def product_dtype(x: Tensor, squares: Tensor, noise_and_size: Callable[[], tuple[Tensor, Tensor]]) -> torch.dtype:
    """float32 when G' A survives it and it pays, else float64.

    Rounding G' and the sums to float32 leaves an error of about eps sqrt(noise), with noise = ||G' diag(row lengths
    of A)||_F^2, where the result has length sqrt(size). Their ratio grows with the condition number of A. `squares` are
    the squared row lengths of A: where they are extreme, entries of G' leave the range of float32. Reading all this
    would make an accelerator wait, so only the CPU does.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or x.numel() < _SMALL or torch.compiler.is_compiling():
        return torch.float64
    noise, size = noise_and_size()
    noise_allowed = (_SINGLE_PRECISION_NOISE / torch.finfo(torch.float32).eps) ** 2 * size
    moderate = ((squares > 1e-20) & (squares < 1e20)) | (squares == 0)
    return torch.float32 if bool((noise <= noise_allowed) & moderate.all()) else torch.float64


def _chunk(x_Nmn: Tensor) -> int:
    """How many matrices to take at a time: all where launching is what costs, few on the CPU."""
    if x_Nmn.device.type != "cpu" or torch.compiler.is_compiling():
        return max(1, len(x_Nmn))
    return max(1, _CHUNK // (x_Nmn.shape[1] * x_Nmn.shape[2]))
