"""Muon against timm's, which takes one matrix at a time, and its Newton-Schulz steps against an SVD."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm.optim.muon
import torch
from torch import nn

from ssole.training import muon
from ssole.training.muon import Muon, is_matrix, polar


def model() -> nn.Module:
    """Matrices of equal and other shapes, wide and tall; convolutions; biases; and what is too narrow for Muon."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(8, 8, 3) for _ in range(3)),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.BatchNorm2d(16),
        nn.Linear(16, 5),
        nn.Linear(5, 16),
        nn.Linear(16, 5),
        nn.Linear(5, 3),
        nn.Linear(600, 4),
    )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def groups(network: nn.Module) -> list[dict[str, Any]]:
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("batched", [True, False])
def test_the_updates_are_those_of_timm(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32 = partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", in_float32)
    ours, theirs = model(), model()
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.95, "betas": (0.9, 0.95)}
    optimizer = Muon(groups(ours), **settings, dtype=torch.float32, batched=batched)
    reference = timm.optim.muon.Muon(groups(theirs), **settings)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        optimizer.step()
        reference.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert [is_matrix(p) for p in ours.parameters()] == [reference.state[q]["use_muon"] for q in theirs.parameters()]


def test_a_rate_on_the_device_is_as_good_as_a_number() -> None:
    ours, theirs = model(), model()
    for network, lr in ((ours, torch.tensor(0.05)), (theirs, 0.05)):
        optimizer = Muon(groups(network), lr=lr, momentum=0.9, betas=(0.9, 0.95))
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_parameters_without_a_gradient_stay() -> None:
    network = model()
    before = [p.detach().clone() for p in network.parameters()]
    Muon(groups(network), lr=0.1, momentum=0.9, betas=(0.9, 0.95)).step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (4, 6, 20)])
def test_the_steps_bring_singular_values_near_one(shape: tuple[int, ...]) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -2.5, 6, dtype=torch.float64)
    m = (u * values) @ vh
    got = polar(m, torch.float64)
    singular = torch.linalg.svdvals(got)
    assert 0.97 < float(singular.min()) <= float(singular.max()) < 1.15
    torch.testing.assert_close((u.mT @ got @ vh.mT).diagonal(dim1=-2, dim2=-1).sort().values, singular.sort().values)


@pytest.mark.parametrize("decay", [0.0, -4.0, -20.0])  # the last has a rank of about 10 in float32
def test_wide_matrices_in_float32(decay: float) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(32, 256, dtype=torch.float64), full_matrices=False)
    m = (u * torch.logspace(0, decay, 32, dtype=torch.float64)) @ vh
    expected = muon._polar(m / m.norm())
    got = polar(m.float(), torch.float32).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    assert float((got - expected).norm() / expected.norm()) < 1e-3
    assert not polar(torch.zeros(32, 256), torch.float32).any()


def test_a_closure_is_called_first_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.ones(8, 8))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, betas=(0.9, 0.95), dtype=torch.float32)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 64
    assert not torch.equal(weight, torch.ones(8, 8))
