"""The batch norm that compiles well is the ordinary one: same outputs, gradients, statistics and names."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from ssole.models.cpu import CompiledBatchNorm2d, _Normalize, make_batch_norm_compile_well


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    """The compiler gives up on a function, and runs it as it is, after eight versions."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(module: nn.Module) -> nn.Module:
    """Through the compiler's front end, without a C++ compiler."""
    module.compile(backend="aot_eager", fullgraph=True)
    return module


def refuse(*_: object) -> torch.Tensor:
    raise AssertionError("this is the ordinary route")


def norm(channels: int, dtype: torch.dtype) -> nn.BatchNorm2d:
    """With weights and statistics that are not those it starts with."""
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(channels, momentum=0.3)
    for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
    return bn.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (2, 3, 1, 1), (1, 2, 3, 3)])
def test_outputs_gradients_and_statistics_are_those_of_batch_norm(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = norm(shape[1], dtype)
    fast = compiled(CompiledBatchNorm2d(copy.deepcopy(plain)))
    x = (3 + 5 * torch.randn(shape, dtype=dtype)).to(memory_format=torch.channels_last)
    g = torch.randn(shape, dtype=dtype)
    results = []
    for module in (plain, fast):
        y = module(x.requires_grad_())
        results.append([y, *torch.autograd.grad(y, [x, module.weight, module.bias], g), *module.buffers()])
        monkeypatch.setattr(nn.BatchNorm2d, "forward", refuse)
    tolerance = 1e-11 if dtype is torch.float64 else 2e-5
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_gradient_by_central_differences() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2, 3, 2), 2, 2))
    assert torch.autograd.gradcheck(lambda *a: _Normalize.apply(*a, 1e-5)[0], (x, weight, bias))


def test_bfloat16_maps_far_from_zero_are_normalised_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    bn = nn.BatchNorm2d(1)
    x = (200 + torch.randn(8, 1, 16, 16)).bfloat16()  # spacing 1: the variance of what is left is 1.1
    expected = bn(x.float())
    monkeypatch.setattr(nn.BatchNorm2d, "forward", refuse)
    y = compiled(CompiledBatchNorm2d(copy.deepcopy(bn)))(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.01, atol=0.01)


def test_one_value_of_each_channel_is_an_error_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        CompiledBatchNorm2d(nn.BatchNorm2d(3))(torch.ones(1, 3, 1, 1))


def test_evaluation_and_uncompiled_training_take_the_ordinary_route() -> None:
    bn = norm(3, torch.float32)
    fast = CompiledBatchNorm2d(copy.deepcopy(bn))
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    assert type(fast(x).grad_fn) is type(bn(x).grad_fn)
    assert torch.equal(compiled(fast.eval())(x), bn.eval()(x))
    for (name, a), (other, b) in zip(bn.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_only_what_is_plainly_batch_norm_is_replaced() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, momentum=None), nn.SyncBatchNorm(2)
    )
    make_batch_norm_compile_well(model)
    assert [type(module) is CompiledBatchNorm2d for module in model] == [True, False, False, False]


def test_a_network_keeps_its_names() -> None:
    plain = timm.create_model("resnet18", num_classes=0, channels=[8, 8, 16, 16], layers=[1, 1, 1, 1])
    fast = make_batch_norm_compile_well(copy.deepcopy(plain))
    assert sum(isinstance(module, CompiledBatchNorm2d) for module in fast.modules()) == 13  # every one of it
    assert [*fast.state_dict()] == [*plain.state_dict()]
