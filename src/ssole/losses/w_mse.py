"""The W-MSE loss: views agree after whitening, which rules out collapse.

Shape suffixes: B images (b in a sub-batch), V views, D embedding dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssole import distributed
from ssole.losses.base import EmbeddingLoss, check_count
from ssole.losses.kernels import where_float64_is

# Shortest whitened embedding that is scaled to unit length: an image at the mean of its sub-batch stays 0.
_SHORTEST = 1e-12
# Share of a dimension's variance that those before it must leave. Where it depends on them, rounding to float32 leaves
# about 1e-14, and up to 1e-13 where its mean is ten times its spread.
_MIN_SHARE = 1e-12


class WMSETerms(NamedTuple):
    """Terms of the W-MSE loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: 2 - 2 * cosine."""
    cosine: Tensor
    """Mean cosine of two whitened views of an image."""


class WMSELoss(EmbeddingLoss[WMSETerms]):
    r"""W-MSE loss, the mean squared difference of whitened views.

    It is the mean over images and pairs of views (v, u) of

        ||w_v - w_u||^2 = 2 - 2 cos(w_v, w_u),        w_v = L^-1 (z_v - mean), scaled to unit length

    L is the Cholesky factor of (1 - shrinkage) * covariance + shrinkage * I, in float64. Mean and covariance are those
    of view v over a random sub-batch. A sub-batch of no more images than dimensions, or dimensions that depend on each
    other, are a ValueError. Source: Ermolov, Siarohin, Sangineto and Sebe, "Whitening for Self-Supervised
    Representation Learning" (ICML 2021).

    The batch is split into as many sub-batches of `subset_size` as it holds; images left over are spread over them. The
    split is drawn from torch's global generator, which training seeds from the run's seed and the step. Processes agree
    on it also where their generators differ.

    Args:
        subset_size: images of a sub-batch, or of the batch if that is smaller. None for 2 D, as published.
        iterations: number of random splits to average over.
        shrinkage: share of the identity in the covariance, in [0, 1).
        check_input: whether to look for NaN, infinity and dependent dimensions, for which an accelerator must wait.
    """

    def __init__(
        self,
        *,
        subset_size: int | None = None,
        iterations: int = 1,
        shrinkage: float = 0.0,
        check_input: bool = True,
    ) -> None:
        super().__init__(check_input=check_input)
        if not 0 <= shrinkage < 1:
            raise ValueError(f"shrinkage must be in [0, 1), got {shrinkage}")
        self.subset_size = None if subset_size is None else check_count("subset_size", subset_size, 2)
        self.iterations = check_count("iterations", iterations, 1)
        self.shrinkage = shrinkage

    def _terms(self, z_BVD: Tensor) -> WMSETerms:
        images, views, dims = z_BVD.shape
        size = min(2 * dims if self.subset_size is None else self.subset_size, images)
        if size <= dims:
            raise ValueError(
                f"whitening {dims} dimensions needs a batch and a subset_size of more than {dims} images, better "
                f"{2 * dims} or more, got {images} images and subset_size={self.subset_size}; use a larger batch, or a "
                f"projector of {max(1, images // 2)} dimensions or fewer (published: 64)"
            )
        # Float64, as the covariance of embeddings squares their condition number.
        whole_BVD = where_float64_is(z_BVD).double()
        cosines = whole_BVD.new_zeros(())
        for _ in range(self.iterations):
            keys_B = distributed.all_reduce(
                torch.rand(images, device=whole_BVD.device)
            )  # the same sum on all processes
            for part_bVD in whole_BVD[keys_B.argsort()].tensor_split(images // size):
                w_VbD = self._whiten(part_bVD.transpose(0, 1))
                u_VbD = w_VbD / torch.linalg.vector_norm(w_VbD, dim=-1, keepdim=True).clamp(min=_SHORTEST)
                # Over different views, the cosines of an image sum to |sum of its rows|^2 - sum of |row|^2.
                cosines = cosines + u_VbD.sum(0).square().sum() - u_VbD.square().sum()
        cosine = cosines / (self.iterations * images * views * (views - 1))
        return WMSETerms(*(term.to(z_BVD.dtype).to(z_BVD.device) for term in (2 - 2 * cosine, cosine)))

    def _whiten(self, z_VbD: Tensor) -> Tensor:
        """Embeddings of each view with mean 0 and, without shrinkage, the identity as covariance."""
        _, images, dims = z_VbD.shape
        centred_VbD = z_VbD - z_VbD.mean(1, keepdim=True)
        covariance_VDD = centred_VbD.mT @ centred_VbD / (images - 1)
        identity = torch.eye(dims, dtype=z_VbD.dtype, device=z_VbD.device)
        covariance_VDD = (1 - self.shrinkage) * covariance_VDD + self.shrinkage * identity
        # Without its check for errors, for which an accelerator would wait.
        factor_VDD, failures_V = torch.linalg.cholesky_ex(covariance_VDD)
        left_VD = factor_VDD.detach().diagonal(dim1=1, dim2=2).square()
        shares_VD = left_VD / covariance_VDD.detach().diagonal(dim1=1, dim2=2)
        singular_V = (failures_V > 0) | ~(shares_VD > _MIN_SHARE).all(-1)  # negated, so that NaN counts
        factor_VDD = factor_VDD.masked_fill(singular_V[:, None, None], math.nan)  # unchecked, the loss is then NaN
        if self.check_input and not torch.compiler.is_compiling() and bool(singular_V.any()):
            raise ValueError(
                f"the covariance of {dims} dimensions over {images} images is singular: some dimensions are constant "
                "or depend on others, so they cannot be whitened; use fewer dimensions, or shrinkage=1e-3"
            )
        whitened_VbD: Tensor = torch.linalg.solve_triangular(factor_VDD.mT, centred_VbD, upper=True, left=False)
        return whitened_VbD
