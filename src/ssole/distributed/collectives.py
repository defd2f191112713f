"""Rank, world size, and differentiable collectives.

The backward of `gather` and `all_reduce` is their true adjoint: with one loss L_r on each process r, a gradient is that
of sum_r L_r. When all processes compute the same loss, this is world_size times its gradient. The averaging of
DistributedDataParallel then divides by world_size exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


@dataclass
class _State:
    """State of this process within the group."""

    alone: bool = False
    """Whether it works by itself for now, as if there were no other processes."""
    store: Any = None
    """Store by which the processes of a group of ours send each other a few words; None without one."""
    agreements: int = 0
    """How often they have agreed on a number, which tells who is behind."""
    asked: Callable[[], int] | None = None
    """Function that returns the number of the signal that asked this process to stop, or 0; None if none may."""


STATE = _State()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized() and not STATE.alone


def rank() -> int:
    """Index of this process, 0 without a process group."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this process counts as the only one (rank 0 of 1), for work that it does by itself."""
    before, STATE.alone = STATE.alone, True
    try:
        yield
    finally:
        STATE.alone = before


def gather(x: Tensor, *, equal: bool | None = None) -> Tensor:
    """Concatenation of `x` (n, ...) over all processes along dimension 0, in the order of rank: (sum of n, ...).

    n may differ between processes and may be 0. The other dimensions, which are a ValueError if they differ, and the
    dtype must be equal. If n is known to be `equal` everywhere, nothing but `x` is exchanged. By default it is known in
    a group of :func:`ssole.distributed.group.processes`, whose processes have batches of one size. The gradient of `x`
    is the sum over processes of the gradients of its slice.
    """
    if world_size() == 1:
        return x
    known = STATE.store is not None if equal is None else equal
    gathered: Tensor = _Gather.apply(x, [len(x)] * world_size() if known else _lengths(x))
    return gathered


def all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over all processes. The gradient is summed over all processes too."""
    return x if world_size() == 1 else _AllReduce.apply(x)


def mean(x: Tensor) -> Tensor:
    """Mean of `x` over all processes, without a gradient."""
    return x.detach() if world_size() == 1 else all_reduce(x.detach()) / world_size()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of parameters by their means over all processes, which must have the same parameters."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = mean(parameter.grad)


def _lengths(x: Tensor) -> list[int]:
    """Length of `x` on each process, after a check that all other dimensions agree."""
    shape = torch.tensor(x.shape, device=x.device)
    shapes = [torch.empty_like(shape) for _ in range(world_size())]
    dist.all_gather(shapes, shape)
    by_rank: list[list[int]] = torch.stack(shapes).tolist()
    if any(other[1:] != by_rank[0][1:] for other in by_rank):
        raise ValueError(
            f"gather needs equal shapes beyond the first dimension, got {by_rank} on ranks 0 to {len(by_rank) - 1}"
        )
    return [other[0] for other in by_rank]


def _sum(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        longest = max(lengths)
        padded = x.new_zeros(longest, *x.shape[1:])  # gloo and NCCL gather equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        start = sum(ctx.lengths[: rank()])
        return _sum(grad)[start : start + ctx.lengths[rank()]], None


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)
