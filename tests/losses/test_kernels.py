"""Kernels as torch.compile and accelerators run them: one graph, and no waiting."""

from __future__ import annotations

import shutil

import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import SSOLELoss


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
