"""WMSELoss against numpy's whitening, closed cases, invariances, sub-batches and errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import WMSELoss


def whitened(x: np.ndarray, shrinkage: float) -> np.ndarray:
    """Rows with the inverse of the Cholesky factor of the shrunk covariance applied, one by one."""
    n, d = x.shape
    mean = sum(x) / n
    covariance = sum(np.outer(row - mean, row - mean) for row in x) / (n - 1)
    inverse = np.linalg.inv(np.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * np.eye(d)))
    return np.stack([inverse @ (row - mean) for row in x])


def plain_loss(z: np.ndarray, shrinkage: float = 0.0) -> float:
    """Mean over pairs of views and images of the squared distance of normalised whitened embeddings."""
    views = [whitened(z[:, v], shrinkage) for v in range(z.shape[1])]
    distances = [
        np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
        for x, y in itertools.combinations(views, 2)
        for a, b in zip(x, y, strict=True)
    ]
    return float(np.mean(distances))


@pytest.mark.parametrize("shape", [(5, 2, 2), (9, 2, 4), (11, 4, 5)])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_against_numpy(shape, shrinkage):
    z = embeddings(*shape)
    terms = WMSELoss(shrinkage=shrinkage).terms(z)
    assert terms.total.item() == pytest.approx(plain_loss(z.numpy(), shrinkage), rel=1e-10)
    assert terms.total.item() == pytest.approx(2 - 2 * terms.cosine.item(), rel=1e-12)


def test_equal_views_cost_nothing_and_opposite_views_four():
    z = embeddings(9, 1, 4)
    assert WMSELoss()(z.expand(9, 3, 4)).item() == pytest.approx(0, abs=1e-12)
    assert WMSELoss()(torch.cat([z, -z], 1)).item() == pytest.approx(4)


def test_scale_and_shift_do_not_matter():
    z = embeddings(9, 3, 4)
    triangular = torch.tril(torch.rand(4, 4, dtype=torch.float64)) + torch.eye(4, dtype=torch.float64)
    assert WMSELoss()(z @ triangular.T + 5).item() == pytest.approx(WMSELoss()(z).item(), rel=1e-9)
    assert relative(gradient(WMSELoss(), 3 * z), gradient(WMSELoss(), z) / 3) < 1e-9


def test_sub_batches_are_a_random_split_of_the_whole_batch():
    z = embeddings(11, 2, 2)
    torch.manual_seed(0)
    value = WMSELoss(subset_size=5)(z).item()
    torch.manual_seed(0)
    order = torch.rand(11).argsort()
    parts = [z[order[:6]], z[order[6:]]]
    expected = sum(len(part) * plain_loss(part.numpy()) for part in parts) / 11
    assert value == pytest.approx(expected, rel=1e-10)
    assert value != pytest.approx(plain_loss(z.numpy()), rel=1e-3)
    assert WMSELoss(subset_size=5)(z).item() != pytest.approx(value, rel=1e-6)  # the next draw


def test_iterations_average_over_splits():
    z = embeddings(12, 2, 2)
    torch.manual_seed(0)
    each = [WMSELoss(subset_size=4)(z).item() for _ in range(3)]
    torch.manual_seed(0)
    assert WMSELoss(subset_size=4, iterations=3)(z).item() == pytest.approx(sum(each) / 3, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (8, 2, 8), r"more than 8 images, better 16 or more, got 8 images.*projector of 4 dimensions.*64"),
        ({"subset_size": 4}, (32, 2, 4), r"subset_size of more than 4 images.*got 32 images and subset_size=4"),
    ],
)
def test_too_few_images_say_what_to_do(options, shape, message):
    with pytest.raises(ValueError, match=message):
        WMSELoss(**options)(torch.randn(shape))


def test_dimensions_that_cannot_be_whitened():
    z = embeddings(12, 2, 3)
    z[..., 2] = 0
    with pytest.raises(ValueError, match=r"3 dimensions over 6 images is singular.*shrinkage"):
        WMSELoss()(z)
    assert gradient(WMSELoss(shrinkage=1e-3), z).isfinite().all()
    collapsed = WMSELoss(shrinkage=1e-3)(torch.ones(12, 2, 3)).item()
    assert collapsed == pytest.approx(2)  # as bad as orthogonal views


@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_of_dependent_dimensions_are_not_whitened(mean, dtype):
    z = embeddings(80, 2, 40)
    z[..., -1] = z[..., :-1].sum(-1)
    z = (z + mean).to(dtype)
    with pytest.raises(ValueError, match="is singular"):
        WMSELoss()(z)
    assert WMSELoss(check_input=False)(z).isnan()


def test_float32_embeddings_of_high_condition():
    z = embeddings(40, 2, 8) @ torch.diag(torch.logspace(0, -4, 8, dtype=torch.float64))
    loss = WMSELoss(subset_size=40)
    assert relative(gradient(loss, z.float()), gradient(loss, z.float().double())) < 1e-5


def test_against_lightly():
    lightly = pytest.importorskip("lightly.loss.wmse_loss")
    z = embeddings(16, 3, 4, dtype=torch.float32)
    theirs = lightly.WMSELoss(embedding_dim=4, w_size=16, num_samples=3, track_running_stats=False)
    torch.testing.assert_close(WMSELoss(subset_size=16)(z), theirs(z.transpose(0, 1).flatten(0, 1)), rtol=1e-4, atol=0)
