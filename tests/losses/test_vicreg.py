"""VICRegLoss against loops over images and dimensions, and closed cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import embeddings

from ssole.losses import VICRegLoss


def two_view_terms(a: list[list[float]], b: list[list[float]]) -> tuple[float, float, float]:
    """Equations 1 to 5 of the paper: s / D, v(a) + v(b) and c(a) + c(b)."""
    n, d = len(a), len(a[0])
    invariance = sum((p - q) ** 2 for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)) / n / d
    variance = covariance = 0.0
    for batch in (a, b):
        means = [sum(row[j] for row in batch) / n for j in range(d)]
        for i, j in itertools.product(range(d), range(d)):
            c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in batch) / (n - 1)
            if i == j:
                variance += max(0.0, 1 - math.sqrt(c + 1e-4)) / d
            else:
                covariance += c**2 / d
    return invariance, variance, covariance


@pytest.mark.parametrize("shape", [(2, 2, 3), (9, 2, 4), (4, 3, 7), (5, 4, 5)])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_against_the_paper_pair_by_pair(shape, scale):
    z = scale * embeddings(*shape)
    pairs = list(itertools.combinations(range(shape[1]), 2))
    each = [two_view_terms(z[:, v].tolist(), z[:, w].tolist()) for v, w in pairs]
    invariance, variance, covariance = (sum(term) / len(pairs) for term in zip(*each, strict=True))
    terms = VICRegLoss().terms(z)
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-12)
    assert terms.variance.item() == pytest.approx(variance / 2, rel=1e-12)
    assert terms.covariance.item() == pytest.approx(covariance, rel=1e-12)
    assert terms.total.item() == pytest.approx(25 * invariance + 12.5 * variance + covariance, rel=1e-12)
    weights = {"invariance_weight": 2.0 * shape[2], "variance_weight": 6.0, "covariance_weight": 5.0}
    paper = 2 * shape[2] * invariance + 3 * variance + 5 * covariance
    assert VICRegLoss(**weights)(z).item() == pytest.approx(paper, rel=1e-12)


def test_collapse():
    terms = VICRegLoss().terms(torch.full((6, 3, 5), 0.7, dtype=torch.float64))
    assert [term.item() for term in terms[1:]] == pytest.approx([0, 0.99, 0])


@pytest.mark.parametrize("dims", [3, 7])
def test_equal_views_of_uncorrelated_dimensions_cost_nothing(dims):
    hadamard = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(3):
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64))
    z = hadamard[:, None, 1 : dims + 1].expand(8, 3, dims)
    assert VICRegLoss()(z).item() == pytest.approx(0, abs=1e-12)


def test_a_shift_does_not_matter_and_scale_does():
    z = embeddings(6, 3, 5)
    assert VICRegLoss()(z + 3).item() == pytest.approx(VICRegLoss()(z).item(), rel=1e-10)
    assert VICRegLoss().terms(2 * z).invariance.item() == pytest.approx(4 * VICRegLoss().terms(z).invariance.item())


@pytest.mark.parametrize("shape", [(9, 2, 5), (5, 2, 9)])
def test_against_lightly(shape):
    lightly = pytest.importorskip("lightly.loss")
    z = embeddings(*shape)
    torch.testing.assert_close(VICRegLoss()(z), lightly.VICRegLoss()(z[:, 0], z[:, 1]))
