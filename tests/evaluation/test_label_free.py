"""Label-free figures: closed cases and naive definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssole.evaluation import label_free
from ssole.evaluation.label_free import (
    alignment,
    alpha_req,
    centred_effective_rank,
    label_free_figures,
    lidar,
    neighbour_agreement,
    rankme,
    uniformity,
)
from ssole.evaluation.results import LABEL_FREE


@pytest.mark.parametrize("shape", [(300, 8), (8, 300)])
def test_ranks_follow_their_definition(shape: tuple[int, int]) -> None:
    x = torch.randn(shape) * torch.linspace(0.1, 2, shape[1]) + 3
    for measure, matrix, eps in ((rankme, x, 1e-7), (centred_effective_rank, x - x.mean(0), 0.0)):
        sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        p = sigma / sigma.sum() + eps
        entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
        assert measure(x) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_ranks_of_closed_cases() -> None:
    basis = torch.eye(16)
    assert rankme(basis) == pytest.approx(16, rel=1e-4)
    assert centred_effective_rank(torch.cat([basis, -basis])) == pytest.approx(16)
    line = torch.randn(100, 1) * torch.randn(1, 32)
    assert rankme(line) == pytest.approx(1, abs=1e-3)
    assert centred_effective_rank(line + 7) == pytest.approx(1, abs=1e-3)
    # A common mean is one direction for RankMe, and left out of the centred rank.
    constant = torch.full((50, 6), 0.1)
    assert rankme(constant) == pytest.approx(1, abs=1e-3)
    assert centred_effective_rank(constant) == 0
    assert rankme(torch.zeros(5, 3)) == 0


def test_alignment_of_closed_cases() -> None:
    x = torch.randn(64, 10)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, -x, alpha=1) == pytest.approx(2)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)) == pytest.approx(2)


def test_uniformity_follows_its_definition() -> None:
    x = torch.randn(2100, 5)  # more than two blocks
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    naive = torch.pdist(unit).square().mul(-2).exp().mean().log().item()
    assert uniformity(x) == pytest.approx(naive, rel=1e-5)
    assert uniformity(torch.ones(30, 4)) == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.zeros(30, 4)) == pytest.approx(0, abs=1e-5)  # equal as well, though without a direction
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_large_sets_are_measured_on_a_fixed_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3000, 6)
    whole = rankme(x)
    monkeypatch.setattr(label_free, "SAMPLE", 500)
    assert rankme(x) == rankme(x) != whole
    assert rankme(x) == pytest.approx(whole, rel=0.02)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="compares images and got 1"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        alignment(torch.ones(4, 3), torch.ones(5, 3))
    for measure in (rankme, centred_effective_rank, uniformity):
        with pytest.raises(ValueError, match="NaN or infinity in 1 of 3 rows, the first being row 2"):
            measure(torch.tensor([[0.0], [1.0], [torch.nan]]))


def test_alpha_req_of_a_power_law() -> None:
    """Features with eigenvalues i^(-alpha) exactly, by a slope of numpy for random ones."""
    signs = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(400, 61)))[0])
    signs = torch.linalg.qr(signs - signs.mean(0)).Q[:, :60]  # centred, orthonormal columns
    for alpha in (0.5, 1.0, 2.5):
        features = signs * torch.arange(1, 61).double().pow(-alpha / 2)
        assert alpha_req(features) == pytest.approx(alpha, abs=1e-6)
        assert alpha_req(features[:, :9]) == pytest.approx(alpha, abs=1e-6)  # few directions: all of them
    x = np.random.default_rng(1).normal(size=(300, 40)) @ np.random.default_rng(2).normal(size=(40, 40))
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    slope = np.polyfit(np.log(np.arange(11, 41)), np.log(eigenvalues[10:]), 1)[0]
    assert alpha_req(torch.from_numpy(x)) == pytest.approx(-slope)
    with pytest.raises(ValueError, match="vary in 1 directions"):
        alpha_req(torch.randn(50, 1) * torch.ones(50, 7) + 3)


def test_lidar_follows_its_definition() -> None:
    """A scikit-learn-like computation with explicit matrices, and closed cases."""
    x = np.random.default_rng(0).normal(size=(30, 4, 6)) + 2 * np.random.default_rng(1).normal(size=(30, 1, 6))
    means = x.mean(1)
    between = np.cov(means.T, bias=True)
    within = sum(np.cov(one.T, bias=True) for one in x) / 30 + 1e-4 * np.eye(6)
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real
    p = values / values.sum() + 1e-7
    assert lidar(torch.from_numpy(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    axes = torch.cat([torch.eye(5), -torch.eye(5)])[:, None].expand(-1, 2, -1)
    assert lidar(axes) == pytest.approx(5, rel=1e-4)  # equal views, images in five directions
    assert lidar(axes * torch.tensor([1.0, 0, 0, 0, 0])) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match=r"\(N, V, F\) of two or more views"):
        lidar(torch.randn(4, 6))


def test_agreement_of_neighbours_against_sets() -> None:
    first, second = torch.randn(40, 3), torch.randn(40, 3)

    def neighbours(x: torch.Tensor) -> list[set[int]]:
        unit = x / x.norm(dim=1, keepdim=True)
        cosine = (unit @ unit.T).fill_diagonal_(-2)
        return [set(row.argsort(descending=True)[:6].tolist()) for row in cosine]

    shares = [len(a & b) / 6 for a, b in zip(neighbours(first), neighbours(second), strict=True)]
    assert neighbour_agreement(first, second, k=6) == pytest.approx(np.mean(shares))
    assert neighbour_agreement(first, 2 * first) == 1
    assert neighbour_agreement(first[:4], second[:4]) == 1  # only three others


def test_figures_that_are_undefined_are_left_out() -> None:
    features, views = torch.randn(50, 8), torch.randn(50, 3, 8)
    assert tuple(label_free_figures(features, views)) == (
        "centred_effective_rank",
        "rankme",
        "alpha_req",
        "uniformity",
        "alignment",
        "lidar",
        "neighbour_agreement",
    )
    assert set(label_free_figures(features, views)) == set(LABEL_FREE)
    assert "alpha_req" not in label_free_figures(torch.ones(50, 8))
    assert set(label_free_figures(torch.ones(1, 8))) == {"centred_effective_rank", "rankme"}
