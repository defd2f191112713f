"""A number that tells, without labels, whether the embeddings are alive."""

from __future__ import annotations

import torch


@torch.no_grad()
def effective_rank(embeddings: torch.Tensor) -> torch.Tensor:
    """Effective rank of a batch: the exponential of the entropy of its normalised singular values.

    1 means collapse to one direction; min(B, D) means evenly spread. Source: Roy and Vetterli, "The effective rank",
    EUSIPCO 2007.

    Args:
        embeddings: (B, D); rows are scaled to unit length first.

    Returns:
        A float64 scalar tensor.
    """
    x = torch.nn.functional.normalize(embeddings.detach().to(torch.float64), dim=-1)
    gram = x @ x.mT if len(x) <= x.shape[1] else x.mT @ x
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum()
    return torch.exp(torch.special.entr(p).sum())
