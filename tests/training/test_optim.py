"""Learning rates against values computed by hand, and weight decay on weights only."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import tiny
from ssole import runtime
from ssole.config import OptimConfig, apply_overrides
from ssole.training import muon
from ssole.training.optim import OPTIMIZERS, create_optimizer, learning_rate, set_learning_rate
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
    monkeypatch.setattr(muon, "polar", lambda m, dtype: asked.append(dtype) or m)
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
