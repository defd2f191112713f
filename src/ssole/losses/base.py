"""EmbeddingLoss, the base class of losses, and the arithmetic that several of them share.

Shape suffixes: N any batch, B images, V views, D embedding dimensions.
"""

from __future__ import annotations

import inspect
import math
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ssole import distributed
from ssole.losses.checks import check_embeddings, check_rows


class _HasTotal(Protocol):
    """Named terms with the loss as `total`."""

    @property
    def total(self) -> Tensor: ...


_Terms = TypeVar("_Terms", bound=_HasTotal)


class EmbeddingLoss(nn.Module, Generic[_Terms]):
    """Loss of the embeddings of a global batch: checks, precision and processes; subclasses add the formula.

    The loss is computed in float32, or in float64 for float64, outside autocast.

    In a process group the batch is that of all processes, and local batches may differ in size. The value is the same
    on every process and equals that of one process with the concatenated batch. The gradient does too once it is
    averaged over processes, as DistributedDataParallel does.

    Attributes:
        check_input: whether to look for NaN and infinity, for which an accelerator must wait. torch.compile skips it.
        needs_labels: whether `terms` and `forward` take the labels of the images as a second argument.
    """

    needs_labels = False

    def __init__(self, *, check_input: bool = True) -> None:
        super().__init__()
        self.check_input = check_input

    def extra_repr(self) -> str:
        """Arguments of the constructor, but for `check_input`, as the repr shows them."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "check_input"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))

    def forward(self, z: Tensor) -> Tensor:
        """Loss of embeddings `z`, a scalar in float32, or in float64 for float64.

        Args:
            z: (B, V, D), of any floating dtype, B and V at least 2. Views of different crop sizes stack along V.

        Raises:
            ValueError: wrong shape or dtype, NaN or infinity, a zero vector where embeddings are scaled to unit length.
        """
        return self.terms(z).total

    def terms(self, z: Tensor) -> _Terms:
        """Named terms of the loss, with the arguments and errors of `forward`."""
        check_embeddings(z)
        with torch.autocast(z.device.type, enabled=False):
            return self._terms(self._global_batch(z))

    def _terms(self, z_BVD: Tensor) -> _Terms:
        raise NotImplementedError

    def _zero_is_error(self) -> bool:
        """Whether a zero vector is an error, because rows are scaled to unit length."""
        return False

    def _global_batch(self, z: Tensor) -> Tensor:
        """Checked embeddings of all processes (B, V, D), not scaled, in the precision of the loss."""
        batch_BVD = distributed.gather(z if z.dtype == torch.float64 else z.float())
        if len(batch_BVD) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 images in the batch, got {len(batch_BVD)} "
                f"(shape {tuple(z.shape)})"
            )
        if self.check_input:  # all rows, so that all processes raise the same error
            check_rows(batch_BVD, zero_is_error=self._zero_is_error())
        return batch_BVD


def unit_rows(z: Tensor) -> Tensor:
    """Rows (..., D) scaled to unit length."""
    # The largest entry first, a constant: squares of finite numbers may overflow or vanish.
    z = z / z.detach().abs().amax(-1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / lengths


def frobenius_squares(z_NBD: Tensor) -> Tensor:
    """Squared Frobenius norms (N,) of Z^T Z, which are those of Z Z^T; the smaller of the two is formed."""
    wide = z_NBD.shape[1] <= z_NBD.shape[2]
    gram = z_NBD @ z_NBD.mT if wide else z_NBD.mT @ z_NBD
    return gram.square().sum((1, 2))


def check_number(name: str, value: float, *, positive: bool = False) -> float:
    """`value`, or a ValueError unless it is finite and at least 0, or above 0 if `positive`."""
    if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
        raise ValueError(f"{name} must be finite and {'above' if positive else 'at least'} 0, got {value}")
    return value


def check_count(name: str, value: int, least: int) -> int:
    """`value`, or a ValueError unless it is an integer of at least `least`."""
    if not (isinstance(value, int) and value >= least):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value
