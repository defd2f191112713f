"""SimCLRLoss against a loop over rows, closed cases and invariances."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import SimCLRLoss


def two_view_loss(a: list[list[float]], b: list[list[float]], t: float) -> float:
    """Equation 1 of the paper, row by row: 2 B rows, each with 1 partner and 2 B - 2 negatives."""
    rows = [[x / math.hypot(*row) for x in row] for row in (*a, *b)]
    n, total = len(a), 0.0
    for i, row in enumerate(rows):
        similarity = [sum(x * y for x, y in zip(row, other, strict=True)) / t for other in rows]
        denominator = sum(math.exp(similarity[k]) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(similarity[(i + n) % (2 * n)]) / denominator)
    return total / (2 * n)


@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 2, 4), (4, 3, 6), (3, 5, 2)])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_against_the_paper_pair_by_pair(shape, temperature):
    z = embeddings(*shape)
    pairs = list(itertools.combinations(range(shape[1]), 2))
    expected = sum(two_view_loss(z[:, v].tolist(), z[:, w].tolist(), temperature) for v, w in pairs) / len(pairs)
    terms = SimCLRLoss(temperature=temperature).terms(z)
    assert terms.total.item() == pytest.approx(expected, rel=1e-12)
    assert terms.total.item() == pytest.approx(float(terms.alignment + terms.spread), rel=1e-15)


def test_collapse_is_a_random_guess_among_the_others():
    terms = SimCLRLoss(temperature=0.3).terms(torch.ones(6, 4, 3, dtype=torch.float64))
    assert terms.total.item() == pytest.approx(math.log(11), rel=1e-12)
    assert terms.alignment.item() == pytest.approx(-1 / 0.3, rel=1e-12)


def test_equal_views_of_orthonormal_images():
    z = torch.eye(6, 9, dtype=torch.float64)[:, None].expand(6, 3, 9)
    terms = SimCLRLoss(temperature=0.5).terms(z)
    assert terms.alignment.item() == pytest.approx(-2, rel=1e-12)
    assert terms.spread.item() == pytest.approx(math.log(math.exp(2) + 10), rel=1e-12)


def test_lengths_and_rotations_do_not_matter():
    z = embeddings(6, 3, 8)
    lengths = torch.rand(6, 3, 1, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    loss, g = SimCLRLoss(), gradient(SimCLRLoss(), z)
    for moved, expected in ((z * lengths, g / lengths), (z @ rotation, g @ rotation)):
        assert loss(moved).item() == pytest.approx(loss(z).item(), rel=1e-12)
        assert relative(gradient(loss, moved), expected) < 1e-10


def test_low_temperatures_stay_finite():
    z = embeddings(6, 2, 8, dtype=torch.float32)
    assert SimCLRLoss(temperature=1e-3)(z).isfinite()
    assert gradient(SimCLRLoss(temperature=1e-3), z).isfinite().all()


def test_against_lightly():
    lightly = pytest.importorskip("lightly.loss")
    z = embeddings(7, 2, 5)
    expected = lightly.NTXentLoss(temperature=0.2)(z[:, 0], z[:, 1])
    torch.testing.assert_close(SimCLRLoss(temperature=0.2)(z), expected)
