"""Mean and standard deviation of channels, gathered image by image."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def moments(image: torch.Tensor) -> torch.Tensor:
    """Mean and mean square of each channel of a uint8 or uint16 image (C, h, w), in [0, 1]: float64 (2, C)."""
    x = image.flatten(1).double() / torch.iinfo(image.dtype).max
    return torch.stack([x.mean(1), x.square().mean(1)])


def mean_and_std(gathered: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Of each channel, from the moments of images, each of which counts the same whatever its size."""
    mean, square = torch.stack(list(gathered)).mean(0)
    return mean.tolist(), (square - mean**2).clamp_min(0).sqrt().tolist()
