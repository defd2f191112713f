"""The MMCR loss: the mean views of the images span as many directions as they can.

Shape suffixes: B images, V views, D embedding dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ssole.losses.base import EmbeddingLoss, check_number, to_unit_length
from ssole.losses.nuclear import nuclear_norm


class MMCRTerms(NamedTuple):
    """Terms of the MMCR loss: scalar tensors. The local term has no gradient of its own where its weight is 0."""

    total: Tensor
    """Loss: -centroids + local_weight * local."""
    centroids: Tensor
    """Nuclear norm of the images' mean views: sqrt(B) at full collapse, B for equal views of orthonormal images."""
    local: Tensor
    """Mean over images of the nuclear norm of their views: sqrt(V) for equal views, V for orthonormal ones."""


class MMCRLoss(EmbeddingLoss[MMCRTerms]):
    r"""MMCR loss, of maximum manifold capacity representations.

    With the weight of the local term, it is

        -||C||_* + local_weight * mean over images i of ||Z_i||_*

    Z_i are the (V, D) views of image i with rows scaled to unit length, C is the (B, D) matrix of their means over
    views, and ||.||_* the nuclear norm. Source: Yerxa, Kuang, Simoncelli and Chung, "Learning Efficient Coding of
    Natural Images with Maximum Manifold Capacity Representations" (NeurIPS 2023).

    Args:
        local_weight: weight of the local term, finite and at least 0.
        check_input: whether to look for NaN, infinity and zero vectors, for which an accelerator must wait.
    """

    normalize = True

    def __init__(self, *, local_weight: float = 0.0, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.local_weight = check_number("local_weight", local_weight)

    def _terms(self, z_BVD: Tensor) -> MMCRTerms:
        z_BVD = to_unit_length(z_BVD)
        centroids = nuclear_norm(z_BVD.mean(1))
        local = nuclear_norm(z_BVD if self.local_weight > 0 else z_BVD.detach()).mean()
        total = -centroids + self.local_weight * local if self.local_weight > 0 else -centroids
        return MMCRTerms(total, centroids, local)
