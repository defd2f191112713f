"""FroSSLLoss against loops over images and dimensions, closed cases and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import FroSSLLoss


def plain_terms(z: list[list[list[float]]]) -> tuple[float, float]:
    """Regularization and invariance by eigenvalue-free sums over entries; z[i][v][j]."""
    n, views, d = len(z), len(z[0]), len(z[0][0])
    u = [[[0.0] * d for _ in range(views)] for _ in range(n)]
    for v in range(views):
        for j in range(d):
            length = math.hypot(*(z[i][v][j] for i in range(n)))
            for i in range(n):
                u[i][v][j] = z[i][v][j] / length
    regularization = 0.0
    for v in range(views):
        square = 0.0
        for j in range(d):
            for k in range(d):
                square += (sum(u[i][v][j] * u[i][v][k] for i in range(n)) / d) ** 2
        regularization += math.log(square)
    invariance = 0.0
    for i in range(n):
        for j in range(d):
            mean = sum(u[i][v][j] for v in range(views)) / views
            invariance += sum((u[i][v][j] - mean) ** 2 for v in range(views))
    # V * D * MSE of each view to the mean view, as in the authors' code.
    return regularization, views * d * invariance / (n * d)


@pytest.mark.parametrize("shape", [(2, 2, 3), (9, 2, 4), (4, 3, 7), (5, 4, 5)])
def test_against_loops(shape):
    z = embeddings(*shape)
    regularization, invariance = plain_terms(z.tolist())
    terms = FroSSLLoss(invariance_weight=1.4).terms(z)
    assert terms.regularization.item() == pytest.approx(regularization, rel=1e-12)
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-12)
    assert terms.total.item() == pytest.approx(regularization + 1.4 * invariance, rel=1e-12)


def test_collapse_and_the_optimum():
    terms = FroSSLLoss().terms(torch.full((6, 3, 5), -2.0, dtype=torch.float64))
    assert [term.item() for term in terms] == pytest.approx([0, 0, 0], abs=1e-12)
    for images, dims in ((8, 5), (5, 8)):
        basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q[:images, :dims]
        if images < dims:  # a tight frame: columns of equal length, and rows that are orthonormal up to scale
            basis = torch.eye(images, dtype=torch.float64).repeat(1, 2)
            dims = 2 * images
        terms = FroSSLLoss().terms(basis[:, None].expand(images, 3, dims))
        assert terms.regularization.item() == pytest.approx(-3 * math.log(min(images, dims)), rel=1e-12)
        assert terms.invariance.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(9, 3, 5), (5, 3, 9)])
def test_scale_of_a_dimension_does_not_matter(shape):
    z = embeddings(*shape)
    scale = torch.rand(shape[2], dtype=torch.float64) + 0.5
    assert FroSSLLoss()(z * scale).item() == pytest.approx(FroSSLLoss()(z).item(), rel=1e-10)
    assert relative(gradient(FroSSLLoss(), z * scale), gradient(FroSSLLoss(), z) / scale) < 1e-10


@pytest.mark.parametrize("shape", [(9, 2, 5), (5, 4, 9)])
def test_against_lightly(shape):
    lightly = pytest.importorskip("lightly.loss.frossl_loss")
    z = embeddings(*shape)
    torch.testing.assert_close(FroSSLLoss()(z), lightly.FroSSLLoss()(list(z.unbind(1))))
