"""Learning rates against values computed by hand, weight decay on weights only; Muon against timm's and an SVD."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import timm.optim.muon
import torch
from torch import nn

import tiny
from ssole import runtime
from ssole.config import OptimConfig, apply_overrides
from ssole.training import optim
from ssole.training.optim import OPTIMIZERS, Muon, create_optimizer, is_matrix, learning_rate, polar, set_learning_rate
from ssole.training.step import Learner


def test_warmup_then_cosine() -> None:
    config = OptimConfig(warmup_steps=10, lr=2.0, final_lr=0.2)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[10 + 33] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi / 3)))
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_between_two_steps_the_rate_does_not_exceed_its_peak() -> None:
    """A budget of time sets steps that are no whole numbers."""
    config = OptimConfig(warmup_steps=5, lr=2.0, final_lr=0.2)
    assert max(learning_rate(step / 10, 20, config) for step in range(200)) == 2.0


def test_a_run_of_one_step_and_one_that_is_all_warmup() -> None:
    assert learning_rate(0, 1, OptimConfig(lr=2.0, final_lr=0.1)) == 2.0
    assert learning_rate(4, 5, OptimConfig(warmup_steps=10, lr=2.0, final_lr=0.1)) == 1.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_weights_and_leaves_biases_and_norms(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    nn.init.ones_(model[3].bias)  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = create_optimizer(model, OptimConfig(name=name, lr=0.1, weight_decay=0.5))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in model.named_parameters():
        if value.ndim >= 2:
            assert value.norm() < before[key].norm()
        else:
            assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_in_which_only_biases_are_trained(name: str) -> None:
    model = nn.Linear(3, 4)
    model.weight.requires_grad_(False)
    optimizer = create_optimizer(model, OptimConfig(name=name, lr=0.1))  # type: ignore[arg-type]
    model.bias.grad = torch.ones(4)
    before = model.bias.clone()
    optimizer.step()
    assert (model.bias < before).all()


def test_every_parameter_is_in_one_group_and_gets_the_rate() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = create_optimizer(model, OptimConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_learning_rates_of_layers() -> None:
    settings = {"optim.layer_decay": 0.5, "model.frozen_stages": 0}
    learner = Learner(apply_overrides(tiny.config(), settings), torch.device("cpu"))
    set_learning_rate(learner.optimizer, 2.0)
    rates = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    found = {name: rates.get(id(p)) for name, p in learner.encoder.named_parameters()}
    assert found["backbone.conv1.weight"] is None
    assert [found[f"backbone.layer{n}.0.bn1.bias"] for n in (1, 4)] == [2.0 * 0.5**4, 2.0 * 0.5]
    assert found["projector.0.weight"] == 2.0
    assert len(rates) == len([p for p in learner.modules.parameters() if p.requires_grad])


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_emulates_no_bfloat16(native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_cpu_multiplies_bfloat16", lambda: native)
    asked = []
    monkeypatch.setattr(optim, "polar", lambda m, dtype: asked.append(dtype) or m)
    layer = nn.Linear(8, 8, bias=False)
    optimizer = create_optimizer(layer, OptimConfig(name="muon"))
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert asked == [dtype]


@pytest.mark.parametrize("weight_decay", [0.0, 1e-6])
def test_lars_adapts_matrices_to_their_norm_with_and_without_weight_decay(weight_decay: float) -> None:
    steps = []
    for scale in (1.0, 100.0):  # of the gradient, which the adapted rate divides out
        layer = nn.Linear(3, 4)
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = create_optimizer(layer, OptimConfig(name="lars", lr=0.1, momentum=0.0, weight_decay=weight_decay))
        layer.weight.grad, layer.bias.grad = torch.full((4, 3), scale), torch.full((4,), scale)
        optimizer.step()
        steps.append((1 - layer.weight[0, 0].item(), -layer.bias[0].item()))
    (small, small_bias), (large, large_bias) = steps
    assert large == pytest.approx(small, rel=1e-3)
    assert large_bias == pytest.approx(100 * small_bias, rel=1e-3)


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
    expected = optim._polar(m / m.norm())
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
