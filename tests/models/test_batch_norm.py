from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn

import ranks
from ssole import distributed
from ssole.config import ConfigError
from ssole.models.batch_norm import SyncedBatchNorm, synchronize_batch_norms

CPU = torch.device("cpu")
LAYERS = {
    "1d": lambda: nn.BatchNorm1d(5),
    "2d": lambda: nn.BatchNorm2d(5, eps=0.1, momentum=0.3),
    "3d": lambda: nn.BatchNorm3d(5, momentum=None),
    "plain": lambda: nn.BatchNorm2d(5, affine=False),
    "untracked": lambda: nn.BatchNorm2d(5, track_running_stats=False),
    "timm": lambda: BatchNormAct2d(5),
}
DIMENSIONS = {"1d": (), "3d": (2, 3, 2)}


def layer(name: str) -> nn.Sequential:
    """A batch norm with weights of its own, in float64."""
    norm = LAYERS[name]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.linspace(-1, 2, 5))
    return nn.Sequential(norm)


def outcome(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and state after two steps and in evaluation."""
    x = x.requires_grad_()
    for _ in range(2):
        y = model(x)
    (y * target).sum().backward()
    grads = {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return {"y": y.detach(), "x": x.grad, "evaluated": model.eval()(x).detach(), **grads, **state}


def values(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (8, 5, *DIMENSIONS.get(name, (3, 2)))
    x, target = (torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (1, 2))
    return x + 1000, target  # a mean far from 0, which sums of squares would not survive


def halves(folder: Path) -> None:
    with distributed.processes(60):
        rank, found = distributed.rank(), {}
        for name in LAYERS:
            x, target = (tensor.chunk(2)[rank].contiguous() for tensor in values(name))
            model = synchronize_batch_norms(layer(name), CPU)
            found |= {f"{name} {key}": value for key, value in outcome(model, x, target).items()}
        save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{rank}.safetensors")


def test_two_halves_are_normalised_as_one_batch(tmp_path: Path) -> None:
    ranks.run(2, halves, tmp_path)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name in LAYERS:
        for key, value in outcome(layer(name), *values(name)).items():
            a, b = (one[f"{name} {key}"] for one in found)
            if key in ("y", "x", "evaluated"):
                got = torch.cat([a, b])
            else:
                got = a + b if key.startswith("grad") else a
                assert key.startswith("grad") or torch.equal(a, b)
            if (name, key) != ("untracked", "evaluated"):  # which then averages over what it sees
                torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-9, msg=f"{name} {key}")


def test_names_and_weights_stay() -> None:
    model = layer("timm")
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    synchronize_batch_norms(model, CPU)
    assert isinstance(model[0], SyncedBatchNorm)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_layer_that_is_used_twice_is_replaced_under_both_names() -> None:
    norm = nn.BatchNorm2d(5)
    model = synchronize_batch_norms(nn.Sequential(norm, nn.ReLU(), norm), CPU)
    assert isinstance(model[0], SyncedBatchNorm)
    assert isinstance(model[2], SyncedBatchNorm)  # or it would average over the images of one process
    assert model[0].weight is model[2].weight is norm.weight
    assert model[0].running_mean is model[2].running_mean is norm.running_mean


def test_half_precision_is_averaged_in_float32() -> None:
    x = torch.randn(64, 5, 4, 4).add(3)
    expected = layer("2d").float()(x)
    got = synchronize_batch_norms(layer("2d").float(), CPU)(x.bfloat16())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02)


def test_another_kind_is_an_error() -> None:
    class Own(nn.BatchNorm2d): ...

    with pytest.raises(ConfigError, match="Own cannot be shared"):
        synchronize_batch_norms(nn.Sequential(Own(3)), CPU)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_hooks_are_not_lost(device: str) -> None:
    model = layer("2d")
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    with pytest.raises(ConfigError, match="a BatchNorm2d with hooks, which many processes would lose"):
        synchronize_batch_norms(model, torch.device(device))
