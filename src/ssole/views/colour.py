"""Colour jitter, grey, blur, solarize and normalisation of many views at once.

Brightness, contrast and saturation are one thing: every pixel is multiplied by a small matrix that belongs to its view,
an offset is added, and the sum is clamped. So views with different operations and orders go through the same batched
product. Only hue needs a formula of its own.

Shape suffixes: N views, C channels, S side of the crop, P = S * S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ssole.config import ViewRecipe
from ssole.views.filters import Taps, filtered
from ssole.views.recipe import ViewParams

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights of torchvision's rgb_to_grayscale
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # numbers in `ViewParams.order`
JITTER_FLOATS = 6  # a view and squared number of channels, of a `Jitter`


def photometric(
    x_NCSS: torch.Tensor,
    params: ViewParams,
    jitter: Jitter,
    normalisation: Normalisation,
    recipe: ViewRecipe,
    hue_at: int | None,
) -> torch.Tensor:
    """Everything after the crop, to the effect of :class:`~ssole.config.ViewRecipe`'s order. May overwrite its input.

    Grey comes after blur: both are linear, so that their order is free, and it then merges with normalisation. Only
    solarize, a threshold, has to wait for it.

    Args:
        jitter, normalisation: of :func:`jitter_of` and :func:`normalisation_of`, for these views.
        hue_at: the place of hue in the order of all of these views; -1 when none is jittered, None when they differ.
    """
    x = x_NCSS
    if recipe.turn > 0:
        x = on_chosen(x, params.turns % 2 == 1, lambda y, _: y.mT)
    if recipe.jitter > 0 and hue_at != -1:
        x = colour_jitter(x, jitter, recipe, hue_at)
    if recipe.blur > 0:
        x = on_chosen(x, params.sigma > 0, lambda y, rows: blur(y, blur_taps(params.sigma[rows], y.shape[-1], recipe)))
    if recipe.solarize > 0:
        channels = x.shape[1]
        x = normalised(x, _normalisation(params.grey, (0,) * channels, (1,) * channels))
        x = on_chosen(x, params.solarize, lambda y, _: solarize(y))
    return normalised(x, normalisation)


def on_chosen(
    x: torch.Tensor, chosen: torch.Tensor, operation: Callable[[torch.Tensor, torch.Tensor | slice], torch.Tensor]
) -> torch.Tensor:
    """x with the chosen views replaced by operation(views, their rows); may overwrite x."""
    if x.device.type != "cpu":
        return on_all(x, chosen, operation)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(x):
        return operation(x, slice(None))
    if len(rows):
        x[rows] = operation(x[rows], rows)
    return x


def on_all(
    x: torch.Tensor, chosen: torch.Tensor, operation: Callable[[torch.Tensor, torch.Tensor | slice], torch.Tensor]
) -> torch.Tensor:
    """The same where counting the chosen would make an accelerator wait: the operation runs on all views."""
    return torch.where(chosen[:, None, None, None], operation(x, slice(None)), x)


class Jitter(NamedTuple):
    """Brightness, contrast and saturation in each view's order, with room for three before hue and three after.

    Of the places 0, 1, 2 before and 1, 2, 3 after, a view idles in those on the wrong side of its own hue.
    """

    matrix: torch.Tensor
    """float32 (N, 6, C, C): by which every pixel is multiplied."""
    contrast: torch.Tensor
    """float32 (N, 6): how much of the mean luma is added."""
    shift: torch.Tensor
    """float32 (N,): of hue, in turns."""
    luma: torch.Tensor
    """float32 (C,): weights of the channels."""

    def of(self, views: slice) -> Jitter:
        """That of some of the views."""
        return Jitter(self.matrix[views], self.contrast[views], self.shift[views], self.luma)


def jitter_of(params: ViewParams, channels: int) -> Jitter:
    """The jitter of views: with factor f, brightness is f x, contrast f x + (1 - f) mean(luma(x)) and saturation
    f x + (1 - f) luma(x)."""
    slots = torch.arange(6, device=params.order.device)
    before = slots < 3
    places = torch.where(before, slots, slots - 2)
    operation, hue_at = params.order[:, places], place_of_hue(params)[:, None]
    idle = (operation == HUE) | torch.where(before, places > hue_at, places < hue_at)
    factor = params.factors.gather(1, operation).masked_fill_(idle, 1)
    matrix = torch.diag_embed(factor[..., None].expand(-1, -1, channels))
    luma = luma_weights(channels, places.device)
    if channels == 3:
        matrix += ((1 - factor) * (operation == SATURATION))[..., None, None] * luma
    return Jitter(matrix, (1 - factor) * (operation == CONTRAST), params.factors[:, HUE], luma)


def place_of_hue(params: ViewParams) -> torch.Tensor:
    """int64 (N,): where in each view's order hue comes."""
    return (params.order == HUE).to(torch.uint8).argmax(dim=1)


def colour_jitter(x_NCSS: torch.Tensor, jitter: Jitter, recipe: ViewRecipe, hue_at: int | None) -> torch.Tensor:
    """The four operations, in each view's own order. May overwrite x."""
    x = x_NCSS.flatten(2)
    for slot in range(3 if hue_at is None else hue_at):
        x = linear(x, jitter, slot)
    if recipe.hue > 0:
        x = hue(x, jitter.shift)
    for slot in range(3 if hue_at is None else 3 + hue_at, 6):
        x = linear(x, jitter, slot)
    return x.view_as(x_NCSS)


