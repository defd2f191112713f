"""Clustering: how well k-means, with as many clusters as classes, finds the classes among features.

The figures of Van Gansbeke et al. 2020 (SCAN, arXiv:2005.12320): normalised mutual information, adjusted Rand index,
and the accuracy of the best one-to-one assignment of clusters to classes (Hungarian method).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.checks import check_features, check_labels
from ssole.progress import progress_bar

RESTARTS = 10
"""Starts of k-means, of which the one with the tightest clusters is taken. Labels have no say in it."""


def clustering_figures(features: Tensor, labels: Tensor, *, seed: int = 0, progress: bool = False) -> dict[str, float]:
    """Figures of k-means on features of unit length: {"cluster_nmi", "cluster_ari", "cluster_accuracy"}.

    Features are (N, F), floating point and finite, or it is a ValueError. Labels are (N,) integers; their number of
    distinct values is the number of clusters. ``seed`` is that of the starts.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    check_features(features, "features")
    truth = check_labels(labels, len(features), None)[0].cpu().numpy()
    unit = F.normalize(features.float(), dim=1).cpu().numpy()
    count = len(np.unique(truth))
    distinct = min(count, len(torch.from_numpy(unit).unique(dim=0)))  # k-means warns about more clusters than points
    fits = []
    with progress_bar("clusters", RESTARTS, enabled=progress) as advance:
        for restart in range(RESTARTS):
            number = (seed * RESTARTS + restart) % 2**32  # scikit-learn takes no other seeds
            fits.append(KMeans(distinct, n_init=1, random_state=number).fit(unit))
            advance()
    found = min(fits, key=lambda fit: fit.inertia_).labels_
    return {
        "cluster_nmi": float(normalized_mutual_info_score(truth, found)),
        "cluster_ari": float(adjusted_rand_score(truth, found)),
        "cluster_accuracy": hungarian_accuracy(truth, found),
    }


def hungarian_accuracy(truth: NDArray[np.integer], found: NDArray[np.integer]) -> float:
    """Share of rows whose cluster is assigned to their class, for the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(truth, found)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth))
