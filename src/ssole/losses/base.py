"""Parts that losses share: the base class EmbeddingLoss, checks of what they are given, arithmetic, and named terms.

Shape suffixes: N any batch, B images, V views, D embedding dimensions.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ssole import distributed
from ssole.errors import ConfigError
from ssole.losses.kernels import where_float64_is

# Keys of a line of metrics.jsonl that are not terms of the loss.
RESERVED = {"step", "epoch", "effective_rank", "lr", "images_per_second", "data_wait", "seconds"}

# The gradient with respect to a row grows as 1 / length: below this length it would overflow float32.
_ZERO_LENGTH = 1e-36
# Indices that an error lists.
_LISTED = 3


class EmbeddingError(ValueError):
    """Error for embeddings that are NaN, infinite, or zero where they must be normalised."""


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
        normalize: whether the loss scales embeddings to unit length, so that a zero vector is an error.
        needs_labels: whether `terms` and `forward` take the labels of the images as a second argument.
    """

    needs_labels = False
    normalize = False

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

    def _global_batch(self, z: Tensor, *, least: int = 2) -> Tensor:
        """Checked embeddings of all processes (B, V, D), not scaled, in the precision of the loss."""
        batch_BVD = distributed.gather(z if z.dtype == torch.float64 else z.float())
        if len(batch_BVD) < least:
            raise ValueError(
                f"{type(self).__name__} needs at least {least} images in the batch, got {len(batch_BVD)} "
                f"(shape {tuple(z.shape)})"
            )
        if self.check_input:  # all rows, so that all processes raise the same error
            check_rows(batch_BVD, zero_is_error=self.normalize)
        return batch_BVD


def copy_of_loss(loss: nn.Module) -> nn.Module:
    """Copy of a loss, whose weights a run trains; a ConfigError if it cannot be copied."""
    try:
        return copy.deepcopy(loss)
    except (RuntimeError, TypeError) as error:  # of tensors that are computed, as by the old weight_norm; of a lock
        raise ConfigError(
            f"the loss {type(loss).__name__} cannot be copied ({error}): use torch.nn.utils.parametrizations where "
            "weights are computed, and hold no open files or locks"
        ) from None


def is_plain(loss: nn.Module) -> bool:
    """Whether a loss is an EmbeddingLoss whose `terms` are all of it, without hooks or a later `forward`."""
    if not isinstance(loss, EmbeddingLoss) or loss._forward_hooks or loss._forward_pre_hooks or "forward" in vars(loss):
        return False
    newest = next(vars(cls) for cls in type(loss).__mro__ if {"forward", "terms", "_terms"} & vars(cls).keys())
    return "forward" not in newest or "terms" in newest


def named_terms(loss: nn.Module, z: Tensor, *arguments: Tensor) -> dict[str, Tensor]:
    """Terms of a loss by name, the total first, under the name `loss`.

    They come from `loss.terms(z)` if :func:`is_plain`, else from `loss(z)`, which may return a scalar, a mapping of
    names to scalars, or a NamedTuple of scalars. In the last two, the total is called `total` or `loss`.

    Args:
        loss: maps embeddings to a scalar or to named terms.
        z: embeddings (B, V, D).
        arguments: further arguments of the loss, such as labels.

    Raises:
        ValueError: anything else came back; the message says what.
    """
    output = loss.terms(z, *arguments) if is_plain(loss) else loss(z, *arguments)  # type: ignore[operator]
    terms = _by_name(output)
    totals = {"total", "loss"} & terms.keys()
    scalars = all(isinstance(term, Tensor) and term.ndim == 0 and not term.is_complex() for term in terms.values())
    named = all(isinstance(name, str) for name in terms) and not RESERVED & terms.keys()
    if len(totals) != 1 or not scalars or not named:
        raise ValueError(
            f"{type(loss).__name__} must return a scalar tensor, or scalar tensors by name, not complex, the total as "
            f"'total' or 'loss' (not both) and none as {', '.join(sorted(RESERVED))}; got {_described(output)}"
        )
    if z.requires_grad and not terms[next(iter(totals))].requires_grad:
        raise ValueError(f"what {type(loss).__name__} returns does not depend on the embeddings, so nothing is learned")
    return {"loss": terms.pop(*totals), **terms}


def _by_name(output: object) -> dict[str, Any]:
    if isinstance(output, Tensor):
        return {"loss": output}
    if hasattr(output, "_asdict"):  # a NamedTuple
        return dict(output._asdict())
    return dict(output) if isinstance(output, Mapping) else {}


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a {'complex ' if output.is_complex() else ''}tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{name}: {_described(term)}" for name, term in output.items()) + "}"
    return f"a {type(output).__name__}"


def check_embeddings(z: Tensor) -> None:
    """ValueError unless `z` is a non-empty floating-point tensor (B, V, D) with V >= 2."""
    if not isinstance(z, Tensor):
        raise ValueError(f"embeddings must be a torch.Tensor, got {type(z).__name__}")
    shape = tuple(z.shape)
    if z.ndim != 3:
        raise ValueError(
            f"embeddings must have shape (B images, V views, D dimensions), got {shape}; "
            "stack views with torch.stack(..., dim=1)"
        )
    if not z.is_floating_point():
        raise ValueError(f"embeddings must be of a floating-point dtype, got {z.dtype}; convert them with .float()")
    if z.numel() == 0:
        raise ValueError(f"embeddings are empty: got shape {shape}")
    if shape[1] < 2:
        raise ValueError(f"embeddings need at least 2 views of each image, got {shape[1]} (shape {shape})")


def check_rows(z: Tensor, *, zero_is_error: bool) -> None:
    """EmbeddingError that names rows of `z` (..., D) which are not finite, or zero where that is an error.

    Nothing is checked while torch.compile traces.
    """
    if torch.compiler.is_compiling():
        return
    with torch.no_grad():
        sizes = z.abs().amax(-1)  # NaN or infinite where a row is
        clean = torch.isfinite(sizes) & (sizes > _ZERO_LENGTH) if zero_is_error else torch.isfinite(sizes)
        if bool(clean.all()):
            return
        bad = ~torch.isfinite(z)
        if bool(bad.any()):
            what = f"{int(torch.isnan(z).sum())} NaN and {int(torch.isinf(z).sum())} infinite values"
            raise EmbeddingError(
                f"embeddings of shape {tuple(z.shape)} hold {what}, at {_where(bad)}; look for the step that made them"
            )
        if zero_is_error:
            zero = torch.linalg.vector_norm(where_float64_is(z).double(), dim=-1) <= _ZERO_LENGTH
            if bool(zero.any()):
                raise EmbeddingError(
                    f"{int(zero.sum())} of {zero.numel()} embeddings are zero vectors (shorter than {_ZERO_LENGTH}) "
                    f"and cannot be scaled to unit length, at {_where(zero)}: look for a dead projector"
                )


def _where(bad: Tensor) -> str:
    indices = bad.nonzero()
    listed = ", ".join(str(tuple(index)) for index in indices[:_LISTED].tolist())
    return f"index {listed}" + (f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else "")


def check_number(name: str, value: float, *, positive: bool = False) -> float:
    """`value`, or a ValueError unless it is a number, finite and at least 0, or above 0 if `positive`."""
    if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
        raise ValueError(f"{name} must be finite and {'above' if positive else 'at least'} 0, got {value}")
    return value


def check_count(name: str, value: int, least: int) -> int:
    """`value`, or a ValueError unless it is an integer of at least `least`."""
    if not (isinstance(value, Integral) and value >= least):  # NumPy's too
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def to_unit_length(z: Tensor) -> Tensor:
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
