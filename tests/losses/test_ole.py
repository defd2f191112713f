"""OLELoss: formula, labels, gradient and errors."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import embeddings, gradient, norm, relative

from ssole.losses import OLELoss


def plain(z: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    classes = sum(norm(z[labels == c]).clamp(min=margin) for c in set(labels.tolist()))
    return (classes - norm(z)) / len(z)


def test_supervised_formula_and_gradient():
    z = embeddings(12, 1, 10)[:, 0]
    labels = torch.tensor([3, -1, 3, 7, 7, 7, -1, 3, 3, 7, -1, 100])
    assert OLELoss()(z, labels).item() == pytest.approx(plain(z, labels).item(), rel=1e-12)
    assert relative(gradient(lambda x: OLELoss()(x, labels), z), gradient(lambda x: plain(x, labels), z)) < 1e-9
    assert relative(gradient(lambda x: OLELoss()(x, labels), z.float()), gradient(lambda x: plain(x, labels), z)) < 1e-5


def test_each_image_its_own_class():
    z = embeddings(5, 3, 20)
    labels = torch.arange(5).repeat_interleave(3)
    assert OLELoss()(z).item() == pytest.approx(plain(z.flatten(0, 1), labels).item(), rel=1e-12)
    assert OLELoss()(z, torch.arange(5)).item() == pytest.approx(OLELoss()(z).item(), rel=1e-12)


def test_orthogonal_classes_reach_zero_and_gradcheck():
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    z = torch.stack(
        [torch.randn(3, 4, dtype=torch.float64) @ basis[:4], torch.randn(3, 4, dtype=torch.float64) @ basis[4:]]
    )
    assert OLELoss()(z).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(OLELoss(), (embeddings(3, 2, 8).requires_grad_(),))


def test_below_the_margin_a_class_is_not_pushed():
    z = 1e-3 * embeddings(2, 2, 8)
    pushed = gradient(OLELoss(margin=1.0), z)
    only_high = gradient(lambda x: -norm(x.flatten(0, 1)) / 4, z)
    assert relative(pushed, only_high) < 1e-9


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        (torch.ones(4), None, r"\(4,\)"),
        (torch.ones(4, 8), None, r"without labels.*\(4, 8\)"),
        (torch.ones(0, 8), torch.ones(0, dtype=torch.int64), r"\(0, 8\)"),
        (torch.ones(4, 8, dtype=torch.int32), torch.arange(4), "torch.int32"),
        (torch.ones(4, 8), torch.arange(3), r"\(4,\).*\(3,\)"),
        (torch.ones(4, 8), torch.rand(4), "torch.float32"),
        (torch.ones(4, 8), [0, 1, 0, 1], "labels must be a torch.Tensor, got list"),
        ([[1.0, 2.0]], torch.zeros(1, dtype=torch.int64), "embeddings must be a torch.Tensor, got list"),
        (torch.full((2, 2, 8), math.nan), None, "32 NaN"),
    ],
)
def test_bad_input_is_quoted(z, labels, message):
    with pytest.raises(ValueError, match=message):
        OLELoss()(z, labels)


@pytest.mark.parametrize("margin", [-1.0, math.inf, math.nan])
def test_bad_margin_is_quoted(margin):
    with pytest.raises(ValueError, match=f"margin.*{margin}"):
        OLELoss(margin)


def test_terms_add_up():
    z = embeddings(5, 3, 20)
    terms = OLELoss().terms(z)
    assert torch.equal(terms.total, OLELoss()(z))
    assert terms.total.item() == pytest.approx(float(terms.low_rank - terms.high_rank), rel=1e-12)
    assert terms.high_rank.item() == pytest.approx(norm(z.flatten(0, 1)).item() / 15, rel=1e-12)
