"""Filters of :mod:`ssole.evaluation.corruptions`: blurs and weather, with the random draws that all corruptions share.

Widths are in pixels of images of 32 px, and grow with the side. Images are (B, C, S, S), in [0, 1] for the weather.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

REFERENCE = 32
"""Side of the images that strengths are for."""
_ICE = (0.75, 0.87, 1.0)  # red, green and blue of thick frost


class Draws:
    """Random numbers of each of B images, from a seed of its own, so that the batch does not matter."""

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


def defocus_blur(images: Tensor, c: tuple[float, float], _: Draws) -> Tensor:
    """Mean over a disc of radius c[0], whose edge is softened by a Gaussian of 3 x 3."""
    radius = c[0] * images.shape[-1] / REFERENCE
    half = math.ceil(radius)
    x = torch.arange(-half, half + 1)
    disc = (x[:, None] ** 2 + x**2 <= radius**2).float()
    disc = smoothed(F.pad(disc / disc.sum(), (2,) * 4)[None, None], c[1], half=1)
    padded = F.pad(images.flatten(0, 1)[:, None], (half + 2,) * 4, mode="reflect")
    return F.conv2d(padded, disc.to(images))[:, 0].view_as(images)


def glass_blur(images: Tensor, c: tuple[float, int, int], draws: Draws) -> Tensor:
    """Pixels that changed places with others nearby, with a Gaussian of width c[0] before and after.

    One by one, from the last pixel to the first, each changes places with one that is up to c[1] pixels away in both
    directions; all of it c[2] times.
    """
    batch, _, side, _ = images.shape
    sigma, reach = c[0] * side / REFERENCE, max(1, round(c[1] * side / REFERENCE))
    inner = range(side - reach, reach, -1)
    place, column = np.tile(np.arange(side * side)[:, None], (1, batch)), np.arange(batch)  # (pixels, B): where from
    for _ in range(c[2]):
        moves = draws.uniform(2, side, side, low=-reach, high=reach).floor().long()
        steps = (moves[:, 0] * side + moves[:, 1]).flatten(1).T.numpy()
        for pixel in (row * side + across for row in inner for across in inner):
            other = pixel + steps[pixel]
            place[pixel], place[other, column] = place[other, column], place[pixel].copy()
    source = torch.from_numpy(place).T[:, None].expand(-1, images.shape[1], -1)
    shuffled = smoothed(images, sigma).flatten(2).gather(2, source).view_as(images)
    return smoothed(shuffled, sigma)


def motion_blur(images: Tensor, c: tuple[int, float], draws: Draws) -> Tensor:
    """Camera that moved in a direction between -45 and 45 degrees: see :func:`trail` for c."""
    return trail(images, c[0], c[1], draws.uniform(low=-math.pi / 4, high=math.pi / 4))


def zoom_blur(images: Tensor, c: int, _: Draws) -> Tensor:
    """Mean of the image and of its enlargements by 0, 1, ..., c per cent."""
    total = images.clone()
    for percent in range(c + 1):
        zoom = 1 / (1 + percent / 100)
        theta = images.new_tensor([[zoom, 0, 0], [0, zoom, 0]]).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        total += F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return total / (c + 2)


def snow(images: Tensor, c: tuple[float, float, float, float, float, float, float], draws: Draws) -> Tensor:
    """Flakes that fall, in front of a whitened image.

    Flakes are normal noise (mean c[0], deviation c[1]), enlarged c[2] times, where it is above c[3]; they fall in a
    direction within 45 degrees of downwards (:func:`trail` of c[4], c[5]), and again turned by
    180 degrees. The image is whitened by a share 1 - c[6].
    """
    mean, deviation, zoom, least, radius, sigma, kept = c
    side, cells = images.shape[-1], math.ceil(REFERENCE / zoom)
    noise = mean + deviation * draws.normal(1, cells, cells)
    noise = F.interpolate(noise, (side, side), mode="bilinear", align_corners=True)
    flakes = noise.where(noise >= least, 0).clamp(0, 1)
    flakes = trail(flakes, radius, sigma, draws.uniform(low=math.pi / 4, high=3 * math.pi / 4))
    light = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (images * light).sum(1, keepdim=True) if images.shape[1] == 3 else images
    white = kept * images + (1 - kept) * torch.maximum(images, 1.5 * grey + 0.5)
    return white + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Image with a weight of c[0], plus ice with one of c[1].

    The benchmark's ice is cut out of five photographs. This one is drawn: see :func:`ice`.
    """
    side = images.shape[-1]
    layer = ice(side, draws)
    return c[0] * images + c[1] * (layer if images.shape[1] == 3 else layer.mean(1, keepdim=True))


