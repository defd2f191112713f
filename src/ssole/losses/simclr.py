"""The SimCLR loss, NT-Xent: each view picks out its partner among all other images of the batch.

Shape suffixes: B images, V and W views, D embedding dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssole.losses.base import EmbeddingLoss, check_number, to_unit_length


class SimCLRTerms(NamedTuple):
    """Terms of the SimCLR loss: scalar tensors, differentiable."""

    total: Tensor
    """Loss: alignment + spread."""
    alignment: Tensor
    """Minus the mean cosine of two views of an image, over the temperature: -1 / temperature when they are equal."""
    spread: Tensor
    """Mean logarithm of the softmax denominators: low when images are far apart."""


class SimCLRLoss(EmbeddingLoss[SimCLRTerms]):
    r"""NT-Xent, the normalised temperature-scaled cross-entropy loss of SimCLR.

    With unit rows, s the cosine of two rows and t the temperature, the loss of view v of image i with its partner w is

        -s(iv, iw) / t + log sum_{(j, u) != (i, v)} exp(s(iv, ju) / t),        u in {v, w}

    The sum runs over the 2 B - 1 other rows of the two views. The loss is the mean over images and all ordered pairs
    (v, w) of different views. Two views give the published loss. Source: Chen, Kornblith, Norouzi and Hinton, "A Simple
    Framework for Contrastive Learning of Visual Representations" (ICML 2020), equation 1.

    Args:
        temperature: divisor of cosines, above 0.
        check_input: whether to look for NaN, infinity and zero vectors, for which an accelerator must wait.
    """

    normalize = True

    def __init__(self, *, temperature: float = 0.1, check_input: bool = True) -> None:
        super().__init__(check_input=check_input)
        self.temperature = check_number("temperature", temperature, positive=True)

    def _terms(self, z_BVD: Tensor) -> SimCLRTerms:
        z_BVD, (images, views, dims) = to_unit_length(z_BVD), z_BVD.shape
        rows = z_BVD.transpose(0, 1).reshape(views * images, dims)
        logits = (rows @ rows.T) / self.temperature
        itself = torch.eye(views * images, dtype=torch.bool, device=logits.device)
        # Log-sum-exp over the images of each view; the denominator of a pair of views has two of them.
        by_view_VBW = logits.masked_fill(itself, -math.inf).view(views, images, views, images).logsumexp(-1)
        own_VB = by_view_VBW.diagonal(dim1=0, dim2=2).T
        pairs_VBW = torch.logaddexp(own_VB[:, :, None], by_view_VBW)
        ordered_pairs = views * (views - 1)
        same_view = pairs_VBW.diagonal(dim1=0, dim2=2)
        spread = (pairs_VBW.sum() - same_view.sum()) / (images * ordered_pairs)
        # Over different views, the cosines of an image sum to |sum of its rows|^2 - V.
        cosines_B = (z_BVD.sum(1).square().sum(-1) - z_BVD.square().sum((1, 2))) / ordered_pairs
        alignment = -cosines_B.mean() / self.temperature
        return SimCLRTerms(alignment + spread, alignment, spread)
