"""Random numbers of the images of a batch, each image with its own, so that the batch does not matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Random numbers of each of B images, from a seed of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of a shape (B, ...)."""
        return torch.stack([torch.randn(shape, generator=one) for one in self._generators])

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers of a shape (B, ...), uniform in [low, high)."""
        numbers = torch.stack([torch.rand(shape, generator=one) for one in self._generators])
        return low + (high - low) * numbers

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson counts of rates (B, ...)."""
        pairs = zip(rates, self._generators, strict=True)
        return torch.stack([torch.poisson(rate, generator=one) for rate, one in pairs])
