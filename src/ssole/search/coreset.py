"""Coreset: a few images that represent all, chosen for labelling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssole.progress import progress_bar
from ssole.search.nearest import Rows, score_blocks, scores


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
        progress: show a bar when it takes more than two seconds.

    Returns:
        The chosen rows in their order; the cosine similarity of each to the nearest of those before it (NaN for the
        first of all); and the similarity of the worst represented row to its nearest chosen one.
    """
    nearest_N = np.full(len(rows_NF), -np.inf, dtype=np.float32)
    is_free = np.ones(len(rows_NF), dtype=bool)
    chosen = np.empty(count, dtype=np.int64)
    similarity = np.full(count, np.nan)

    def take(row: int) -> None:
        is_free[row] = False
        np.maximum(nearest_N, scores(rows_NF, rows_NF[row : row + 1])[0].numpy(), out=nearest_N)

    if given is not None:
        is_free[given] = False
        for _, scores_BN in score_blocks(rows_NF, rows_NF[given]):
            np.maximum(nearest_N, scores_BN.amax(0).numpy(), out=nearest_N)
    with progress_bar("choosing images", count, enabled=progress) as advance:
        for number in range(count):
            if is_free.all():
                row = _most_typical(rows_NF)
            else:
                row = int(np.where(is_free, nearest_N, np.inf).argmin())
                similarity[number] = nearest_N[row]
            chosen[number] = row
            take(row)
            advance()
    return chosen, similarity, float(nearest_N.min())


def _most_typical(rows_NF: Rows) -> int:
    """The row most similar to the mean of all."""
    mean_F = np.asarray(rows_NF).mean(axis=0, dtype=np.float64).astype(np.float32)
    return int(scores(rows_NF, mean_F[None])[0].argmax())
