"""Retrieval: how high images of the same class stand when all others are ranked by their similarity to an image.

Every image is a query against all others, by cosine. Recall at k (Oh Song et al. 2016, arXiv:1511.06452) is the share
of queries with an image of their class among the first k. The average precision of a query is the mean of the precision
at the rank of each image of its class; mAP is the mean over queries.

Shape suffixes: Q queries, N images, R images of the query's class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels, exact_float32
from ssole.progress import progress_bar

QUERIES = 10_000
"""Largest number of queries; a random choice of that many where there are more images."""
_BLOCK = 2**24  # similarities that are ranked at once: 64 MiB, and 128 MiB for their indices


def retrieval_figures(
    features: Tensor, labels: Tensor, *, recall_at: Sequence[int] = (1, 5, 10), seed: int = 0, progress: bool = False
) -> tuple[dict[str, float], int]:
    """Figures {"retrieval_map", "recall1", ...}, and the number of queries.

    Features are (N, F), floating point and finite; labels are (N,) integers. Images that are alone in their class are
    no queries; with no others, it is a ValueError. Of equally similar images, the first in order ranks first. ``seed``
    decides the choice of queries.
    """
    check_features(features, "features")
    labels_N = check_labels(labels, len(features), None)[0].to(features.device)
    queries = (labels_N.bincount()[labels_N] > 1).nonzero()[:, 0]
    if not len(queries):
        raise ValueError(f"no two of the {len(labels_N)} images are of one class: there is nothing to find")
    if len(queries) > QUERIES:
        chosen = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:QUERIES]
        queries = queries[chosen.to(queries.device)]
    precisions, firsts = [], []
    with exact_float32(features.device), progress_bar("retrieval", len(queries), enabled=progress) as advance:
        unit_NF = F.normalize(features.float(), dim=1)
        for block in queries.split(max(1, _BLOCK // len(unit_NF))):
            similarity_QN = unit_NF[block] @ unit_NF.T
            similarity_QN[torch.arange(len(block), device=block.device), block] = -torch.inf  # ranks last
            order_QN = similarity_QN.argsort(dim=1, descending=True, stable=True)[:, :-1]
            same_QN = labels_N[order_QN] == labels_N[block][:, None]
            rank_N = torch.arange(1, same_QN.shape[1] + 1, device=block.device)
            precision_QN = same_QN.cumsum(1) / rank_N
            precisions.append((precision_QN * same_QN).sum(1, dtype=torch.float64) / same_QN.sum(1))
            firsts.append(same_QN.int().argmax(1))
            advance(len(block))
    first_Q = torch.cat(firsts)
    recalls = {f"recall{k}": float((first_Q < k).double().mean()) for k in recall_at}
    return {"retrieval_map": float(torch.cat(precisions).mean()), **recalls}, len(queries)
