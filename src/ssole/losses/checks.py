"""Checks of embeddings, whose errors quote what arrived."""

from __future__ import annotations

import torch
from torch import Tensor


class EmbeddingError(ValueError):
    """Embeddings that are NaN, infinite, or zero where they must be normalised."""


# The gradient with respect to a row grows as 1 / length: below this length it would overflow float32.
_ZERO_LENGTH = 1e-36
# Indices that an error lists.
_LISTED = 3


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
            zero = torch.linalg.vector_norm(z.double(), dim=-1) <= _ZERO_LENGTH
            if bool(zero.any()):
                raise EmbeddingError(
                    f"{int(zero.sum())} of {zero.numel()} embeddings are zero vectors (shorter than {_ZERO_LENGTH}) "
                    f"and cannot be scaled to unit length, at {_where(zero)}: look for a dead projector"
                )


def _where(bad: Tensor) -> str:
    indices = bad.nonzero()
    listed = ", ".join(str(tuple(index)) for index in indices[:_LISTED].tolist())
    return f"index {listed}" + (f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else "")
