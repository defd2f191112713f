"""Losses of embeddings on an Apple GPU (MPS), which has no float64: the values and gradients of a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fake_mps import OnMps, use_fake_mps
from torch import Tensor

import ssole
from ssole.losses import LOSSES
from ssole.losses.base import EmbeddingError


def norms(z: Tensor) -> Tensor:
    return ssole.nuclear_norm(z).sum()


@pytest.mark.parametrize(
    "loss",
    [norms, ssole.OLELoss(), ssole.SSOLELoss(), ssole.SSOLELoss(temperature=0.2, low_rank_norm="frobenius"), "w-mse"],
)
def test_value_and_gradient_are_those_of_a_cpu(
    loss: Callable[[Tensor], Tensor] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = LOSSES["w-mse"](subset_size=16) if isinstance(loss, str) else loss
    z = torch.randn(16, 3, 4 if isinstance(loss, str) else 16, generator=torch.Generator().manual_seed(0))
    use_fake_mps(monkeypatch)
    here, there = z.clone().requires_grad_(), z.clone().as_subclass(OnMps).requires_grad_()
    values = []
    for x in (here, there):
        torch.manual_seed(0)
        values.append(compute(x))
        assert (values[-1].device, values[-1].dtype) == (x.device, torch.float32)
        values[-1].backward()
    assert here.grad is not None
    assert there.grad is not None
    assert torch.equal(values[1].detach().cpu(), values[0].detach())
    assert torch.equal(there.grad.cpu(), here.grad)


def test_an_embedding_of_length_zero_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_mps(monkeypatch)
    z = torch.ones(4, 2, 8)
    z[1, 0] = 0
    with pytest.raises(EmbeddingError, match=r"at index \(1, 0\)"):
        LOSSES["simclr"]()(z.as_subclass(OnMps))
