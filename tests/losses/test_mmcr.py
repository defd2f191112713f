"""MMCRLoss against singular values, closed cases and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import embeddings, gradient, norm, relative

from ssole.losses import MMCRLoss


@pytest.mark.parametrize("shape", [(2, 2, 3), (9, 2, 4), (4, 3, 7), (5, 8, 5)])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_against_singular_values(shape, weight):
    z = embeddings(*shape)
    images = [[row / np.linalg.norm(row) for row in image] for image in z.numpy()]
    centroids = np.stack([np.mean(image, axis=0) for image in images])
    expected = np.linalg.svd(centroids, compute_uv=False).sum()
    local = np.mean([np.linalg.svd(np.stack(image), compute_uv=False).sum() for image in images])
    terms = MMCRLoss(local_weight=weight).terms(z)
    assert terms.centroids.item() == pytest.approx(expected, rel=1e-12)
    assert terms.local.item() == pytest.approx(local, rel=1e-12)
    assert terms.total.item() == pytest.approx(weight * local - expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradient_against_polar_factors(dtype, weight):
    def oracle(z):
        z = z / z.norm(dim=-1, keepdim=True)
        return weight * norm(z).mean() - norm(z.mean(1))

    z = embeddings(8, 3, 12)
    assert relative(gradient(MMCRLoss(local_weight=weight), z.to(dtype)), gradient(oracle, z)) < (
        1e-5 if dtype == torch.float32 else 1e-9
    )


def test_collapse_and_the_optimum():
    collapsed = MMCRLoss().terms(torch.full((6, 4, 9), 2.0, dtype=torch.float64))
    assert collapsed.total.item() == pytest.approx(-math.sqrt(6))
    assert collapsed.local.item() == pytest.approx(math.sqrt(4))
    best = MMCRLoss().terms(3 * torch.eye(6, 9, dtype=torch.float64)[:, None].expand(6, 4, 9))
    assert best.total.item() == pytest.approx(-6)


def test_lengths_and_rotations_do_not_matter():
    z = embeddings(6, 3, 8)
    lengths = torch.rand(6, 3, 1, dtype=torch.float64) + 0.1
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    loss = MMCRLoss(local_weight=0.2)
    g = gradient(loss, z)
    for moved, expected in ((z * lengths, g / lengths), (z @ rotation, g @ rotation)):
        assert loss(moved).item() == pytest.approx(loss(z).item(), rel=1e-12)
        assert relative(gradient(loss, moved), expected) < 1e-9


def test_against_lightly():
    lightly = pytest.importorskip("lightly.loss.mmcr_loss")
    z = embeddings(7, 4, 9)
    z = z / z.norm(dim=-1, keepdim=True)  # which lightly leaves to its caller
    torch.testing.assert_close(MMCRLoss(local_weight=0.01)(z), lightly.MMCRLoss(lmda=0.01)(z[:, :2], z[:, 2:]))
