"""Label-free metrics of features: ranks, spectrum, LiDAR, alignment, uniformity, agreement of neighbours.

None of these is an accuracy. `experiments/verdict.py` measures how well each follows accuracy.

Features are (N, F), or a pair of these for two views of the same images, row by row. They are floating point and
finite; others are a ValueError. Where there are more images than a limit below, a random choice is taken, always the
same one; the agreement of neighbours takes the first images.

Shape suffixes: N images, V views, F features.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, exact_float32
from ssole.evaluation.knn import nearest_others
from ssole.spectrum import effective_rank

SAMPLE = 25_600
"""Largest number of images for the ranks: what Garrido et al. found enough for ImageNet."""
PAIRS_SAMPLE = 10_000
"""Largest number of images for uniformity, and of those whose neighbours are compared: the cost is quadratic."""
VIEWS = 8
"""Views of an image for the figures of views. LiDAR depends on their number, so that all evaluations take as many."""
DECAY_FROM, DECAY_TO = 11, 100
"""Eigenvalues, from the largest, whose decay alpha-ReQ fits: the first ones and the noisy tail are left out."""


def label_free_figures(features: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """All label-free figures by name, as in `ssole.evaluation.results.LABEL_FREE`.

    Figures that are undefined for these features are left out: alpha-ReQ of features that vary in fewer than three
    directions, and those that need several images. So are figures of views without ``views``, (M, V, F) features of
    V >= 2 views of M images.
    """
    figures = {"centred_effective_rank": centred_effective_rank(features), "rankme": rankme(features)}
    with suppress(ValueError):  # too few directions: the features themselves have passed the checks above
        figures["alpha_req"] = alpha_req(features)
    if len(features) > 1:
        figures["uniformity"] = uniformity(features)
    if views is not None:
        figures["alignment"] = alignment(views[:, 0], views[:, 1])
        if len(views) > 1:
            figures["lidar"] = lidar(views)
            figures["neighbour_agreement"] = neighbour_agreement(views[:, 0], views[:, 1])
    return figures


def rankme(features: Tensor, *, eps: float = 1e-7) -> float:
    """RankMe: effective rank of the features as they are, in [0, min(N, F)].

    The formula is that of :func:`ssole.spectrum.effective_rank`. Source: Garrido et al. 2023 (arXiv:2210.02885),
    eq. 1-2, and section 3.3 for features rather than embeddings. A common mean is part of the spectrum;
    :func:`centred_effective_rank` leaves it out. As published, ``eps`` is added to every share. It keeps the logarithm
    finite and adds less than 2e-6 F to the entropy.
    """
    return float(effective_rank(_sample(features, SAMPLE), eps=eps))


def centred_effective_rank(features: Tensor) -> float:
    """Effective rank of the features minus their mean, in [0, min(N, F)]; 0 when all features are equal."""
    features = _sample(features, SAMPLE)
    centred = features.double() - features.double().mean(0)
    # Centring equal features leaves only the rounding error of their mean.
    if centred.abs().max() <= 1e-6 * features.abs().max():
        return 0.0
    return float(effective_rank(centred))


def alpha_req(features: Tensor) -> float:
    """alpha-ReQ: exponent alpha of the power law i^(-alpha) that the eigenvalues of the features' covariance follow.

    Near 1 is best in theory; larger means fewer directions, smaller means noise. The fit is unweighted least squares on
    logarithms over eigenvalues 11 to 100; over all of them where the covariance has fewer than 20 above rounding; with
    fewer than three it is a ValueError. Source: Agrawal et al. 2022, "alpha-ReQ" (NeurIPS), and the range of Stringer
    et al. 2019.
    """
    features = _sample(features, SAMPLE).double()
    centred = features - features.mean(0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
    rounding = 1e-12 * features.square().sum()
    eigenvalues = eigenvalues[eigenvalues > rounding]
    if len(eigenvalues) < 3:
        raise ValueError(f"the features vary in {len(eigenvalues)} directions; a power law needs at least three")
    chosen = slice(DECAY_FROM - 1, DECAY_TO) if len(eigenvalues) >= DECAY_FROM + 9 else slice(None)
    x = torch.arange(1, len(eigenvalues) + 1, device=eigenvalues.device)[chosen].double().log()
    y = eigenvalues[chosen].log()
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())


def lidar(features: Tensor, *, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """LiDAR: effective rank of what tells images apart, measured in units of what differs between views of an image.

        S_b = covariance of the images' means        S_w = mean covariance of an image's views + delta I
        LiDAR = exp of the entropy of p,   p_i = l_i / sum_j l_j + eps,   l the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2)

    Features are (N, V, F), of V >= 2 views of each of N >= 2 images. Thilak et al. 2024 (arXiv:2312.04000), section 4,
    with their ``delta`` and ``eps``; their features are those of the projector.
    """
    if features.ndim != 3 or features.shape[0] < 2 or features.shape[1] < 2:
        raise ValueError(f"LiDAR needs features (N, V, F) of two or more views of images, got {tuple(features.shape)}")
    check_features(features.flatten(0, 1), "features of the views")
    features = features.double()
    mean_NF = features.mean(1)
    centred_NF, within = mean_NF - mean_NF.mean(0), (features - mean_NF[:, None]).flatten(0, 1)
    variance_F, axes_FF = torch.linalg.eigh(within.T @ within / len(within))
    whitened_NF = centred_NF @ (axes_FF / (variance_F.clamp_min(0) + delta).sqrt())
    return float(effective_rank(whitened_NF.T @ whitened_NF / len(whitened_NF), eps=eps))


def neighbour_agreement(first: Tensor, second: Tensor, *, k: int = 10) -> float:
    """Mean share of an image's k nearest other images that two views have in common, in [0, 1]; chance is k / (N - 1).

    For each view, neighbours are searched among the N >= 2 images of that view, by cosine; all others where there are
    fewer than ``k``. The mean is over the first 10,000 images where there are more. The figure is the mutual k-nearest
    neighbours of Huh et al. 2024 (arXiv:2405.07987), between two views instead of two models.
    """
    _check_pair(first, second)
    if len(first) < 2:
        raise ValueError(f"the agreement of neighbours compares images and got {len(first)}")
    rows = torch.arange(min(len(first), PAIRS_SAMPLE), device=first.device)
    one, other = (nearest_others(view, rows, k)[1] for view in (first, second))
    return float((one[:, :, None] == other[:, None, :]).any(2).float().mean())


def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """Mean distance between unit features of two views of the same images; 0 is perfect, sqrt(2)^alpha is chance.

        mean_n |x_n - y_n|^alpha,   x and y scaled to unit length

    Wang and Isola 2020 (arXiv:2005.10242), eq. 1.
    """
    _check_pair(first, second)
    difference = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float(difference.norm(dim=1).pow(alpha).mean())


def uniformity(features: Tensor, *, t: float = 2.0) -> float:
    """Uniformity of unit features on the sphere: 0 when all are equal, towards -2 t for a high-dimensional uniform.

        log mean_{n < m} exp(- t |x_n - x_m|²),   x scaled to unit length unless it is 0, of N >= 2 images

    Wang and Isola 2020 (arXiv:2005.10242), eq. 2.
    """
    features = _sample(features, PAIRS_SAMPLE)
    count = len(features)
    if count < 2:
        raise ValueError(f"uniformity compares images and got {count}")
    with exact_float32(features.device):
        unit_NF = F.normalize(features.float(), dim=1)
        square_N = unit_NF.square().sum(1)  # 1, or 0 of features that are all 0
        total = torch.zeros((), dtype=torch.float64, device=unit_NF.device)
        for start in range(0, count, 1024):
            block = slice(start, start + 1024)
            distance = square_N[block, None] + square_N - 2 * unit_NF[block] @ unit_NF.T
            kernel = torch.exp(-t * distance.clamp_min(0))
            kernel.diagonal(offset=start).zero_()  # an image with itself is no pair
            total += kernel.sum(dtype=torch.float64)
    return float((total / (count * (count - 1))).log())


def _check_pair(first: Tensor, second: Tensor) -> None:
    check_features(first, "features of the first view")
    check_features(second, "features of the second view")
    if first.shape != second.shape:
        raise ValueError(f"features of two views have shapes {tuple(first.shape)} and {tuple(second.shape)}: not equal")


def _sample(features: Tensor, limit: int) -> Tensor:
    check_features(features, "features")
    if len(features) <= limit:
        return features.detach()
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:limit]
    return features.detach()[chosen.to(features.device)]
