"""Effective rank: closed cases and the definition by singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ssole.spectrum import effective_rank


def test_closed_cases() -> None:
    assert effective_rank(torch.eye(12, 40)) == pytest.approx(12)
    assert effective_rank(F.normalize(torch.ones(12, 40), dim=1)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(6).repeat(5, 1)) == pytest.approx(6)
    assert effective_rank(torch.zeros(5, 3)) == 0
    assert effective_rank(torch.eye(4)).dtype == torch.float64


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (8, 8)])
@pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-2])
def test_it_follows_the_definition(shape: tuple[int, int], eps: float) -> None:
    x = F.normalize(torch.randn(shape), dim=1)
    singular = torch.linalg.svdvals(x.double())
    p = singular / singular.sum() + eps
    assert effective_rank(x, eps=eps) == pytest.approx(math.exp(-(p * p.log()).sum()))
    assert effective_rank(7 * x, eps=eps) == pytest.approx(float(effective_rank(x, eps=eps)))


def test_values_that_are_not_finite_stay_visible() -> None:
    x = torch.ones(3, 3)
    x[0, 0] = torch.nan
    try:
        rank = effective_rank(x)
    except torch.linalg.LinAlgError:  # some routines refuse them
        return
    assert rank.isnan()
