"""BarlowTwinsLoss against loops over images and dimensions, closed cases and invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import BarlowTwinsLoss

SHAPES = [(2, 2, 3), (9, 2, 4), (4, 3, 7), (5, 4, 5), (12, 3, 3)]


def two_view_terms(a: list[list[float]], b: list[list[float]]) -> tuple[float, float]:
    """Equations 1 and 2 of the paper, which have no epsilon: invariance and redundancy."""
    n, d = len(a), len(a[0])
    columns = []
    for batch in (a, b):
        means = [sum(row[j] for row in batch) / n for j in range(d)]
        columns.append([[row[j] - means[j] for row in batch] for j in range(d)])
    invariance = redundancy = 0.0
    for i, j in itertools.product(range(d), range(d)):
        x, y = columns[0][i], columns[1][j]
        c = sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        invariance += (1 - c) ** 2 if i == j else 0
        redundancy += c**2 if i != j else 0
    return invariance, redundancy


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_paper_pair_by_pair(shape):
    z = 1e5 * embeddings(*shape)  # so that the epsilon of batch normalisation does not count
    pairs = list(itertools.combinations(range(shape[1]), 2))
    both = [two_view_terms(z[:, v].tolist(), z[:, w].tolist()) for v, w in pairs]
    invariance, redundancy = (sum(term) / len(pairs) for term in zip(*both, strict=True))
    terms = BarlowTwinsLoss(redundancy_weight=0.3).terms(z)
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-9)
    assert terms.redundancy.item() == pytest.approx(redundancy, rel=1e-9)
    assert terms.total.item() == pytest.approx(invariance + 0.3 * redundancy, rel=1e-9)


def test_collapse_costs_one_for_each_dimension():
    terms = BarlowTwinsLoss().terms(torch.ones(6, 3, 5, dtype=torch.float64))
    assert terms.invariance.item() == pytest.approx(5)
    assert terms.redundancy.item() == pytest.approx(0)


@pytest.mark.parametrize("dims", [3, 7])
def test_equal_views_of_uncorrelated_dimensions_cost_nothing(dims):
    hadamard = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    for _ in range(2):
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64))
    z = 1e4 * hadamard[:, 1 : dims + 1, None].mT.expand(8, 3, dims)
    terms = BarlowTwinsLoss().terms(z)
    assert terms.invariance.item() == pytest.approx(0, abs=1e-12)
    assert terms.redundancy.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(9, 3, 5), (5, 3, 9)])
def test_scale_and_shift_of_a_dimension_do_not_matter(shape):
    z = 1e5 * embeddings(*shape)
    scale = torch.rand(shape[2], dtype=torch.float64) + 0.5
    loss = BarlowTwinsLoss()
    moved = z * scale + torch.randn(shape[2], dtype=torch.float64)
    assert loss(moved).item() == pytest.approx(loss(z).item(), rel=1e-8)
    assert relative(gradient(loss, moved), gradient(loss, z) / scale) < 1e-8


def test_both_ways_to_form_products_agree():
    """Rows repeated until they outnumber dimensions have the same correlations."""
    z = embeddings(4, 3, 9)
    assert BarlowTwinsLoss()(z.repeat(3, 1, 1)).item() == pytest.approx(BarlowTwinsLoss()(z).item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 2, 5), (5, 2, 9)])
def test_against_lightly(shape):
    lightly = pytest.importorskip("lightly.loss")
    z = embeddings(*shape)
    torch.testing.assert_close(BarlowTwinsLoss()(z), lightly.BarlowTwinsLoss()(z[:, 0], z[:, 1]))