def linear(x_NCP: torch.Tensor, jitter: Jitter, slot: int) -> torch.Tensor:
    """matrix x + contrast mean(luma(x)), within [0, 1]."""
    offset = jitter.contrast[:, slot] * (x_NCP.mean(dim=2) @ jitter.luma)
    return torch.baddbmm(offset[:, None, None], jitter.matrix[:, slot], x_NCP).clamp_(0, 1)


def luma_weights(channels: int, device: torch.device) -> torch.Tensor:
    weights = _LUMA if channels == 3 else [1 / channels] * channels
    return torch.tensor(weights, device=device)


def hue(x_N3P: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `shift` turns, in HSV, without branches. Overwrites x.

    With value v, chroma c and hue h in [0, 1) turns, red is v - 2 c + 6 c near(1/2), green is v + c - 6 c near(1/3) and
    blue is v + c - 6 c near(2/3), where near(t) is the distance of h from t, but at least 1/6 and at most 1/3.
    """
    red, green, blue = x_N3P.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # in sextants, times chroma: 4 c + r - g where blue is the largest, 2 c + b - r where green is, g - b where red is
    turns = (red - green).add_(chroma, alpha=4)
    # comparing into floats gives 1.0 and 0.0; torch.where takes ten times as long
    largest = torch.eq(green, value, out=torch.empty_like(value))
    turns.lerp_((blue - red).add_(chroma, alpha=2), largest)
    turns.lerp_(green - blue, torch.eq(red, value, out=largest))
    # Grey pixels have no hue; their chroma of 0 removes whatever this gives. Above 0, so that frac gives the hue.
    turns = torch.addcdiv(shift_N[:, None] + 1, turns, chroma.clamp(min=1e-8), value=1 / 6).frac_()
    low, high = value.sub(chroma, alpha=2), value.add_(chroma)
    for channel, (start, sign, target) in enumerate(((low, 6, 1 / 2), (high, -6, 1 / 3), (high, -6, 2 / 3))):
        near = (turns - target).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(start, chroma, near, value=sign, out=x_N3P[:, channel])
    return x_N3P


def blur(x_NCSS: torch.Tensor, taps: Taps) -> torch.Tensor:
    """Gaussian blur, each view with its own taps."""
    return filtered(x_NCSS, taps, taps)


def blur_radius(sigma: float, size: int, recipe: ViewRecipe) -> int:
    """Pixels to each side: 4 sigma, beyond which 0.006 % of the weight lies, but at most 3 of the recipe's largest."""
    return min(math.ceil(4 * sigma), int(3 * recipe.blur_sigma[1] + 0.5), size - 1)


def blur_taps(sigma_N: torch.Tensor, size: int, recipe: ViewRecipe) -> Taps:
    """Taps of Gaussian blur with reflected borders, each view with its own sigma in pixels (0 for none)."""
    radius, device = blur_radius(recipe.blur_sigma[1], size, recipe), sigma_N.device
    offsets = torch.arange(-radius, radius + 1, device=device)
    # at a sigma of 0.001 the neighbours' weights underflow to 0
    kernel_NK = torch.exp(-0.5 * (offsets / sigma_N.clamp(min=1e-3)[:, None]) ** 2)
    kernel_NK *= offsets.abs() <= torch.ceil(4 * sigma_N)[:, None]
    kernel_NK /= kernel_NK.sum(dim=-1, keepdim=True)
    source = (torch.arange(size, device=device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    return Taps(source.expand(len(sigma_N), -1, -1), kernel_NK[:, None].expand(-1, size, -1))


def solarize(x: torch.Tensor) -> torch.Tensor:
    """Values of 128/255 and more inverted."""
    bright = x.clone().ge_(128 / 255)
    return torch.addcmul(x, bright, 1 - 2 * x)


class Normalisation(NamedTuple):
    """(x - mean) / std, of the luma where a view is grey: one product, since both are linear in a pixel's channels."""

    matrix: torch.Tensor
    """float32 (N, C, C)."""
    offset: torch.Tensor
    """float32 (C, 1)."""

    def of(self, views: slice) -> Normalisation:
        """That of some of the views."""
        return Normalisation(self.matrix[views], self.offset)


def normalisation_of(params: ViewParams, recipe: ViewRecipe) -> Normalisation:
    """How views end; with solarize, which comes between grey and normalisation, without grey."""
    assert recipe.mean is not None
    assert recipe.std is not None
    grey = params.grey if recipe.solarize == 0 else torch.zeros_like(params.grey)
    return _normalisation(grey, recipe.mean, recipe.std)


def _normalisation(grey_N: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Normalisation:
    channels, device = len(mean), grey_N.device
    matrix = torch.eye(channels, device=device)
    if channels == 3:
        matrix = torch.where(grey_N[:, None, None], luma_weights(3, device).expand(3, 3), matrix)
    scale = 1 / torch.tensor(std, device=device)[:, None]
    offset = -torch.tensor(mean, device=device)[:, None] * scale
    return Normalisation((matrix * scale).expand(len(grey_N), -1, -1), offset)


def normalised(x_NCSS: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """The views as a network gets them."""
    return torch.baddbmm(normalisation.offset, normalisation.matrix, x_NCSS.flatten(2)).view_as(x_NCSS)
