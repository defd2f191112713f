"""Searches among rows of unit length by cosine similarity: nearest rows, near duplicates, outliers, a coreset.

Rows may be mapped from a file that is larger than memory. For nearest rows and near duplicates, products in float32
find the candidates: all rows that rounding could have kept from the result. Float64 products of these decide, so the
result depends neither on the sizes of blocks nor on the order in which a library sums, and equal rows come in order of
their index.

Shape suffixes: N rows, Q queries, F features, K neighbours, B queries of a block, L rows that come later.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssole.errors import DataError
from ssole.evaluation.checks import exact_float32
from ssole.progress import progress_bar

Rows = NDArray[np.float32] | NDArray[np.float16]
"""(N, F) rows of unit length, in memory or mapped from a file."""
Group = tuple[NDArray[np.int64], NDArray[np.float64]]
"""An image and its near duplicates, by row, and their similarity to it, which is 1 for itself."""

NEAR_DUPLICATE = 0.98
"""Least cosine similarity of images that count as near duplicates, unless another is given."""
CROWD = 10
"""Number of neighbours over which the similarity of an image is averaged to find outliers."""
_SCORE_BYTES = 256 * 2**20  # largest block of products that is kept
_BLOCK = 2**22  # numbers that are converted at once: 16 MiB in float32


def unit_rows(features: Tensor) -> NDArray[np.float32]:
    """Features (N, F) as float32 rows of unit length; a row of zeros stays, and is similar to nothing."""
    rows: NDArray[np.float32] = F.normalize(features.float(), dim=1).numpy()
    return rows


def nearest_rows(
    rows_NF: Rows, queries_QF: Rows, k: int, *, leave_out: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Nearest rows of each query, best first: cosine similarities (Q, k) and indices (Q, k).

    Args:
        rows_NF: unit rows.
        queries_QF: unit rows; they may be the same.
        k: number of neighbours, at most N, or N - 1 with `leave_out`.
        leave_out: (Q,) a row that each query must not find, such as itself.

    Raises as :func:`scores`.
    """
    similarity = np.empty((len(queries_QF), k))
    index = np.empty((len(queries_QF), k), dtype=np.int64)
    for start, scores_BN in score_blocks(rows_NF, queries_QF):
        end = start + len(scores_BN)
        if leave_out is not None:
            scores_BN[torch.arange(len(scores_BN)), torch.from_numpy(leave_out[start:end])] = -torch.inf
        edges_B = scores_BN.topk(k, dim=1).values[:, -1] - rounding(rows_NF)
        for number in range(start, end):
            near = (scores_BN[number - start] >= edges_B[number - start]).nonzero()[:, 0].numpy()
            exact = exact_products(rows_NF, near, queries_QF[number])
            order = np.lexsort((near, -exact))[:k]
            similarity[number], index[number] = exact[order], near[order]
    return similarity, index


def near_duplicates(rows_NF: Rows, least: float = NEAR_DUPLICATE, *, progress: bool = False) -> list[Group]:
    """Groups of rows whose cosine similarity to the first of their group is at least `least`, in order of the first.

    The search is greedy: a row is a duplicate if it is that similar to an earlier row which is no duplicate itself. So
    no two of the rows that remain are that similar. The time grows with the square of N, the memory does not.
    """
    is_copy = np.zeros(len(rows_NF), dtype=bool)
    found: list[Group] = []
    with progress_bar("comparing images", len(rows_NF), enabled=progress) as advance:
        for start, scores_BL in score_blocks(rows_NF, rows_NF, later=True):
            for number, scores_L in enumerate(scores_BL.numpy()):
                if is_copy[row := start + number]:
                    continue
                own = exact_products(rows_NF, np.array([row]), rows_NF[row])[0]
                # equal rows may have a product below 1 by rounding; rows of zeros have no copies
                enough = min(least, own or least)
                later = row + 1 + np.flatnonzero(scores_L[number + 1 :] >= enough - rounding(rows_NF))
                later = later[~is_copy[later]]
                similarity = exact_products(rows_NF, later, rows_NF[row])
                copies, similarity = later[similarity >= enough], similarity[similarity >= enough]
                is_copy[copies] = True
                if len(copies):
                    found.append((np.concatenate([[row], copies]), np.concatenate([[1.0], similarity])))
            advance(len(scores_BL))
    return found


def outliers(rows_NF: Rows, count: int, *, progress: bool = False) -> Group:
    """Rows that are least similar to their ten nearest others, and that mean cosine similarity, lowest first."""
    if len(rows_NF) < 2:
        return np.empty(0, dtype=np.int64), np.empty(0)
    k, means = min(CROWD, len(rows_NF) - 1), []
    with progress_bar("comparing images", len(rows_NF), enabled=progress) as advance:
        for start, scores_BN in score_blocks(rows_NF, rows_NF):
            here = torch.arange(len(scores_BN))
            scores_BN[here, start + here] = -torch.inf  # an image is not its own neighbour
            means.append(scores_BN.topk(k, dim=1).values.double().mean(1).numpy())
            advance(len(scores_BN))
    mean_N = np.concatenate(means)
    chosen = mean_N.argsort(kind="stable")[:count]
    return chosen, mean_N[chosen]


