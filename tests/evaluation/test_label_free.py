"""Label-free figures: closed cases and naive definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssole.evaluation import label_free
from ssole.evaluation.label_free import alignment, centred_effective_rank, rankme, uniformity


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
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_large_sets_are_measured_on_a_fixed_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3000, 6)
    whole = rankme(x)
    monkeypatch.setattr(label_free, "SAMPLE", 500)
    assert rankme(x) == rankme(x) != whole
    assert rankme(x) == pytest.approx(whole, rel=0.02)
    assert rankme(x, seed=1) != rankme(x)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="compares images and got 1"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        alignment(torch.ones(4, 3), torch.ones(5, 3))
    for measure in (rankme, centred_effective_rank, uniformity):
        with pytest.raises(ValueError, match="NaN or infinity in 1 of 3 rows, the first being row 2"):
            measure(torch.tensor([[0.0], [1.0], [torch.nan]]))
