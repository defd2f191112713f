"""Label-free metrics of features: effective rank, RankMe, alignment and uniformity.

None of these is an accuracy. They detect a collapsed representation, and rank runs of one method on one dataset. They
say no more than that.

Shape suffixes: N images, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, exact_float32
from ssole.spectrum import effective_rank

SAMPLE = 25_600
"""Largest number of images for the ranks: what Garrido et al. found enough for ImageNet."""
PAIRS_SAMPLE = 10_000
"""Largest number of images for uniformity, whose cost is quadratic."""


def rankme(features: Tensor, *, eps: float = 1e-7, seed: int = 0) -> float:
    """RankMe: effective rank of the features as they are, in [0, min(N, F)].

    The formula is that of :func:`ssole.spectrum.effective_rank`. Source: Garrido et al. 2023 (arXiv:2210.02885),
    eq. 1-2, and section 3.3 for features rather than embeddings. A common mean is part of the spectrum;
    :func:`centred_effective_rank` leaves it out.

    Args:
        features: (N, F), floating point, finite. More than 25,600 rows: a random choice of that many by ``seed``.
        eps: added to every share, as published. It keeps the logarithm finite and adds less than 2e-6 F to the entropy.

    Raises:
        ValueError: features that are not a finite (N, F).
    """
    return float(effective_rank(_sample(features, SAMPLE, seed), eps=eps))


def centred_effective_rank(features: Tensor, *, seed: int = 0) -> float:
    """Effective rank of the features minus their mean, in [0, min(N, F)]; 0 when all features are equal.

    Arguments and errors as for :func:`rankme`, whose ``eps`` is 0 here.
    """
    features = _sample(features, SAMPLE, seed)
    centred = features.double() - features.double().mean(0)
    # Centring equal features leaves only the rounding error of their mean.
    if centred.abs().max() <= 1e-6 * features.abs().max():
        return 0.0
    return float(effective_rank(centred))


def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance between unit features of two views of the same images; 0 is perfect, sqrt(2)^alpha is chance.

        mean_n |x_n - y_n|^alpha,   x and y scaled to unit length

    Wang and Isola 2020 (arXiv:2005.10242), eq. 1.

    Args:
        first, second: (N, F), row n of each from one image.
        alpha: power of the distance, above 0.

    Raises:
        ValueError: unequal shapes, or features that are not a finite (N, F).
    """
    check_features(first, "features of the first view")
    check_features(second, "features of the second view")
    if first.shape != second.shape:
        raise ValueError(f"features of two views have shapes {tuple(first.shape)} and {tuple(second.shape)}: not equal")
    difference = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float(difference.norm(dim=1).pow(alpha).mean())


def uniformity(features: Tensor, *, t: float = 2.0, seed: int = 0) -> float:
    """Uniformity of unit features on the sphere: 0 when all are equal, towards -2 t for a high-dimensional uniform.

        log mean_{n < m} exp(- t |x_n - x_m|²),   x scaled to unit length

    Wang and Isola 2020 (arXiv:2005.10242), eq. 2.

    Args:
        features: (N, F) with N >= 2. More than 10,000 rows: a random choice of that many by ``seed``.
        t: above 0.

    Raises:
        ValueError: fewer than two rows, or features that are not a finite (N, F).
    """
    features = _sample(features, PAIRS_SAMPLE, seed)
    count = len(features)
    if count < 2:
        raise ValueError(f"uniformity compares images and got {count}")
    with exact_float32(features.device):
        unit_NF = F.normalize(features.float(), dim=1)
        total = torch.zeros((), dtype=torch.float64, device=unit_NF.device)
        for start in range(0, count, 1024):
            kernel = torch.exp(-t * (2 - 2 * unit_NF[start : start + 1024] @ unit_NF.T).clamp_min(0))
            kernel.diagonal(offset=start).zero_()  # an image with itself is no pair
            total += kernel.sum(dtype=torch.float64)
    return float((total / (count * (count - 1))).log())


def _sample(features: Tensor, limit: int, seed: int) -> Tensor:
    check_features(features, "features")
    if len(features) <= limit:
        return features.detach()
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:limit]
    return features.detach()[chosen.to(features.device)]