def k_center(
    rows_NF: Rows, count: int, *, given: NDArray[np.int64] | None = None, progress: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Rows chosen one by one, each the least similar to those before: greedy k-center.

    The largest distance from a row to its nearest chosen one is at most twice that of the best choice of so many
    (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5; for labelling, Sener and Savarese 2018, arXiv:1708.00489). The
    first is the row most similar to the mean of all. Of equal rows, the first is taken. The time grows with count * N.

    Args:
        rows_NF: unit rows.
        count: number of rows to choose, at most N less those given.
        given: rows that are chosen already, such as the labelled ones.

    Returns:
        The chosen rows in their order; the cosine similarity of each to the nearest of those before it (NaN for the
        first of all); and the similarity of the worst represented row to its nearest chosen one.
    """
    nearest_N = np.full(len(rows_NF), -np.inf, dtype=np.float32)
    is_free = np.ones(len(rows_NF), dtype=bool)
    chosen = np.empty(count, dtype=np.int64)
    similarity = np.full(count, np.nan)
    if given is not None:
        is_free[given] = False
        for _, scores_BN in score_blocks(rows_NF, rows_NF[given]):
            np.maximum(nearest_N, scores_BN.amax(0).numpy(), out=nearest_N)
    with progress_bar("choosing images", count, enabled=progress) as advance:
        for number in range(count):
            if is_free.all():
                mean_F = np.asarray(rows_NF).mean(axis=0, dtype=np.float64).astype(np.float32)
                row = int(scores(rows_NF, mean_F[None])[0].argmax())
            else:
                row = int(np.where(is_free, nearest_N, np.inf).argmin())
                similarity[number] = nearest_N[row]
            chosen[number], is_free[row] = row, False
            np.maximum(nearest_N, scores(rows_NF, rows_NF[row : row + 1])[0].numpy(), out=nearest_N)
            advance()
    return chosen, similarity, float(nearest_N.min())


def score_blocks(rows_NF: Rows, queries_QF: Rows, *, later: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Float32 products (B, N) of some queries at a time with all rows, and the number of the first of these queries.

    With `later`, where queries are the rows, rows before that number are left out: the products are (B, N - number).
    """
    size = max(1, _SCORE_BYTES // (4 * len(rows_NF)))
    for start in range(0, len(queries_QF), size):
        yield start, scores(rows_NF[start if later else 0 :], queries_QF[start : start + size])


def scores(rows_NF: Rows, queries_QF: Rows) -> Tensor:
    """Float32 products (Q, N) of queries with all rows, which are read from their file where they are mapped.

    NaN or infinity among the rows or queries is a DataError.
    """
    queries = torch.from_numpy(np.asarray(queries_QF, dtype=np.float32))
    rows = torch.from_numpy(rows_NF)
    with exact_float32(rows.device):
        scores_QN = queries @ rows.T if rows.dtype == torch.float32 else _scores_of_half(rows, queries)
    if not torch.isfinite(scores_QN).all():
        bad = int((~torch.isfinite(scores_QN)).any(0).nonzero()[0, 0])
        raise DataError(f"the features hold NaN or infinity, or the query does; the first such row is {bad}")
    return scores_QN


def _scores_of_half(rows_NF: Tensor, queries_QF: Tensor) -> Tensor:
    """Float32 products of float16 rows, converted in one buffer: new memory for each block would be slower."""
    scores_QN = torch.empty(len(queries_QF), len(rows_NF))
    size = min(len(rows_NF), max(1, _BLOCK // rows_NF.shape[1]))
    buffer_BF = torch.empty(size, rows_NF.shape[1])
    for start in range(0, len(rows_NF), size):
        part_BF = rows_NF[start : start + size]
        block_BF = buffer_BF[: len(part_BF)].copy_(part_BF)
        scores_QN[:, start : start + size] = queries_QF @ block_BF.T
    return scores_QN


def rounding(rows_NF: Rows) -> float:
    """Largest difference that rounding can make between two float32 products of unit rows.

    A sum of F products, in any order, is off by at most F times the unit roundoff 2^-24, and two sums by twice that
    (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1). Lengths may be a little above 1.
    """
    return float(2.1 * rows_NF.shape[1] * 2.0**-24)


def exact_products(rows_NF: Rows, chosen: NDArray[np.int64], query_F: Rows) -> NDArray[np.float64]:
    """Float64 products of some rows with a query. Equal rows have equal products."""
    query = query_F.astype(np.float64)
    products = np.empty(len(chosen))
    size = max(1, _BLOCK // rows_NF.shape[1])
    for start in range(0, len(chosen), size):
        block = rows_NF[chosen[start : start + size]].astype(np.float64)
        products[start : start + size] = (block * query).sum(axis=1)  # a sum of its own for each row, unlike block @ q
    return products
