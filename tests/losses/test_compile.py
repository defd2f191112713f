"""SSOLELoss under torch.compile, as one graph."""

from __future__ import annotations

import shutil

import pytest
import torch
from oracle import embeddings, gradient, relative

from ssole.losses import SSOLELoss


@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_compile():
    z = embeddings(8, 4, 16, dtype=torch.float32)
    loss = SSOLELoss()
    compiled = torch.compile(loss, fullgraph=True)
    leaf = z.clone().requires_grad_()
    value = compiled(leaf)
    value.backward()
    torch.compiler.reset()
    torch.testing.assert_close(value, loss(z), rtol=1e-6, atol=0)
    assert relative(leaf.grad, gradient(loss, z)) < 1e-6
