"""Fast layers: same outputs, gradients, state and names as PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ssole.models.cpu import (
    CompiledBatchNorm2d,
    FastConv2d,
    _Normalize,
    speed_up_compiled_batch_norms,
    speed_up_convolutions,
)


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    """The compiler gives up on a function, and runs it as it is, after eight versions."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


SHAPES = [  # kernel, stride, padding, height, width of the image
    (3, 1, 1, 4, 4),
    (3, 2, 1, 8, 7),
    (1, 2, 0, 8, 8),
    (1, 1, 0, 1, 1),
    (3, 1, 1, 1, 3),
    (4, 2, 1, 6, 6),
    (2, 2, 0, 5, 5),
    ((3, 1), (1, 2), (1, 0), 4, 6),
    (1, 1, 1, 2, 2),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_and_its_gradients_are_those_of_autograd(kernel, stride, padding, height, width, layout) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, kernel, stride=stride, padding=padding, bias=False).double().to(memory_format=layout)
    x = torch.randn(3, 5, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = conv(x)
    g = torch.randn_like(expected)
    gx, gw = torch.autograd.grad(expected, [x, conv.weight], g)
    fast = FastConv2d(conv)
    y = fast(x)
    fx, fw = torch.autograd.grad(y, [x, fast.weight], g)
    assert "Convolve" in type(y.grad_fn).__name__  # the route under test was taken
    assert torch.equal(y, expected)
    assert torch.allclose(fx, gx, rtol=0, atol=1e-12)
    assert torch.allclose(fw, gw, rtol=0, atol=1e-12)
    assert fx.stride() == gx.stride()


def test_bfloat16_gradient_of_convolutions_is_as_exact_as_the_ordinary_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, padding=1, bias=False)
    x, g = torch.randn(64, 32, 4, 4), torch.randn(64, 64, 4, 4)
    exact = torch.nn.grad.conv2d_weight(x.double(), conv.weight.shape, g.double(), padding=1)

    def error(module: nn.Module) -> float:
        conv.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            module(x).backward(g.bfloat16())
        assert conv.weight.grad is not None
        assert conv.weight.grad.dtype is torch.float32
        return float((conv.weight.grad - exact).norm() / exact.norm())

    ours, ordinary = error(FastConv2d(conv)), error(conv)
    assert ours < 1.1 * ordinary
    assert ours < 0.01
    assert ordinary < 0.01  # 0.0096 on processors that emulate bfloat16


def test_large_maps_and_inference_take_the_ordinary_convolution() -> None:
    fast = FastConv2d(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    assert "Convolve" not in type(fast(torch.randn(2, 3, 5, 5)).grad_fn).__name__
    with torch.no_grad():
        assert torch.equal(fast(torch.ones(1, 3, 2, 2)), F.conv2d(torch.ones(1, 3, 2, 2), fast.weight, padding=1))


def test_a_network_of_fast_convolutions_keeps_its_names_weights_and_gradients() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=0, channels=[8, 8, 16, 16], layers=[1, 1, 1, 1]).double()
    fast = speed_up_convolutions(copy.deepcopy(plain))
    assert sum(isinstance(m, FastConv2d) for m in fast.modules()) == 13  # every convolution of it
    assert [*fast.state_dict()] == [*plain.state_dict()]
    x = torch.randn(4, 3, 48, 48, dtype=torch.float64)
    for model in (plain, fast):
        model.train()(x).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-9 * float(a.grad.abs().max())), name
    plain.load_state_dict(fast.state_dict(), strict=True)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=["groups", "dilation", "bias", "same", "reflect"],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    model = speed_up_convolutions(nn.Sequential(conv))
    assert model[0] is conv  # type: ignore[index]


@pytest.mark.parametrize(("images", "size", "stride"), [(3, 7, 1), (3, 8, 2), (130, 16, 1)])
@pytest.mark.parametrize("threads", [1, 2])
def test_bfloat16_gradient_of_1x1_convolutions_on_large_maps(images: int, size: int, stride: int, threads: int) -> None:
    torch.set_num_threads(threads)  # among which the rows of a long product are divided
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 1, stride=stride, bias=False)
    x = torch.randn(images, 8, size, size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = FastConv2d(conv)(x)
    g = torch.randn_like(y)
    assert "Convolve" in type(y.grad_fn).__name__
    y.backward(g)
    exact = torch.nn.grad.conv2d_weight(x.bfloat16().double(), conv.weight.shape, g.double(), stride=stride)
    assert conv.weight.grad is not None
    assert float((conv.weight.grad - exact).norm() / exact.norm()) < 0.005


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


def test_gradient_of_batch_norm_by_central_differences() -> None:
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


def test_one_value_for_each_channel_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        CompiledBatchNorm2d(nn.BatchNorm2d(3))(torch.ones(1, 3, 1, 1))


def test_evaluation_and_uncompiled_training_take_the_ordinary_batch_norm() -> None:
    bn = norm(3, torch.float32)
    fast = CompiledBatchNorm2d(copy.deepcopy(bn))
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    assert type(fast(x).grad_fn) is type(bn(x).grad_fn)
    assert torch.equal(compiled(fast.eval())(x), bn.eval()(x))
    for (name, a), (other, b) in zip(bn.state_dict().items(), fast.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_only_plain_batch_norms_are_replaced() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, momentum=None), nn.SyncBatchNorm(2)
    )
    speed_up_compiled_batch_norms(model)
    assert [type(module) is CompiledBatchNorm2d for module in model] == [True, False, False, False]


def test_a_network_of_compiled_norms_keeps_its_names() -> None:
    plain = timm.create_model("resnet18", num_classes=0, channels=[8, 8, 16, 16], layers=[1, 1, 1, 1])
    fast = speed_up_compiled_batch_norms(copy.deepcopy(plain))
    assert sum(isinstance(module, CompiledBatchNorm2d) for module in fast.modules()) == 13  # every one of it
    assert [*fast.state_dict()] == [*plain.state_dict()]


def test_layers_with_code_of_their_own_stay() -> None:
    hooked, norm = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)
    hooked.register_forward_hook(lambda module, inputs, output: 3 * output)
    norm.register_forward_hook(lambda module, inputs, output: 3 * output)
    computed = nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, bias=False))
    replaced = nn.Conv2d(3, 3, 3, bias=False)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.Sequential(hooked, norm, computed, replaced, nn.Conv2d(3, 3, 3, bias=False))
    speed_up_compiled_batch_norms(speed_up_convolutions(model))
    assert [type(layer) is FastConv2d for layer in model] == [False, False, False, False, True]
    assert type(norm) is type(model[1]) is nn.BatchNorm2d
