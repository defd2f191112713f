"""Corruptions of images at five strengths, made on the fly, and test images seen through them.

The definitions and strengths are those of CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), which are for
32 px. For images of another side S, radii in pixels grow by S / 32. Of its 15 corruptions these 11 are here, with
Gaussian blur from its further ones in place of glass blur; motion blur, snow, frost and the elastic transform are left
out. An image has the same noise whatever its batch.

Shape suffixes: B images, C channels, S side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.datasets import Subset
from ssole.evaluation.preprocessing import center_crop

if TYPE_CHECKING:
    from PIL import Image

STRENGTHS = 5
_REFERENCE = 32  # side of the images that the strengths are for


@dataclass(frozen=True)
class Corruption:
    """Kind of damage: a function of images (B, C, S, S) in [0, 1], a strength's parameter, and random draws."""

    apply: Callable[[Tensor, Any, Draws], Tensor]
    strengths: tuple[Any, ...]
    pictures: bool = False
    """Whether it is for images of one or three channels only."""


class Draws:
    """Random numbers of each image of a batch, from seeds of their own."""

    def __init__(self, seeds: list[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of a shape (B, ...)."""
        return torch.stack([torch.randn(shape, generator=one) for one in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """Numbers of a shape (B, ...), uniform in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=one) for one in self._generators])

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson counts of rates (B, ...)."""
        pairs = zip(rates, self._generators, strict=True)
        return torch.stack([torch.poisson(rate, generator=one) for rate, one in pairs])


def corrupt(images: Tensor, name: str, strength: int, ids: Tensor, *, seed: int = 0) -> Tensor:
    """Images (B, C, S, S) in [0, 1], corrupted.

    Args:
        images: floats in [0, 1].
        name: one of ``CORRUPTIONS``.
        strength: 1 to 5.
        ids: (B,) int64, the index of each image in its data set, which decides its noise together with the seed.
        seed: any integer.

    Raises:
        ValueError: an unknown corruption or strength, or one that is not for so many channels.
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


def _gaussian_noise(images: Tensor, c: float, draws: Draws) -> Tensor:
    return images + c * draws.normal(*images.shape[1:])


def _shot_noise(images: Tensor, c: float, draws: Draws) -> Tensor:
    return draws.poisson(images * c) / c


def _impulse_noise(images: Tensor, c: float, draws: Draws) -> Tensor:
    """Salt and pepper: a share c of the values become 0 or 1."""
    chance = draws.uniform(*images.shape[1:])
    return images.where(chance >= c, (chance < c / 2).to(images))


def _gaussian_blur(images: Tensor, c: float, _: Draws) -> Tensor:
    sigma = c * images.shape[-1] / _REFERENCE
    return _filtered(images, _gaussian(sigma, math.ceil(4 * sigma)), "replicate")


def _defocus_blur(images: Tensor, c: tuple[float, float], _: Draws) -> Tensor:
    """Mean over a disc of radius c[0], whose edge is softened by a Gaussian of 3 x 3."""
    scale = images.shape[-1] / _REFERENCE
    radius, half = c[0] * scale, math.ceil(c[0] * scale)
    x = torch.arange(-half, half + 1)
    disc = (x[:, None] ** 2 + x**2 <= radius**2).float()
    disc = F.conv2d(disc[None, None] / disc.sum(), _gaussian(c[1], 1)[None, None], padding=2)[0, 0]
    return _filtered(images, disc, "reflect")


def _zoom_blur(images: Tensor, c: int, _: Draws) -> Tensor:
    """Mean of the image and of its enlargements by 0, 1, ..., c per cent."""
    total = images.clone()
    for percent in range(c + 1):
        zoom = 1 / (1 + percent / 100)
        theta = images.new_tensor([[zoom, 0, 0], [0, zoom, 0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        total += F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return total / (c + 2)


def _fog(images: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Clouds of a thickness, and then as much contrast as before."""
    side, brightest = images.shape[-1], images.amax((1, 2, 3), keepdim=True)
    clouds = plasma(1 << max(1, (side - 1).bit_length()), c[1], draws)[:, None, :side, :side]
    return (images + c[0] * clouds) * brightest / (brightest + c[0])


def plasma(side: int, decay: float, draws: Draws) -> Tensor:
    """Random clouds (B, side, side) in [0, 1] that continue across their edges, by the diamond-square algorithm.

    Each halving of the step divides the height of what is added by decay². ``side`` is a power of two, 2 or more.
    """
    step, height = side, 1.0
    heights = draws.uniform(side, side) * 2 - 1  # what is added at each point
    cloud = torch.zeros_like(heights)
    while step >= 2:
        half = step // 2
        corner = cloud[:, ::step, ::step]
        right = corner + corner.roll(-1, 2)
        cloud[:, half::step, half::step] = (right + right.roll(-1, 1)) / 4 + height * heights[:, half::step, half::step]
        centre, below = cloud[:, half::step, half::step], corner + corner.roll(-1, 1)
        top, left = centre + centre.roll(1, 1) + right, centre + centre.roll(1, 2) + below
        cloud[:, ::step, half::step] = top / 4 + height * heights[:, ::step, half::step]
        cloud[:, half::step, ::step] = left / 4 + height * heights[:, half::step, ::step]
        step, height = half, height / decay**2
    cloud = cloud - cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True).clamp_min(1e-12)  # heights that are all equal stay 0


def _brightness(images: Tensor, c: float, _: Draws) -> Tensor:
    """The value of hue, saturation and value raised by c: all channels grow by one factor, and black becomes grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + c).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised.expand_as(images))


def _contrast(images: Tensor, c: float, _: Draws) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * c + mean


def _pixelate(images: Tensor, c: float, _: Draws) -> Tensor:
    from PIL import Image

    side = images.shape[-1]
    small = max(1, int(side * c))

    def pixelated(image: Image.Image) -> Image.Image:
        shrunk = image.resize((small, small), Image.Resampling.BOX)
        return shrunk.resize((side, side), Image.Resampling.BOX)

    return _by_pillow(images, pixelated)


def _jpeg(images: Tensor, c: int, _: Draws) -> Tensor:
    from PIL import Image

    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(images, compressed)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": Corruption(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1)),
    "shot noise": Corruption(_shot_noise, (500, 250, 100, 75, 50)),
    "impulse noise": Corruption(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus blur": Corruption(_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "zoom blur": Corruption(_zoom_blur, (5, 10, 15, 20, 25)),
    "fog": Corruption(_fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), pictures=True),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40), pictures=True),
}
"""Corruptions by name. Their order decides the noise: add new ones at the end."""


def _gaussian(sigma: float, half: int) -> Tensor:
    """Gaussian filter (2 half + 1, 2 half + 1) that sums to 1."""
    line = torch.exp(-(torch.arange(-half, half + 1).float() ** 2) / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def _filtered(images: Tensor, kernel: Tensor, padding: str) -> Tensor:
    half = kernel.shape[-1] // 2
    padded = F.pad(images.flatten(0, 1)[:, None], (half,) * 4, mode=padding)
    return F.conv2d(padded, kernel.to(images)[None, None])[:, 0].view_as(images)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    from PIL import Image

    made = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        made.append(np.asarray(change(picture)).reshape(image.shape))
    pixels: Tensor = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return pixels / 255
