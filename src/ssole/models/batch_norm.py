"""Batch norm over the images of all processes, and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from ssole import distributed
from ssole.config import ConfigError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Model whose batch norms see the batch of all processes, changed in place; names and state stay.

    On GPUs they are torch's SyncBatchNorm, which has no version for CPUs; there they are :class:`SyncedBatchNorm`. A
    batch norm of another kind, which would see the images of one process only, is a ConfigError.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model
    from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm

    if own := [norm for norm in norms if has_own_code(norm)]:
        raise ConfigError(f"a {type(own[0]).__name__} with hooks, which many processes would lose: train with one")
    if device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted
    if others := [norm for norm in norms if type(norm) not in (*_PLAIN, BatchNormAct2d)]:
        raise ConfigError(f"{type(others[0]).__name__} cannot be shared among processes: train with one")
    return replace_layers(model, lambda layer: layer in norms, SyncedBatchNorm)


def replace_layers(model: nn.Module, which: Callable[[nn.Module], bool], new: Callable[[Any], nn.Module]) -> nn.Module:
    """Model with new layers in place of some of its own, changed in place; names stay."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # `named_children` leaves out a second name of a layer
            if child is not None and which(child):
                setattr(module, name, new(child))
    return model


def has_own_code(layer: nn.Module) -> bool:
    """Whether a layer does more than its class says: by hooks, a `forward` of its own, or a weight that is computed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in hooks) or "forward" in vars(layer) or "weight" in vars(layer)


def keep_out_of_graphs(model: nn.Module) -> None:
    """Let `torch.compile` call the synced batch norms of a model as they are: it takes no collectives into a graph."""
    for module in model.modules():
        if isinstance(module, SyncedBatchNorm):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]


def share_state(new: nn.modules.batchnorm._BatchNorm, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Give a new batch norm the weights, statistics and mode of another; both have the same tensors from then on."""
    new.weight, new.bias = norm.weight, norm.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))
    new.train(norm.training)


@torch.no_grad()
def update_statistics(norm: nn.modules.batchnorm._BatchNorm, mean: torch.Tensor, var: torch.Tensor, count: int) -> None:
    """Update of the running statistics as in `nn.BatchNorm2d`, with the unbiased variance of `count` values."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), weight)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose mean and variance are those of all processes, which have batches of equal size.

    It shares weights and state with `norm`, and in evaluation it is that. In training, one collective of 2 C numbers
    goes forward and one back; with one process or many, outputs, gradients and state are the same to rounding.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        with torch.device("meta"):  # takes no memory: the state of `norm` is used
            super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        share_state(self, norm)
        # timm's layer is followed by these two
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Values (N, C, ...) to the same shape."""
        out = self._synced(input) if self.training else super().forward(input)
        activated: torch.Tensor = self.act(self.drop(out))
        return activated

    def _synced(self, x: torch.Tensor) -> torch.Tensor:
        y, mean, var = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            update_statistics(self, mean, var, distributed.world_size() * x.numel() // x.shape[1])
        normal: torch.Tensor = y
        return normal


class _Normalize(Function):
    """(x - mean) / std * weight + bias, with mean and std of each channel over all processes; float32 or better."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own_var, own_mean = torch.var_mean(wide, _over(x), correction=0)
        # means and variances of all, and not their sums of squares, which would lose digits
        means, variances = distributed.gather(torch.stack([own_mean, own_var])[None], equal=True).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        inv_std = (var + eps).rsqrt()
        scale = inv_std if weight is None else inv_std * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(x, weight, mean, inv_std)
        ctx.mark_non_differentiable(mean, var)
        return (wide * _c(scale, x) + _c(shift, x)).to(x.dtype), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        wide, normal = grad.to(mean.dtype), (x.to(mean.dtype) - _c(mean, x)) * _c(inv_std, x)
        sums = torch.stack([wide.sum(_over(x)), (wide * normal).sum(_over(x))])  # of this process: DDP adds the others'
        grad_bias, grad_weight = sums
        all_bias, all_weight = distributed.all_reduce(sums)
        count = distributed.world_size() * x.numel() // x.shape[1]
        scale = inv_std if weight is None else inv_std * weight
        grad_x = (wide - _c(all_bias / count, x) - normal * _c(all_weight / count, x)) * _c(scale, x)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _over(x: torch.Tensor) -> list[int]:
    """Dimensions of values (N, C, ...) other than their channels."""
    return [dim for dim in range(x.ndim) if dim != 1]


def _c(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of each channel (C,), to broadcast over x (N, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Context after which the buffers of a model, such as running statistics, are as they were."""
    state = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in zip(model.buffers(), state, strict=True):
                buffer.copy_(kept)
