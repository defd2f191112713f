"""Shared parts of the writers: the backbone with its normalisation, and what a writer gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssole.models.load import LoadedBackbone


class NormalisedBackbone(nn.Module):
    """Backbone that normalises its input itself: images (B, C, S, S) in [0, 1] to features (B, F)."""

    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean_C11", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(list(std)).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone((images - self.mean_C11) / self.std_C11)
        return features


@dataclass(frozen=True, kw_only=True)
class Written:
    """Result of a writer: files, and how to read them."""

    features: Callable[[torch.Tensor], torch.Tensor]
    """The result as read back from the disk: images (B, C, S, S) in [0, 1] to features (B, F)."""
    snippet: str
    """Python code that reads the result, run in its folder."""
    needs: str
    """What must be installed to read it."""
    input: str = "normalised images"
    """What the result takes."""
    library: str | None = None
    """Name of the library in the card's header, by the Hugging Face Hub's list."""
    unchecked: str | None = None
    """Why the comparison did not read the result in the way of the snippet; None if it did."""


def preprocessing_of(model: LoadedBackbone) -> dict[str, Any]:
    """Preprocessing of a backbone as plain values, for files beside or within the weights."""
    return {
        "image_size": model.image_size,
        "channels": len(model.mean),
        "mean": list(model.mean),
        "std": list(model.std),
        "resize": "shorter side to image_size, bilinear with antialiasing, then the central square",
    }
