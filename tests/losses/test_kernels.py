"""Kernels as torch.compile and accelerators run them: one graph, no waiting, and no float64 where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from fake_mps import OnMps, use_fake_mps
from oracle import embeddings, gradient, relative
from torch import Tensor

import ssole
from ssole.losses import LOSSES, SSOLELoss
from ssole.losses.base import EmbeddingError


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_compile_as_one_graph():
    z = embeddings(8, 4, 16, dtype=torch.float32)
    loss = SSOLELoss()
    compiled = torch.compile(loss, fullgraph=True)
    leaf = z.clone().requires_grad_()
    value = compiled(leaf)
    value.backward()
    torch.compiler.reset()
    torch.testing.assert_close(value, loss(z), rtol=1e-6, atol=0)
    assert relative(leaf.grad, gradient(loss, z)) < 1e-6


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


def norms(z: Tensor) -> Tensor:
    return ssole.nuclear_norm(z).sum()


@pytest.mark.parametrize(
    "loss",
    [norms, ssole.OLELoss(), ssole.SSOLELoss(), ssole.SSOLELoss(temperature=0.2, low_rank_norm="frobenius"), "w-mse"],
)
def test_value_and_gradient_on_an_apple_gpu_are_those_of_a_cpu(
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


def test_an_embedding_of_length_zero_on_an_apple_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_mps(monkeypatch)
    z = torch.ones(4, 2, 8)
    z[1, 0] = 0
    with pytest.raises(EmbeddingError, match=r"at index \(1, 0\)"):
        LOSSES["simclr"]()(z.as_subclass(OnMps))
