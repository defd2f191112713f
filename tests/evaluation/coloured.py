"""Images whose class is their colour, and a model that sees it: evaluations whose result is known."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ssole.data.arrays import ArraySource
from ssole.evaluation.case import Case
from ssole.evaluation.datasets import open_data
from ssole.evaluation.evaluate import evaluate
from ssole.evaluation.preprocessing import Preprocessing

evaluate_quietly = partial(evaluate, progress=False, device="cpu", precision="float32")


PREPROCESSING = Preprocessing(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class MeanColour(nn.Module):
    """Features that tell the classes below apart: the channel means."""

    image_size, mean, std = 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.scale


def coloured(n: int, *, seed: int, noise: int = 60, names: tuple[str, ...] | None = ("red", "green", "blue")) -> Any:
    """Noise with one channel raised, which is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.integers(0, 256 - noise, size=(n, 8, 8, 3), dtype=np.uint8)
    images[np.arange(n), :, :, labels] += np.uint8(noise)
    return ArraySource(images, labels, classes=names, name=f"coloured-{seed}")


def case_of(features_of: Any, train: Any, test: Any = None, model: nn.Module | None = None) -> Case:
    """Case of a function from decoded images to features, without a bar."""

    class Known(Case):
        def features_of(self, images: Any, **_: object) -> torch.Tensor:
            features: torch.Tensor = features_of(images)
            return features

    data = open_data(train, test, PREPROCESSING, seed=0, progress=False)
    how: dict[str, Any] = {"views": None, "seed": 0, "device": torch.device("cpu"), "progress": False}
    return Known(row="mine", data=data, preprocessing=PREPROCESSING, model=model, precision="auto", **how)


class Damaged(ArraySource):
    """Images of which one cannot be read."""

    def read(self, i: int) -> Any:
        return b"not an image" if i == 7 else super().read(i)
