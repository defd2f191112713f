"""Near duplicates and outliers: images that are too similar to others, and images that are similar to none."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssole.progress import progress_bar
from ssole.search.nearest import Rows, exact_products, rounding, score_blocks

NEAR_DUPLICATE = 0.98
"""Least cosine similarity of images that count as near duplicates, unless another is given."""
CROWD = 10
"""Neighbours whose mean similarity says how alone an image is."""

Group = tuple[NDArray[np.int64], NDArray[np.float64]]
"""An image and its near duplicates, by row, and their similarity to it, which is 1 for itself."""


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
                enough = min(least, own or least)  # rounding may leave a copy's product below 1; zeros have no copies
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
