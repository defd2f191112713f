"""The FroSSL loss: Frobenius norms spread the spectrum of each view, and views agree with their mean.

Shape suffixes: B images, V views, D embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssole.losses.base import EmbeddingLoss, check_number, frobenius_squares

# Shortest column that is scaled to unit length, as published: a dimension that is 0 for all images stays 0.
_SHORTEST = 1e-12


class FroSSLTerms(NamedTuple):
    """Terms of the FroSSL loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: regularization + invariance_weight * invariance."""
    regularization: Tensor
    """Sum over views of log ||C_v||_F^2: 0 at full collapse, -log(rank) for equal eigenvalues, V times.

    Columns shorter than 1e-12 are not scaled, as published, so it falls without bound where all are.
    """
    invariance: Tensor
    """Squared deviations of views from their mean: 0 when views are equal."""


class FroSSLLoss(EmbeddingLoss[FroSSLTerms]):
    r"""FroSSL loss, a sum over views.

    It is the sum over views v of

        log ||C_v||_F^2 + invariance_weight * V / B * ||U_v - mean over views of U||_F^2

    U_v is the (B, D) batch in view v whose columns are scaled to unit length, and C_v = U_v^T U_v / D, of trace 1, its
    normalised second-moment matrix. As in the authors' code for several views, columns are not centred. Source: Skean,
    Dhakal, Jacobs and Sanchez Giraldo, "FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised
    Learning" (ECCV 2024), with the weights of their released code.

    Args:
        invariance_weight: weight of the invariance term, finite and at least 0.
        check_input: whether to look for NaN and infinity, for which an accelerator must wait.
    """

    def __init__(self, *, invariance_weight: float = 1.0, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.invariance_weight = check_number("invariance_weight", invariance_weight)

    def _terms(self, z_BVD: Tensor) -> FroSSLTerms:
        images, views, dims = z_BVD.shape
        u_BVD = z_BVD / torch.linalg.vector_norm(z_BVD, dim=0).clamp(min=_SHORTEST)
        regularization = (frobenius_squares(u_BVD.transpose(0, 1)) / dims**2).log().sum()
        invariance = (u_BVD - u_BVD.mean(1, keepdim=True)).square().sum() * (views / images)
        return FroSSLTerms(regularization + self.invariance_weight * invariance, regularization, invariance)
