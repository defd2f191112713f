"""The Barlow Twins loss: the cross-correlation matrix of two views becomes the identity.

Shape suffixes: B images, V views, P pairs of views, D embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssole.losses.base import EmbeddingLoss, check_number

# Added to variances, as in the batch normalisation of the published code: the gradient stays finite where a dimension
# is the same for all images.
_EPS = 1e-5


class BarlowTwinsTerms(NamedTuple):
    """Terms of the Barlow Twins loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: invariance + redundancy_weight * redundancy."""
    invariance: Tensor
    """Sum over dimensions of (1 - correlation of two views)^2: 0 when views agree, D at full collapse."""
    redundancy: Tensor
    """Sum of squared correlations of different dimensions of two views."""


class BarlowTwinsLoss(EmbeddingLoss[BarlowTwinsTerms]):
    r"""Barlow Twins loss, a mean over all pairs of views.

    It is the mean of

        sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2

    C is the (D, D) cross-correlation matrix of the two views, whose dimensions have mean 0 and variance 1 over the
    batch. Source: Zbontar, Jing, Misra, LeCun and Deny, "Barlow Twins: Self-Supervised Learning via Redundancy
    Reduction" (ICML 2021), equations 1 and 2.

    Args:
        redundancy_weight: weight of the redundancy term, finite and at least 0.
        check_input: whether to look for NaN and infinity, for which an accelerator must wait.
    """

    def __init__(self, *, redundancy_weight: float = 5e-3, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.redundancy_weight = check_number("redundancy_weight", redundancy_weight)

    def _terms(self, z_BVD: Tensor) -> BarlowTwinsTerms:
        images, views, dims = z_BVD.shape
        z_VBD = z_BVD.transpose(0, 1)
        z_VBD = z_VBD - z_VBD.mean(1, keepdim=True)
        z_VBD = z_VBD * (z_VBD.square().mean(1, keepdim=True) + _EPS).rsqrt()
        pairs = [(v, w) for v in range(views) for w in range(v + 1, views)]
        diagonal_PD = torch.stack([(z_VBD[v] * z_VBD[w]).mean(0) for v, w in pairs])
        if images <= dims:
            # ||A^T B||_F^2 = <A A^T, B B^T>, whose products are B / D times as large.
            grams_VN = (z_VBD @ z_VBD.mT).flatten(1)
            squares = (grams_VN @ grams_VN.T).triu(1).sum()
        else:
            squares = torch.stack([(z_VBD[v].mT @ z_VBD[w]).square().sum() for v, w in pairs]).sum()
        invariance = (1 - diagonal_PD).square().sum() / len(pairs)
        redundancy = (squares / images**2 - diagonal_PD.square().sum()) / len(pairs)
        return BarlowTwinsTerms(invariance + self.redundancy_weight * redundancy, invariance, redundancy)
