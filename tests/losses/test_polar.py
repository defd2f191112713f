"""The route of accelerators, run here on the CPU: products of matrices only."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import gradient, polar_factor, relative, with_condition

from ssole import losses
from ssole.losses import SSOLELoss
from ssole.losses.polar import best_quintic, polar_root, quintics
from ssole.losses.roots import inverse_root


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.0), (0.05, 1.9), (0.5, 1.5), (0.9, 1.1)])
def test_best_quintic_equioscillates(low, high):
    a, b, c, error = best_quintic(low, high)
    s = torch.linspace(low, high, 200_001, dtype=torch.float64)
    deviation = 1 - (a * s + b * s**3 + c * s**5)
    assert deviation.abs().max().item() == pytest.approx(error, rel=1e-3)
    # Chebyshev: four alternating extremes of equal size make it the best.
    signs = torch.sign(deviation[deviation.abs() > error * (1 - 1e-3)])
    assert [sign for sign, _ in itertools.groupby(signs.tolist())] == [1, -1, 1, -1]


def test_steps_bring_every_singular_value_to_one():
    s = torch.logspace(-6, 0, 100_001, dtype=torch.float64)
    for a, b, c in quintics(1e-6):
        s = a * s + b * s**3 + c * s**5
    assert (s - 1).abs().max() < 1e-11
    assert len(quintics(1e-6)) <= 13


@pytest.mark.parametrize("k", [3, 7, 40])
@pytest.mark.parametrize("kappa", [1.0, 1e2, 1e4, 1e6])
def test_against_eigh(k, kappa):
    x = with_condition(k, 2 * k, kappa)
    g = (x @ x.mT)[None]
    trace, root = polar_root(g)
    assert trace.item() == pytest.approx(torch.linalg.svdvals(x).sum().item(), rel=1e-9)
    assert torch.equal(root, root.mT)
    # Forming G alone costs 1e-16 kappa^2.
    assert relative(root[0] @ x, polar_factor(x)) < 1e-11 + 1e-15 * kappa**2


def test_null_modes_stay_out_and_zero_stays_zero():
    x = torch.ones(5, 8, dtype=torch.float64)
    g = torch.stack([x @ x.mT, torch.zeros(5, 5, dtype=torch.float64)])
    trace, root = polar_root(g)
    assert trace[1] == 0
    assert root.isfinite().all()
    assert relative(root[0] @ x, x / x.norm()) < 1e-8


def test_loss_takes_this_route_to_the_same_place(monkeypatch):
    z = torch.randn(24, 5, 32, generator=torch.Generator().manual_seed(0))
    value, its_gradient = SSOLELoss()(z), gradient(SSOLELoss(), z)
    taken = []

    def route(g):
        taken.append(g.shape)
        return polar_root(g) if g.shape[-1] > 2 else inverse_root(g)

    monkeypatch.setattr(losses.unit, "inverse_root", route)
    torch.testing.assert_close(SSOLELoss()(z), value, rtol=1e-7, atol=0)
    assert relative(gradient(SSOLELoss(), z), its_gradient) < 1e-6
    assert (5, 24, 24) in taken
    assert (24, 4, 4) in taken


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device_without_synchronizing():
    z = torch.randn(64, 4, 128, generator=torch.Generator().manual_seed(0))
    on_device = z.cuda().requires_grad_()
    loss = SSOLELoss(check_input=False)
    loss(on_device).backward()  # libraries initialize
    on_device.grad = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(on_device)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(value.cpu(), SSOLELoss()(z), rtol=1e-6, atol=0)
    assert relative(on_device.grad.cpu(), gradient(SSOLELoss(), z)) < 1e-6
