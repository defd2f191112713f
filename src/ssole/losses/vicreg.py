"""The VICReg loss: views agree, and every dimension varies on its own.

Shape suffixes: B images, V views, D embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ssole.losses.base import EmbeddingLoss, check_number, frobenius_squares

# Added to variances, as published: the square root has a finite slope at 0.
_EPS = 1e-4


class VICRegTerms(NamedTuple):
    """Terms of the VICReg loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: the weighted sum of the terms."""
    invariance: Tensor
    """Mean squared difference of two views."""
    variance: Tensor
    """Mean shortfall of the standard deviations below 1: 0.99 at full collapse, 0 when none is below."""
    covariance: Tensor
    """Sum of squared covariances of different dimensions, over D, summed over the two views of a pair."""


class VICRegLoss(EmbeddingLoss[VICRegTerms]):
    r"""VICReg loss, variance-invariance-covariance regularisation.

    With Z_v the (B, D) batch in view v, C_v its covariance matrix (divisor B - 1) and e = 1e-4:

        invariance = mean over pairs of views, images and dimensions of (z_v - z_w)^2
        variance   = mean over views and dimensions j of max(0, 1 - sqrt(C_v,jj + e))
        covariance = 2 * mean over views of sum_{i != j} C_v,ij^2 / D
        total      = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance

    The scale of each term is that of the released code, which gave the published results: the variance is averaged over
    a pair's two views and the covariance is summed over them. (Equation 6 of the paper sums both: `variance_weight=50`.
    Its equation 5 also sums, instead of averages, squared differences over dimensions.) Source: Bardes, Ponce and
    LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (ICLR 2022).

    Args:
        invariance_weight: weight of the invariance term, finite and at least 0, like the others.
        variance_weight: weight of the variance term.
        covariance_weight: weight of the covariance term.
        check_input: whether to look for NaN and infinity, for which an accelerator must wait.
    """

    def __init__(
        self,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        check_input: bool = True,
    ) -> None:
        super().__init__(check_input=check_input)
        self.invariance_weight = check_number("invariance_weight", invariance_weight)
        self.variance_weight = check_number("variance_weight", variance_weight)
        self.covariance_weight = check_number("covariance_weight", covariance_weight)

    def _terms(self, z_BVD: Tensor) -> VICRegTerms:
        images, views, dims = z_BVD.shape
        # The mean over pairs of |z_v - z_w|^2 is 2 / (V - 1) times the sum over views of |z_v - mean|^2.
        deviations_BVD = z_BVD - z_BVD.mean(1, keepdim=True)
        invariance = deviations_BVD.square().sum() * (2 / (views - 1) / (images * dims))
        z_VBD = (z_BVD - z_BVD.mean(0)).transpose(0, 1)
        variances_VD = z_VBD.square().sum(1) / (images - 1)
        variance = (1 - (variances_VD + _EPS).sqrt()).clamp(min=0).mean()
        squares_V = frobenius_squares(z_VBD) / (images - 1) ** 2
        covariance = 2 * (squares_V - variances_VD.square().sum(-1)).mean() / dims
        total = (
            self.invariance_weight * invariance + self.variance_weight * variance + self.covariance_weight * covariance
        )
        return VICRegTerms(total, invariance, variance, covariance)
