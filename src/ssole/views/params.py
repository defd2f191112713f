"""Random parameters of views, as pure functions of (seed, epoch, image, view).

Shape suffixes: B images, V views of a crop group, N = B V views. The distributions are torchvision's
(`RandomResizedCrop`, `ColorJitter`, `RandomGrayscale`, `GaussianBlur`, `RandomSolarize`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import SimpleNamespace

import torch

from ssole.config import Crop, ViewRecipe
from ssole.rng import Use, uniforms_of_uses

_CROP_TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to a centre crop
# Number of uniform draws of each view. A change of their number or meaning changes every run.
_DRAWS = {
    Use.CROP: 2 * _CROP_TRIES + 2,  # areas, aspect ratios; left, top
    Use.HFLIP: 1,
    Use.VFLIP: 1,
    Use.TURN: 2,  # whether, how far
    Use.JITTER: 9,  # whether, four factors, four keys whose order is that of the operations
    Use.GREY: 1,
    Use.BLUR: 2,  # whether, sigma
    Use.SOLARIZE: 1,
}


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """Parameters of N views. Every tensor is bool (N,) unless noted."""

    box: torch.Tensor
    """float32 (N, 4): left, top, width, height of the crop, in whole pixels of the image."""
    hflip: torch.Tensor
    vflip: torch.Tensor
    turns: torch.Tensor
    """int64 (N,): quarter turns, counter-clockwise, after the flips."""
    jitter: torch.Tensor
    order: torch.Tensor
    """int64 (N, 4): jitter operations in the order they run: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    factors: torch.Tensor
    """float32 (N, 4): brightness, contrast, saturation factors and hue shift (in turns); 1, 1, 1, 0 without jitter."""
    grey: torch.Tensor
    sigma: torch.Tensor
    """float32 (N,): standard deviation of the blur in pixels, 0 where there is none."""
    solarize: torch.Tensor

    def __getitem__(self, rows: torch.Tensor | slice) -> ViewParams:
        """Parameters of some of the views."""
        return ViewParams(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def per_view(self) -> list[SimpleNamespace]:
        """Parameters of each view as plain numbers and lists, in fields of the same names; boxes as integers."""
        values = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        values["box"] = self.box.long().tolist()
        return [SimpleNamespace(**dict(zip(values, view, strict=True))) for view in zip(*values.values(), strict=True)]


def sample_groups(
    recipe: ViewRecipe, ids: torch.Tensor, sizes: torch.Tensor, *, seed: int, epoch: int
) -> Iterator[tuple[Crop, ViewParams]]:
    """Crop groups of a recipe, with the parameters of their views. Arguments as for :func:`sample_params`."""
    first = 0
    for crop in recipe.crops:
        views = torch.arange(first, first + crop.count, device=ids.device)
        yield crop, sample_params(recipe, crop, ids, views, sizes, seed=seed, epoch=epoch)
        first += crop.count


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
    """Parameters of all views of one crop group, image by image: N = B V.

    Args:
        ids: int64 (B,), image indices in the data set.
        views: int64 (V,), numbers of the views, counted over all crop groups.
        sizes: (B, 2) or (1, 2), heights and widths of the images.
    """
    u = uniforms_of_uses(seed, epoch, ids, views, _DRAWS)
    u = {use: draws.flatten(0, 1) for use, draws in u.items()}
    sizes = sizes.expand(len(ids), 2).repeat_interleave(len(views), dim=0, output_size=len(ids) * len(views))
    jitter_u, blur_u, turn_u = u[Use.JITTER], u[Use.BLUR], u[Use.TURN]
    strengths = (recipe.brightness, recipe.contrast, recipe.saturation)
    ranges = [*((max(0.0, 1 - strength), 1 + strength) for strength in strengths), (-recipe.hue, recipe.hue)]
    jitter = jitter_u[:, 0] < recipe.jitter
    factors = [low + (high - low) * u_N for u_N, (low, high) in zip(jitter_u[:, 1:5].unbind(-1), ranges, strict=True)]
    factors = [f.masked_fill(~jitter, neutral) for f, neutral in zip(factors, (1, 1, 1, 0), strict=True)]
    sigma = recipe.blur_sigma[0] + (recipe.blur_sigma[1] - recipe.blur_sigma[0]) * blur_u[:, 1]
    return ViewParams(
        box=_boxes(crop, u[Use.CROP], sizes),
        hflip=u[Use.HFLIP][:, 0] < recipe.hflip,
        vflip=u[Use.VFLIP][:, 0] < recipe.vflip,
        turns=(turn_u[:, 0] < recipe.turn) * (1 + (3 * turn_u[:, 1]).long()),
        jitter=jitter,
        factors=torch.stack(factors, dim=-1),
        order=jitter_u[:, 5:9].argsort(dim=-1, stable=True),
        grey=u[Use.GREY][:, 0] < recipe.grey,
        sigma=(blur_u[:, 0] < recipe.blur) * sigma,
        solarize=u[Use.SOLARIZE][:, 0] < recipe.solarize,
    )


def _boxes(crop: Crop, u: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Boxes of random resized crops: the first of ten tries that fits, else the largest centre crop within the ratio.

    The computation is in float64, so that no two devices round a side of the crop to different pixels.
    """
    u, (height, width) = u.double(), sizes.double().unbind(1)
    w, h, found = _sides(crop, u[:, : 2 * _CROP_TRIES], height, width)
    left, top = _start(width - w, u[:, -2], found), _start(height - h, u[:, -1], found)
    return torch.stack([left, top, w, h], dim=-1).to(torch.float32)


def _sides(
    crop: Crop, u: torch.Tensor, height: torch.Tensor, width: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Width and height (N,) of each box, and whether a try fitted (bool)."""
    area_u, ratio_u = u.chunk(2, dim=1)
    area = (height * width)[:, None] * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * area_u)
    log_low, log_high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    ratio = torch.exp(log_low + (log_high - log_low) * ratio_u)
    w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (w >= 1) & (w <= width[:, None]) & (h >= 1) & (h <= height[:, None])
    first = fits.to(torch.uint8).argmax(dim=-1, keepdim=True)  # the first of equal maxima
    found = fits.any(dim=-1)
    # in an image of a pixel or two, the side of a crop of an extreme ratio would round to 0
    widest, highest = (height * crop.ratio[1]).round().clamp(min=1), (width / crop.ratio[0]).round().clamp(min=1)
    w = torch.where(found, w.gather(-1, first)[:, 0], torch.minimum(width, widest))
    h = torch.where(found, h.gather(-1, first)[:, 0], torch.minimum(height, highest))
    return w, h, found


def _start(room: torch.Tensor, u: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """First pixel (N,) of each box along a side with `room` pixels beside the box: random, or central if not found."""
    # The + 1 makes both ends possible. The minimum guards against u * (n + 1) rounding up to n + 1.
    return torch.where(found, torch.minimum((u * (room + 1)).floor(), room), (room / 2).round())
