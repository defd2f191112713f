"""kNN: weighted nearest-neighbour classification of frozen features.

The protocol of Wu et al. 2018 (arXiv:1805.01978, section 3.4), as used by DINO (Caron et al. 2021): the k training
images with the highest cosine similarity s vote for their class with weight exp(s / tau). The search is exact.

Shape suffixes: N training images, Q queries, K neighbours, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels, exact_float32
from ssole.progress import progress_bar

SIMILARITY_BYTES = 256 * 2**20
"""Largest block of the query x train similarity matrix."""


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int | Sequence[int] = (20, 10),
    tau: float = 0.07,
    num_classes: int | None = None,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Class scores of each query, for each number of neighbours in ``k``: {k: (Q, C) float32 on the features' device}.

        score_c = sum over neighbours of class c of exp(s / tau)  /  the same sum over all neighbours

    Rows sum to 1, and a class without neighbours has exactly 0. ``argmax(1)`` is the prediction; the lowest class wins
    a tie. The neighbours are searched once, for max(k). Equally similar training images are taken in order of their
    index, so the result does not depend on the search routine. Arguments that are not as below are a ValueError.

    Args:
        train_features: (N, F), floating point, finite; need not be normalised. A zero row has similarity 0 to all.
        train_labels: (N,) integers in [0, C).
        test_features: (Q, F), on the same device.
        k, tau: numbers of neighbours, or a single one, each in [1, N]; and the temperature, above 0.
        num_classes: C; by default the largest label + 1.
    """
    k = (k,) if isinstance(k, int) else k
    _check(train_features, test_features, k, tau)
    labels_N, classes = check_labels(train_labels, len(train_features), num_classes)
    similarity_QK, index_QK = nearest(train_features, test_features, max(k), progress=progress)
    votes_QK = labels_N.to(index_QK.device)[index_QK]
    # Every weight is divided by that of the nearest neighbour: the shares stay, and a small tau cannot overflow.
    weight_QK = torch.exp((similarity_QK - similarity_QK[:, :1]) / tau)
    scores_QC = torch.zeros(len(test_features), classes, device=index_QK.device)
    result = {}
    for j in range(max(k)):  # one neighbour at a time: the order of summation is fixed, and one pass serves every k
        scores_QC.scatter_add_(1, votes_QK[:, j : j + 1], weight_QK[:, j : j + 1])
        if j + 1 in k:
            result[j + 1] = scores_QC / scores_QC.sum(1, keepdim=True)
    return {one: result[one] for one in k}


def nearest(train_features: Tensor, test_features: Tensor, k: int, *, progress: bool = False) -> tuple[Tensor, Tensor]:
    """Nearest training rows of each query, best first: cosine similarities (Q, k) float32, and indices (Q, k) int64.

    Memory beyond the features and the result is bounded by a few times ``SIMILARITY_BYTES``.
    """
    similarities, indices = [], []
    with exact_float32(train_features.device), progress_bar("kNN", len(test_features), enabled=progress) as advance:
        train_NF = F.normalize(train_features.float(), dim=1)
        test_QF = F.normalize(test_features.float(), dim=1)
        rows = max(1, SIMILARITY_BYTES // (4 * len(train_NF)))
        for block_QF in torch.split(test_QF, rows):
            similarity_QN = block_QF @ train_NF.T
            index_QK = _top(similarity_QN, k)
            indices.append(index_QK)
            similarities.append(similarity_QN.gather(1, index_QK))
            advance(len(block_QF))
    return torch.cat(similarities), torch.cat(indices)


def nearest_others(features: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Nearest other rows of some rows of the features, best first: similarities and indices (Q, min(k, N - 1))."""
    k = min(k, len(features) - 1)
    similarity_QK, index_QK = nearest(features, features[rows], k + 1)
    is_self = index_QK == rows[:, None]
    # A row is missing among its own neighbours where k + 1 exact copies come first: then the last one goes.
    is_self[:, -1] |= ~is_self.any(1)
    return similarity_QK[~is_self].view(len(rows), k), index_QK[~is_self].view(len(rows), k)


def _top(similarity_QN: Tensor, k: int) -> Tensor:
    """Indices (Q, k) of the k largest values of each row, descending; among equals the lowest index first."""
    extra = min(k + 1, similarity_QN.shape[1])
    value_QK, index_QK = similarity_QN.topk(extra, dim=1)
    index_QK = index_QK[:, :k]
    if extra > k:
        # Of several values equal to the k-th, topk may take any. The (k + 1)-th value shows in which rows that matters.
        tied = (value_QK[:, k - 1] == value_QK[:, k]).nonzero()[:, 0]
        if len(tied):
            index_QK = index_QK.index_copy(0, tied, _first_at_the_edge(similarity_QN[tied], value_QK[tied, k - 1], k))
    index_QK = index_QK.sort(dim=1).values
    order = similarity_QN.gather(1, index_QK).sort(dim=1, descending=True, stable=True).indices
    return index_QK.gather(1, order)


def _first_at_the_edge(similarity_RN: Tensor, edge_R: Tensor, k: int) -> Tensor:
    """Indices (R, k), ascending, of all values above the edge value and of the first values equal to it."""
    above = similarity_RN > edge_R[:, None]
    equal = similarity_RN == edge_R[:, None]
    room_R1 = k - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1) <= room_R1))).nonzero()[:, 1].view(-1, k)


def _check(train_features: Tensor, test_features: Tensor, k: Sequence[int], tau: float) -> None:
    check_features(train_features, "train features")
    check_features(test_features, "test features")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train features have shape {tuple(train_features.shape)} and test features {tuple(test_features.shape)}; "
            "the last dimensions must be equal: use the same model for both"
        )
    if not tau > 0:
        raise ValueError(f"tau is {tau}; it must be above 0 (0.07 is the usual choice)")
    if not k or min(k) < 1 or max(k) > len(train_features):
        raise ValueError(
            f"k is {tuple(k)} and there are {len(train_features)} training images; each k must be between 1 and that "
            "number: pass a smaller k or more training images"
        )
