"""Weather of :mod:`ssole.evaluation.corruptions`: snow, frost, fog, brightness. Images are (B, C, S, S) in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssole.evaluation.blurs import REFERENCE, Draws, trail

_ICE = (0.75, 0.87, 1.0)  # red, green and blue of thick frost


def snow(images: Tensor, c: tuple[float, float, float, float, float, float, float], draws: Draws) -> Tensor:
    """Flakes that fall, in front of a whitened image.

    Flakes are normal noise (mean c[0], deviation c[1]), enlarged c[2] times, where it is above c[3]; they fall in a
    direction within 45 degrees of downwards (:func:`~ssole.evaluation.blurs.trail` of c[4], c[5]), and again turned by
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
    size = 1 << max(1, (side - 1).bit_length())
    first, second, third, depth = (plasma(size, 1.4, draws)[:, None, :side, :side] for _ in range(4))
    crystals = torch.maximum(
        (1 - 5 * (first - second).abs()).clamp(min=0), (1 - 7 * (second - third).abs()).clamp(min=0)
    )
    return (0.2 + 0.4 * depth + 0.4 * crystals) * depth.new_tensor(_ICE)[:, None, None]


def fog(images: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
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


def brightness(images: Tensor, c: float, _: Draws) -> Tensor:
    """The value of hue, saturation and value raised by c: all channels grow by one factor, and black becomes grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + c).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised.expand_as(images))
