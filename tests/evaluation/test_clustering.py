"""Clustering: clouds that k-means must find, the assignment against all permutations, and bad input."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from ssole.evaluation.clustering import clustering_figures, hungarian_accuracy


def test_clouds_apart_are_found_whatever_their_length() -> None:
    labels = torch.arange(120) % 4
    scale = torch.linspace(0.1, 9, 120)[:, None]
    features = scale * (torch.eye(4, 8)[labels] + 0.02 * torch.randn(120, 8))
    assert clustering_figures(features, 3 * labels) == {"cluster_nmi": 1, "cluster_ari": 1, "cluster_accuracy": 1}


@pytest.mark.parametrize("seed", [-1, 500_000_000])
def test_any_integer_is_taken_as_a_seed(seed: int) -> None:
    assert clustering_figures(torch.eye(6), torch.arange(6) % 2, seed=seed)["cluster_nmi"] >= 0


def test_noise_is_at_chance() -> None:
    figures = clustering_figures(torch.randn(600, 8), torch.arange(600) % 4)
    assert abs(figures["cluster_ari"]) < 0.03
    assert figures["cluster_nmi"] < 0.05
    assert 0.25 <= figures["cluster_accuracy"] < 0.35


def test_collapsed_features_are_one_cluster() -> None:
    figures = clustering_figures(torch.ones(40, 3), torch.arange(40) % 4)
    assert figures == {"cluster_nmi": 0, "cluster_ari": 0, "cluster_accuracy": 0.25}


def test_the_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    best = max(float((np.array(order)[found] == truth).mean()) for order in permutations(range(4)))
    assert hungarian_accuracy(truth, found) == pytest.approx(best)
    assert hungarian_accuracy(truth, np.zeros(50, dtype=int)) == np.bincount(truth).max() / 50


def test_bad_features_are_named() -> None:
    with pytest.raises(ValueError, match="features hold NaN or infinity in 1 of 2 rows"):
        clustering_figures(torch.tensor([[1.0], [torch.inf]]), torch.tensor([0, 1]))
