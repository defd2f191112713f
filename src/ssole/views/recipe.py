"""What to sample: the parameters of every view, as pure functions of (seed, epoch, image, view).

Shape suffixes: B images, V views of a crop group. The distributions are torchvision's (`RandomResizedCrop`,
`ColorJitter`, `RandomGrayscale`, `GaussianBlur`, `RandomSolarize`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ssole.config import Crop, ViewRecipe
from ssole.rng import Use, uniforms

_CROP_TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to a centre crop


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """Parameters of V views of B images; every tensor has shape (B, V) unless noted."""

    box: torch.Tensor
    """float32 (B, V, 4): left, top, width, height of the crop, whole pixels of the image."""
    hflip: torch.Tensor
    vflip: torch.Tensor
    jitter: torch.Tensor
    order: torch.Tensor
    """int64 (B, V, 4): jitter operations in the order they run: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    factors: torch.Tensor
    """float32 (B, V, 4): brightness, contrast, saturation factors and hue shift (in turns)."""
    grey: torch.Tensor
    sigma: torch.Tensor
    """float32: standard deviation of the blur in pixels, 0 where there is none."""
    solarize: torch.Tensor


def sample_params(
    recipe: ViewRecipe,
    crop: Crop,
    ids: torch.Tensor,
    views: torch.Tensor,
    sizes: torch.Tensor,
    *,
    seed: int,
    epoch: int,
) -> ViewParams:
    """Draw the parameters of the views of one crop group.

    Args:
        ids: int64 (B,) image indices in the data set.
        views: int64 (V,) numbers of the views, counted over all crop groups.
        sizes: int64 (B, 2) or (1, 2) heights and widths of the images.
    """

    def draw(use: Use, n: int = 1) -> torch.Tensor:
        return uniforms(seed, epoch, ids, views, use, n)

    jitter = draw(Use.JITTER, 9)
    strengths = torch.tensor([recipe.brightness, recipe.contrast, recipe.saturation, 0.0], device=ids.device)
    low, high = (1 - strengths).clamp(min=0), 1 + strengths
    low[3], high[3] = -recipe.hue, recipe.hue
    blur = draw(Use.BLUR, 2)
    sigma = recipe.blur_sigma[0] + (recipe.blur_sigma[1] - recipe.blur_sigma[0]) * blur[..., 1]
    return ViewParams(
        box=_boxes(crop, draw(Use.CROP, 2 * _CROP_TRIES + 2), sizes.to(torch.float32)),
        hflip=draw(Use.HFLIP)[..., 0] < recipe.hflip,
        vflip=draw(Use.VFLIP)[..., 0] < recipe.vflip,
        jitter=jitter[..., 0] < recipe.jitter,
        factors=low + (high - low) * jitter[..., 1:5],
        order=jitter[..., 5:9].argsort(dim=-1),
        grey=draw(Use.GREY)[..., 0] < recipe.grey,
        sigma=torch.where(blur[..., 0] < recipe.blur, sigma, torch.zeros_like(sigma)),
        solarize=draw(Use.SOLARIZE)[..., 0] < recipe.solarize,
    )


def _boxes(crop: Crop, u: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Random resized crops: the first of ten tries that fits, else the largest centre crop within the ratio."""
    height, width = sizes[:, None, None, 0], sizes[:, None, None, 1]
    area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[..., :_CROP_TRIES])
    log_low, log_high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    ratio = torch.exp(log_low + (log_high - log_low) * u[..., _CROP_TRIES : 2 * _CROP_TRIES])
    w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first of equal maxima

    height, width = height[..., 0], width[..., 0]
    found = fits.any(dim=-1)
    w = torch.where(found, w.gather(-1, first)[..., 0], torch.minimum(width, (height * crop.ratio[1]).round()))
    h = torch.where(found, h.gather(-1, first)[..., 0], torch.minimum(height, (width / crop.ratio[0]).round()))
    # +1 because both ends are possible; the minimum guards against u * (n + 1) rounding up to n + 1
    left = torch.minimum((u[..., -2] * (width - w + 1)).floor(), width - w)
    top = torch.minimum((u[..., -1] * (height - h + 1)).floor(), height - h)
    left = torch.where(found, left, ((width - w) / 2).round())
    top = torch.where(found, top, ((height - h) / 2).round())
    return torch.stack([left, top, w, h], dim=-1)
