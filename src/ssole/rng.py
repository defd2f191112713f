"""Random numbers without state: every draw is a pure function of (seed, epoch, image, view, use).

The generator is counter-based. It folds the five coordinates, one after the other, through the SplitMix64 finaliser
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Nothing is remembered between
calls. So a view does not depend on the batch, the worker, the process or an interruption. It is the same on CPU and
GPU, because 64-bit integers wrap identically everywhere. The numbers are a format: a change here changes every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import TypeVar

import torch

Word = TypeVar("Word", int, torch.Tensor)

# as int64 has them
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio: consecutive counters land far apart
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


class Use(IntEnum):
    """Purpose of a draw. The values are part of the format: a change of one changes every run."""

    ORDER = 0
    CROP = 1
    HFLIP = 2
    VFLIP = 3
    JITTER = 4
    GREY = 5
    BLUR = 6
    SOLARIZE = 7
    LAYERS = 8
    TURN = 9


def _wrapped(x: Word) -> Word:
    """A number modulo 2^64 as a signed 64-bit integer. Tensors of int64 overflow in this way by themselves."""
    return x if isinstance(x, torch.Tensor) else ((x + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _shift_right(x: Word, bits: int) -> Word:
    # Shifts of int64 copy the sign bit down. The mask makes the shift logical.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Word) -> Word:
    x = _wrapped(x + _GOLDEN)
    x = _wrapped((x ^ _shift_right(x, 30)) * _MIX1)
    x = _wrapped((x ^ _shift_right(x, 27)) * _MIX2)
    return x ^ _shift_right(x, 31)


def bits(seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor, draws: Mapping[Use, int]) -> torch.Tensor:
    """Random bits for several uses, 64 for each (image, view, draw), in a few kernels.

    Args:
        seed, epoch: any Python integers (taken modulo 2^64).
        ids: int64 (B,), the index of each image in its data set.
        views: int64 (V,), numbers of the views, on the same device.
        draws: number of draws for each use.

    Returns:
        int64 (B, V, draws of all uses).
    """
    uses, numbers = _words(tuple(draws.items()), ids.device)
    run = _mix(_mix(_wrapped(seed)) ^ _wrapped(epoch))
    keys = _mix(_mix(ids ^ run)[:, None] ^ views)
    return _mix(_mix(keys[..., None] ^ uses) ^ numbers)


def scalar_bits(seed: int, epoch: int, use: int) -> int:
    """The first of :func:`bits` for image 0, view 0 and a use, as a plain number and without a tensor."""
    key = 0
    for word in (seed, epoch, 0, 0, use, 0):
        key = _mix(key ^ _wrapped(word))
    return key


def uniforms_of_uses(
    seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor, draws: Mapping[Use, int]
) -> dict[Use, torch.Tensor]:
    """Uniform draws in [0, 1), as :func:`bits` has them: {use: n} gives {use: float32 (B, V, n)}."""
    # The top 24 bits fit a float32 mantissa exactly, so that no draw rounds up to 1.0.
    u = _shift_right(bits(seed, epoch, ids, views, draws), 40).to(torch.float32) * 2.0**-24
    return dict(zip(draws, u.split(list(draws.values()), dim=-1), strict=True))


@lru_cache(maxsize=16)
def _words(draws: tuple[tuple[Use, int], ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Use of each draw, and its number within that use. Cached, because a GPU would wait for another copy."""
    uses = torch.tensor([use for use, n in draws for _ in range(n)])
    numbers = torch.tensor([i for _, n in draws for i in range(n)])
    return uses.to(device), numbers.to(device)


def epoch_order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """Order of `n` images in an epoch: an int64 permutation (n,), a pure function of (seed, epoch, n)."""
    keys = bits(seed, epoch, torch.arange(n), torch.zeros(1, dtype=torch.int64), {Use.ORDER: 1}).flatten()
    return torch.sort(keys, stable=True).indices
