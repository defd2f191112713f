"""LeJEPALoss against loops over slices and knots, an exact integral, and closed cases."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from oracle import embeddings
from scipy import integrate

from ssole.losses import LeJEPALoss


def drawn_slices(dims: int, slices: int, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    a = torch.randn(dims, slices).double().numpy()
    return a / np.linalg.norm(a, axis=0)


def error(x: np.ndarray, t: float) -> float:
    """|empirical - Gaussian characteristic function|^2, times the Gaussian window."""
    gaussian = math.exp(-(t**2) / 2)
    return abs(sum(cmath.exp(1j * t * value) for value in x) / len(x) - gaussian) ** 2 * gaussian


@pytest.mark.parametrize(("knots", "domain"), [(17, 5.0), (2, 1.0), (3, 1.0), (8, 3.0)])
@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 3, 4)])
def test_against_loops(shape, knots, domain):
    z = embeddings(*shape)
    a = drawn_slices(shape[2], 6, seed=3)
    grid = np.linspace(-domain, domain, knots)
    statistics = []
    for v in range(shape[1]):
        for s in range(6):
            x = z[:, v].numpy() @ a[:, s]
            heights = [error(x, t) for t in grid]
            area = sum((p + q) / 2 * (grid[1] - grid[0]) for p, q in zip(heights[1:], heights[:-1], strict=True))
            statistics.append(shape[0] * area)
    invariance = float(np.mean((z.numpy() - z.numpy().mean(1, keepdims=True)) ** 2))
    torch.manual_seed(3)
    terms = LeJEPALoss(sigreg_weight=0.2, slices=6, knots=knots, domain=domain).terms(z)
    assert terms.sigreg.item() == pytest.approx(np.mean(statistics), rel=1e-6)  # slices are float32
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-12)
    assert terms.total.item() == pytest.approx(float(0.8 * terms.invariance + 0.2 * terms.sigreg), rel=1e-12)


def test_the_published_rule_is_close_to_the_integral():
    x = np.array([-1.3, 0.2, 0.4, 2.0])
    exact = 4 * integrate.quad(lambda t: error(x, t), -np.inf, np.inf)[0]
    z = torch.tensor(x)[:, None, None].expand(4, 2, 1)  # in one dimension every slice is the same up to its sign
    assert LeJEPALoss(slices=5).terms(z).sigreg.item() == pytest.approx(exact, rel=1e-3)


def test_gaussian_embeddings_have_the_expected_statistic():
    """With n Gaussian values, the mean of |phi - exp(-t^2 / 2)|^2 is (1 - exp(-t^2)) / n."""
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    z = torch.randn(100, 60, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = LeJEPALoss(slices=64)
    assert loss.terms(z).sigreg.item() == pytest.approx(expected, rel=0.05)
    for wrong in (2 * z, 0.5 * z, z + 1, z.abs(), z.sign() * 3):
        assert loss.terms(wrong).sigreg > 2 * expected


def test_collapse_grows_with_the_batch():
    zeros = torch.zeros(10, 2, 5, dtype=torch.float64)
    exact = integrate.quad(lambda t: (1 - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2), -np.inf, np.inf)[0]
    terms = LeJEPALoss().terms(zeros)
    assert terms.sigreg.item() == pytest.approx(10 * exact, rel=1e-3)
    assert terms.invariance == 0


def test_slices_are_drawn_anew_from_the_global_generator():
    z, loss = embeddings(6, 2, 8), LeJEPALoss(slices=4)
    torch.manual_seed(5)
    first, second = loss(z).item(), loss(z).item()
    torch.manual_seed(5)
    assert loss(z).item() == first
    assert second != first


def test_against_lightly():
    lightly = pytest.importorskip("lightly.loss.lejepa_loss")
    z = embeddings(9, 3, 6, dtype=torch.float32)
    torch.manual_seed(7)
    # Their 17 knots are those of [0, 3], the right half of ours.
    value = LeJEPALoss(slices=20, knots=33, domain=3.0).terms(z).sigreg
    torch.manual_seed(7)
    torch.testing.assert_close(value, lightly.SIGReg(num_vectors=20)(z.transpose(0, 1)), rtol=1e-5, atol=0)
