"""Effective rank of embeddings and features, from their singular values."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(x: Tensor, *, eps: float = 0.0) -> Tensor:
    """Effective rank of a matrix: exp of the entropy of its normalised singular values.

        p_k = sigma_k / sum_j sigma_j + eps        rank = exp(- sum_k p_k log p_k)

    1 means that all rows lie on one line; min(N, D) means that all directions carry the same weight. A zero matrix has
    rank 0. Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007. RankMe (Garrido et al. 2023, arXiv:2210.02885)
    is the same figure with eps = 1e-7.

    Args:
        x: (N, D), floating point, used as it is: neither centred nor scaled.
        eps: added to every share.

    Returns:
        A float64 scalar tensor in the host's memory.
    """
    x = x.double()
    # The smaller Gram matrix. Its rounding shows in singular values below 1e-8 of the largest, which weigh nothing.
    # Its eigenvalues are found on the host, where they take milliseconds; an accelerator would take many times that.
    gram = (x @ x.mT if len(x) <= x.shape[1] else x.mT @ x).cpu()
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    rank = torch.special.entr(singular / total + eps).sum().exp()
    return torch.where(total == 0, 0.0, rank)  # 0 / 0 is NaN
