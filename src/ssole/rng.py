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

import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: consecutive counters land far apart
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


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


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    # Shifts of int64 copy the sign bit down. The mask makes the shift logical.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX2)
    return x ^ _shift_right(x, 31)


def _fold(key: torch.Tensor, word: torch.Tensor | int) -> torch.Tensor:
    if isinstance(word, int):
        return _mix((key ^ _signed(word)) + _signed(_GOLDEN))
    return _mix((key ^ word) + _signed(_GOLDEN))


def bits(seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor, use: int, n: int) -> torch.Tensor:
    """Random bits, 64 for each (image, view, draw).

    Args:
        seed, epoch: any Python integers (taken modulo 2^64).
        ids: int64 (B,), the index of each image in its data set.
        views: int64 (V,), numbers of the views, on the same device.
        use: a :class:`Use`.
        n: draws for each image and view.

    Returns:
        int64 (B, V, n).
    """
    key = _image_keys(seed, epoch, ids, views)
    return _fold(_fold(key, use)[..., None], torch.arange(n, device=ids.device))


def _image_keys(seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    run = _fold_number(_fold_number(0, seed), epoch)
    return _fold(_fold(ids, run)[:, None], views[None, :])


def _fold_number(key: int, word: int) -> int:
    """`_fold` of two plain numbers, for which no kernel is launched."""
    x = ((key ^ word) + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def number(seed: int, epoch: int, use: int) -> int:
    """The first of :func:`bits` for image 0 and view 0, as a plain number and without a tensor."""
    key = 0
    for word in (seed, epoch, 0, 0, use, 0):
        key = _fold_number(key, word)
    return _signed(key)


def uniforms_of_uses(
    seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor, draws: Mapping[Use, int]
) -> dict[Use, torch.Tensor]:
    """Uniform draws in [0, 1) for several uses, in a few kernels: {use: n} gives {use: float32 (B, V, n)}.

    The other arguments are those of :func:`bits`.
    """
    uses, numbers = _words(tuple(draws.items()), ids.device)
    drawn = _fold(_fold(_image_keys(seed, epoch, ids, views)[..., None], uses), numbers)
    # The top 24 bits fit a float32 mantissa exactly, so that no draw rounds up to 1.0.
    u = _shift_right(drawn, 40).to(torch.float32) * 2.0**-24
    return dict(zip(draws, u.split(list(draws.values()), dim=-1), strict=True))


@lru_cache(maxsize=16)
def _words(draws: tuple[tuple[Use, int], ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Use, and number within it, of each draw. Kept, because a GPU would wait for the copy."""
    uses = torch.tensor([use for use, n in draws for _ in range(n)])
    numbers = torch.tensor([i for _, n in draws for i in range(n)])
    return uses.to(device), numbers.to(device)


def epoch_order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """Order of `n` images in an epoch: an int64 permutation (n,), a pure function of (seed, epoch, n)."""
    keys = bits(seed, epoch, torch.arange(n), torch.zeros(1, dtype=torch.int64), Use.ORDER, 1).flatten()
    return torch.sort(keys, stable=True).indices