def ice(side: int, draws: Draws) -> Tensor:
    """Drawn ice (B, 3, side, side) in [0, 1]: bluish white, with crystals along the lines where two clouds meet.

    Clouds are those of :func:`plasma`; the last one is how thick the ice is.
    """
    first, second, third, depth = (plasma(side, 1.4, draws)[:, None] for _ in range(4))
    crystals = torch.maximum(
        (1 - 5 * (first - second).abs()).clamp(min=0), (1 - 7 * (second - third).abs()).clamp(min=0)
    )
    return (0.2 + 0.4 * depth + 0.4 * crystals) * depth.new_tensor(_ICE)[:, None, None]


def fog(images: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """Clouds of a thickness, and then as much contrast as before."""
    brightest = images.amax((1, 2, 3), keepdim=True)
    clouds = plasma(images.shape[-1], c[1], draws)[:, None]
    return (images + c[0] * clouds) * brightest / (brightest + c[0])


def plasma(side: int, decay: float, draws: Draws) -> Tensor:
    """Random clouds (B, side, side) in [0, 1], by the diamond-square algorithm.

    Each halving of the step divides the height of what is added by decay². Clouds of the next power of two, which
    continue across their edges, are cut to ``side``.
    """
    step, height = 1 << max(1, (side - 1).bit_length()), 1.0
    heights = draws.uniform(step, step) * 2 - 1  # what is added at each point
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
    cloud = cloud / cloud.amax((1, 2), keepdim=True).clamp_min(1e-12)  # heights that are all equal stay 0
    return cloud[:, :side, :side]


def brightness(images: Tensor, c: float, _: Draws) -> Tensor:
    """The value of hue, saturation and value raised by c: all channels grow by one factor, and black becomes grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + c).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised.expand_as(images))


def trail(images: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Mean along a line that begins at each pixel, weighted by half a Gaussian.

    The radius, half of the line's length, and the sigma of the Gaussian are in pixels of images of 32 px; angles (B,)
    are directions in radians, clockwise from the right.
    """
    side = images.shape[-1]
    scale = side / REFERENCE
    length = min(math.ceil(2 * radius * scale), math.ceil(4 * sigma * scale))  # beyond four sigma there is no weight
    weights = torch.exp(-(torch.arange(length + 1) ** 2) / (2 * (sigma * scale) ** 2))
    padded = F.pad(images, (length,) * 4, mode="replicate")
    along = torch.arange(length + 1)[:, None] * torch.stack([angles.sin(), angles.cos()], 1)[:, None]
    corners = along.round().long() + length  # (B, length + 1, 2)
    blurred = torch.zeros_like(images)
    for image, moved, own in zip(padded, blurred, corners.tolist(), strict=True):
        for weight, (top, left) in zip((weights / weights.sum()).tolist(), own, strict=True):
            moved.add_(image[:, top : top + side, left : left + side], alpha=weight)
    return blurred


def smoothed(images: Tensor, sigma: float, half: int | None = None) -> Tensor:
    """Images filtered by a Gaussian of width sigma in pixels, cut off at `half` pixels (by default four sigma).

    Beyond the edge, images go on with their outermost pixels.
    """
    half = math.ceil(4 * sigma) if half is None else half
    if half == 0:
        return images
    line = torch.exp(-(torch.arange(-half, half + 1).to(images) ** 2) / (2 * sigma**2))
    line = (line / line.sum())[None, None]
    padded = F.pad(images.flatten(0, 1)[:, None], (half,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line[:, :, None]), line[..., None])[:, 0].view_as(images)
