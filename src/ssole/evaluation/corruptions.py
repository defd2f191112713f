"""Corruptions of images at five strengths, made on the fly, and test images seen through them.

These are the 15 corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), by its definitions and
strengths, which are for 32 px. For images of another side S, lengths in pixels grow by S / 32. Frost is drawn and not
photographed. The four that the benchmark keeps for validation are not here. An image has the same noise whatever its
batch. Blurs and weather have a module of their own; noise and what is done to pixels is here.

Shape suffixes: B images, C channels, S side.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation import corruption_filters as filters
from ssole.evaluation.corruption_filters import Draws, smoothed
from ssole.evaluation.datasets import Subset
from ssole.evaluation.preprocessing import center_crop

if TYPE_CHECKING:
    from PIL import Image

STRENGTHS = 5


@dataclass(frozen=True)
class Corruption:
    """Kind of damage: a function of images (B, C, S, S) in [0, 1], a strength's parameter, and random draws."""

    apply: Callable[[Tensor, Any, Draws], Tensor]
    strengths: tuple[Any, ...]
    pictures: bool = False
    """Whether it is for images of one or three channels only."""


def corrupt(images: Tensor, name: str, strength: int, ids: Tensor, *, seed: int = 0) -> Tensor:
    """Images (B, C, S, S), floats in [0, 1], corrupted by one of ``CORRUPTIONS`` at a strength of 1 to 5.

    ``ids`` (B,) int64 are the indices of the images in their data set, which decide their noise together with the seed,
    any integer. An unknown corruption or strength, or one that is not for so many channels, is a ValueError.
    """
    if name not in CORRUPTIONS or strength not in range(1, STRENGTHS + 1):
        raise ValueError(f"corruption {name!r} of strength {strength}: choose from {', '.join(CORRUPTIONS)}, 1 to 5")
    found = CORRUPTIONS[name]
    if found.pictures and images.shape[1] not in (1, 3):
        raise ValueError(f"{name} is for images of one or three channels, got {images.shape[1]}")
    kind = list(CORRUPTIONS).index(name) * STRENGTHS + strength
    draws = Draws([((seed * 1_000_003 + kind) * 1_000_000_007 + one) % 2**63 for one in ids.tolist()])
    return found.apply(images, found.strengths[strength - 1], draws).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class CorruptedImages:
    """Images of a subset, cut to a model's input size and then corrupted."""

    subset: Subset
    size: int
    name: str
    strength: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.subset)

    def get(self, indices: Tensor) -> Tensor:
        """Corrupted images (B, C, S, S) of the dtype of the images."""
        images = self.subset.get(indices)
        dtype = images[0].dtype
        crops = center_crop(images, self.size)
        made = corrupt(crops, self.name, self.strength, self.subset.positions[indices], seed=self.seed)
        return (made * torch.iinfo(dtype).max).round().to(dtype)


def _impulse_noise(images: Tensor, c: float, draws: Draws) -> Tensor:
    """Salt and pepper: a share c of the values become 0 or 1."""
    chance = draws.uniform(*images.shape[1:])
    return images.where(chance >= c, (chance < c / 2).to(images))


def _contrast(images: Tensor, c: float, _: Draws) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * c + mean


def _elastic(images: Tensor, c: tuple[float, float, float], draws: Draws) -> Tensor:
    """Image on a rubber sheet that is pulled: first as a whole, then from place to place. All lengths in sides.

    As a whole: three corners of a square in the middle, whose side is two thirds of the image's, move by up to c[2] in
    both directions. From place to place: by c[0] times uniform noise in [-1, 1] that a Gaussian of width c[1] smooths.
    """
    (reach, width, pull), side = c, images.shape[-1]
    points = torch.tensor([[2 / 3, 2 / 3], [2 / 3, -2 / 3], [-2 / 3, -2 / 3]])  # x, y; the side is 2, its middle 0
    moved = points + 2 * pull * draws.uniform(3, 2, low=-1, high=1)
    ones = torch.ones(len(images), 3, 1)
    back = torch.linalg.solve(torch.cat([moved, ones], 2), points.expand_as(moved))  # (B, 3, 2): from moved to points
    line = torch.linspace(-1, 1, side)
    place = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(len(images), -1, -1, -1)
    if reach > 0:
        noise = smoothed(draws.uniform(2, side, side, low=-1, high=1), width * side)
        place = place + 2 * reach * noise.movedim(1, -1)
    grid = place @ back[:, None, :2] + back[:, None, None, 2]
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=True)


def _pixelate(images: Tensor, c: float, _: Draws) -> Tensor:
    from PIL import Image

    side, box = images.shape[-1], Image.Resampling.BOX
    small = max(1, int(side * c))
    return _by_pillow(images, lambda image: image.resize((small, small), box).resize((side, side), box))


def _jpeg(images: Tensor, c: int, _: Draws) -> Tensor:
    from PIL import Image

    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(images, compressed)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": Corruption(lambda x, c, draws: x + c * draws.normal(*x.shape[1:]), (0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot noise": Corruption(lambda x, c, draws: draws.poisson(x * c) / c, (500, 250, 100, 75, 50)),
    "impulse noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus blur": Corruption(filters.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "glass blur": Corruption(filters.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion blur": Corruption(filters.motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom blur": Corruption(filters.zoom_blur, (5, 10, 15, 20, 25)),
    "snow": Corruption(
        filters.snow,
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        pictures=True,
    ),
    "frost": Corruption(filters.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), pictures=True),
    "fog": Corruption(filters.fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": Corruption(filters.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": Corruption(
        _elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    ),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), pictures=True),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40), pictures=True),
}
"""Corruptions by name. Their order decides the noise: add new ones at the end."""


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    from PIL import Image

    made = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        made.append(np.asarray(change(picture)).reshape(image.shape))
    pixels: Tensor = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return pixels / 255
