"""The fast convolution is the ordinary one: same outputs, gradients, weights and names."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from ssole.models.cpu import FastConv2d, speed_up_convolutions

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
def test_outputs_and_gradients_are_those_of_autograd(kernel, stride, padding, height, width, layout) -> None:  # type: ignore[no-untyped-def]
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


def test_bfloat16_gradient_is_as_exact_as_the_ordinary_one() -> None:
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

    assert error(FastConv2d(conv)) < 1.1 * error(conv) < 0.01


def test_large_maps_and_inference_take_the_ordinary_route() -> None:
    fast = FastConv2d(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    assert "Convolve" not in type(fast(torch.randn(2, 3, 5, 5)).grad_fn).__name__
    with torch.no_grad():
        assert torch.equal(fast(torch.ones(1, 3, 2, 2)), F.conv2d(torch.ones(1, 3, 2, 2), fast.weight, padding=1))


def test_a_network_keeps_its_names_weights_and_gradients() -> None:
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
def test_others_are_left_alone(conv: nn.Conv2d) -> None:
    model = speed_up_convolutions(nn.Sequential(conv))
    assert model[0] is conv  # type: ignore[index]


@pytest.mark.parametrize(("images", "size", "stride"), [(3, 7, 1), (3, 8, 2), (130, 16, 1)])
def test_bfloat16_gradient_of_single_positions_on_large_maps(images: int, size: int, stride: int) -> None:
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
