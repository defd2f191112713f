"""Packing: tensors of any shapes and dtypes as the bytes of one, so that a single copy takes all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

_ALIGN = 64  # bytes; tensors begin at multiples, as vector loads and 16-bit values need


def pack(
    parts: Sequence[torch.Tensor], device: torch.device | str = "cpu", *, pin_memory: bool = False
) -> torch.Tensor:
    """Bytes of tensors, as one tensor on a device."""
    *starts, end = _starts(parts)
    flat = torch.empty(end, dtype=torch.uint8, device=device, pin_memory=pin_memory)
    for start, part in zip(starts, parts, strict=True):
        flat[start : start + part.nbytes] = part.flatten().view(torch.uint8)
    return flat


def unpack(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors that :func:`pack` packed, without a copy; `like` has their shapes and dtypes."""
    *starts, _ = _starts(like)
    return [
        flat[start : start + part.nbytes].view(part.dtype).view(part.shape)
        for start, part in zip(starts, like, strict=True)
    ]


def _starts(parts: Sequence[torch.Tensor]) -> list[int]:
    """Byte at which each tensor begins, and the end."""
    return [0, *accumulate(-(-part.nbytes // _ALIGN) * _ALIGN for part in parts)]
