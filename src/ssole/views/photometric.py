"""Photometric operations: colour jitter, blur, grey, solarize and normalisation.

:mod:`ssole.views.augment` says why many small views and single large views take two routes on a CPU, here called
`_many` and `_one`. Weights, taps, the hue formula, limits and thresholds are defined once, for all routes. With factor
f, brightness is f x, contrast f x + (1 - f) mean(luma(x)) and saturation f x + (1 - f) luma(x), each clamped to [0, 1].

Shape suffixes: N views, C channels, S side of the view, P = S * S pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ssole.config import ViewRecipe
from ssole.runtime import copy_to
from ssole.views.geometry import Taps, filter_many, filter_one, on_chosen
from ssole.views.params import ViewParams

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # numbers in `ViewParams.order`
JITTER_FLOATS = 6  # memory of a `Jitter`, in floats per view and squared number of channels
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights of torchvision's rgb_to_grayscale


def photometric_many(
    x_NCSS: torch.Tensor,
    params: ViewParams,
    jitter: Jitter,
    normalisation: tuple[torch.Tensor, torch.Tensor],
    recipe: ViewRecipe,
    hue_at: int,
) -> torch.Tensor:
    """All photometric operations on many views, with the effect of :class:`~ssole.ViewRecipe`'s order.

    Grey comes after blur and merges with normalisation: all three are linear, so that their order is free. Solarize is
    a threshold and needs grey before it. May overwrite its input.

    Args:
        jitter, normalisation: from :func:`jitter_of` and :func:`last_normalisation`, for these views.
        hue_at: position of hue in the order of all of these views, or -1 if none of them is jittered.
    """
    x = x_NCSS
    if recipe.jitter > 0 and hue_at != -1:
        x = jitter_many(x, jitter, recipe, hue_at)
    if recipe.blur > 0:
        x = on_chosen(x, params.sigma > 0, lambda y, rows: blur_many(y, params.sigma[rows], recipe))
    if recipe.solarize > 0:
        zeros, ones = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
        x = normalise_many(x, *normalisation_of(params.grey, zeros, ones))
        x = on_chosen(x, params.solarize, lambda y, _: solarize(y))
    return normalise_many(x, *normalisation)


class Jitter(NamedTuple):
    """Brightness, contrast and saturation of many views, as products in six slots: three before hue and three after.

    In each slot, every pixel is multiplied by a small matrix of its view, and an offset is added. So views with
    different operations and orders go through the same calls. Slots 0, 1, 2 hold positions 0, 1, 2 of a view's order;
    slots 3, 4, 5 hold positions 1, 2, 3. A slot on the wrong side of a view's hue leaves the view as it is.
    """

    matrix: torch.Tensor
    """float32 (N, 6, C, C), by which every pixel is multiplied."""
    contrast: torch.Tensor
    """float32 (N, 6, C), by which a view's mean colour is multiplied, for the offset that contrast adds."""
    shift: torch.Tensor
    """float32 (N,), of hue, in turns."""

    def select(self, views: slice) -> Jitter:
        """The same for some of the views."""
        return Jitter(self.matrix[views], self.contrast[views], self.shift[views])


def jitter_of(params: ViewParams, channels: int) -> Jitter:
    """Jitter of many views, from their parameters."""
    slots = torch.arange(6, device=params.order.device)
    before = slots < 3
    position = torch.where(before, slots, slots - 2)
    operation, hue_at = params.order[:, position], position_of_hue(params)[:, None]
    idle = (operation == HUE) | torch.where(before, position > hue_at, position < hue_at)
    factor = params.factors.gather(1, operation).masked_fill_(idle, 1)
    matrix = torch.diag_embed(factor[..., None].expand(-1, -1, channels))
    luma = luma_weights(channels, position.device)
    matrix += ((1 - factor) * (operation == SATURATION))[..., None, None] * luma
    contrast = ((1 - factor) * (operation == CONTRAST))[..., None] * luma
    return Jitter(matrix, contrast, params.factors[:, HUE])


def position_of_hue(params: ViewParams) -> torch.Tensor:
    """Position of hue in each view's order, int64 (N,)."""
    return (params.order == HUE).to(torch.uint8).argmax(dim=1)


def jitter_many(x_NCSS: torch.Tensor, jitter: Jitter, recipe: ViewRecipe, hue_at: int | None) -> torch.Tensor:
    """Colour jitter of many views, each in its own order. May overwrite x.

    With hue in the same position in all of them, only the slots that it leaves are taken; with None, all six.
    """
    x = x_NCSS.flatten(2)
    for slot in range(3)[:hue_at]:
        x = jitter_slot(x, jitter.matrix[:, slot], jitter.contrast[:, slot])
    if recipe.hue > 0:
        x = turn_hue(x, jitter.shift)
    for slot in range(3, 6)[hue_at:]:
        x = jitter_slot(x, jitter.matrix[:, slot], jitter.contrast[:, slot])
    return x.view_as(x_NCSS)


def jitter_slot(x_NCP: torch.Tensor, matrix_NCC: torch.Tensor, contrast_NC: torch.Tensor) -> torch.Tensor:
    """One slot of a jitter: matrix x + contrast . mean(x), clamped to [0, 1]."""
    offset_N11 = torch.bmm(contrast_NC[:, None], x_NCP.mean(dim=2, keepdim=True))
    return torch.baddbmm(offset_N11, matrix_NCC, x_NCP).clamp_(0, 1)


def jitter_one(x_CP: torch.Tensor, order: list[int], factors: list[float], luma_C: torch.Tensor) -> torch.Tensor:
    """Colour jitter of a single view, in its order. Overwrites x."""
    x = x_CP
    for operation in order:
        factor = factors[operation]
        if operation == HUE:
            x = turn_hue(x[None], torch.tensor([factor]))[0] if factor else x
        elif operation == BRIGHTNESS:
            x.mul_(factor)
        elif operation == CONTRAST:
            x.lerp_(luma_C @ x.mean(dim=1), 1 - factor)
        else:
            x.lerp_(luma_C @ x, 1 - factor)
        if operation != HUE and factor > 1:  # smaller factors and hue stay within [0, 1]
            x.clamp_(0, 1)
    return x


def luma_weights(channels: int, device: torch.device) -> torch.Tensor:
    """Weights of red, green and blue in the luma, or equal weights for other numbers of channels: float32 (C,)."""
    return copy_to(_LUMA if channels == 3 else [1 / channels] * channels, device)


def turn_hue(x_N3P: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """Views with their hue shifted by `shift` turns in HSV, without branches. Overwrites x.

    With value v, chroma c and hue h in [0, 1) turns, red is v - 2 c + 6 c near(1/2), green is v + c - 6 c near(1/3) and
    blue is v + c - 6 c near(2/3), where near(t) is the distance of h from t, clamped to [1/6, 1/3].
    """
    red, green, blue = x_N3P.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Hue in sextants, times chroma: 4 c + r - g if blue is the largest, 2 c + b - r if green is, g - b if red is.
    turns = (red - green).add_(chroma, alpha=4)
    # Comparing into floats gives 1.0 and 0.0. torch.where takes ten times as long.
    largest = torch.eq(green, value, out=torch.empty_like(value))
    turns.lerp_((blue - red).add_(chroma, alpha=2), largest)
    turns.lerp_(green - blue, torch.eq(red, value, out=largest))
    # Grey pixels have no hue: the clamp avoids 0 / 0, and their chroma of 0 removes the result. The + 1 keeps the sum
    # above 0, where frac gives the hue.
    turns = torch.addcdiv(shift_N[:, None] + 1, turns, chroma.clamp(min=1e-8), value=1 / 6).frac_()
    low, high = value.sub(chroma, alpha=2), value.add_(chroma)
    for channel, (start, sign, target) in enumerate(((low, 6, 1 / 2), (high, -6, 1 / 3), (high, -6, 2 / 3))):
        near = (turns - target).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(start, chroma, near, value=sign, out=x_N3P[:, channel])
    return x_N3P


def blur_radius(sigma: float, size: int, recipe: ViewRecipe) -> int:
    """Reach of a blur in pixels: 4 sigma (beyond it lies 0.006 % of the weight), at most 3 of the largest sigma."""
    return min(math.ceil(4 * sigma), int(3 * recipe.blur_sigma[1] + 0.5), size - 1)


def blur_taps(sigma_N: torch.Tensor, size: int, recipe: ViewRecipe) -> Taps:
    """Taps of a Gaussian blur with reflected borders. Each view has its own sigma in pixels; 0 is no blur."""
    radius, device = blur_radius(recipe.blur_sigma[1], size, recipe), sigma_N.device
    offsets = torch.arange(-radius, radius + 1, device=device)
    # The clamp avoids 0 / 0: at a sigma of 0.001 the neighbours' weights underflow to 0.
    kernel_NK = torch.exp(-0.5 * (offsets / sigma_N.clamp(min=1e-3)[:, None]) ** 2)
    kernel_NK *= offsets.abs() <= torch.ceil(4 * sigma_N)[:, None]
    kernel_NK /= kernel_NK.sum(dim=-1, keepdim=True)
    source = (torch.arange(size, device=device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    return Taps(source.expand(len(sigma_N), -1, -1), kernel_NK[:, None].expand(-1, size, -1))


def blur_many(x_NCSS: torch.Tensor, sigma_N: torch.Tensor, recipe: ViewRecipe) -> torch.Tensor:
    """Gaussian blur of many views."""
    taps = blur_taps(sigma_N, x_NCSS.shape[-1], recipe)
    return filter_many(x_NCSS, taps, taps)


def blur_one(x_CSS: torch.Tensor, taps: Taps, n: int, sigma: float, recipe: ViewRecipe) -> torch.Tensor:
    """Transpose of a single view after Gaussian blur by view n in `taps`, without taps that have no weight."""
    middle, radius = taps.weight.shape[2] // 2, blur_radius(sigma, x_CSS.shape[-1], recipe)
    taps = taps.select(slice(n, n + 1), slice(middle - radius, middle + radius + 1))
    return filter_one(x_CSS, taps, taps)


def solarize(x: torch.Tensor) -> torch.Tensor:
    """x with values of 128/255 and more inverted."""
    bright = x.clone().ge_(128 / 255)
    return torch.addcmul(x, bright, 1 - 2 * x)


def normalisation_of(
    grey_N: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - mean) / std, of the luma where a view is grey, as matrices (N, C, C) of pixels and an offset (C, 1)."""
    channels, device = len(mean_C), grey_N.device
    luma_CC, identity_CC = luma_weights(channels, device).expand(channels, -1), torch.eye(channels, device=device)
    scale = 1 / std_C[:, None]
    return torch.where(grey_N[:, None, None], luma_CC, identity_CC) * scale, -mean_C[:, None] * scale


def last_normalisation(params: ViewParams, recipe: ViewRecipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalisation of the last product of views, as :func:`normalisation_of`.

    It turns views grey, except in recipes with solarize, which comes after grey.
    """
    mean, std = (copy_to(values, params.grey.device) for values in (recipe.mean, recipe.std))
    return normalisation_of(params.grey & (recipe.solarize == 0), mean, std)


def normalise_many(x_NCSS: torch.Tensor, matrix_NCC: torch.Tensor, offset_C1: torch.Tensor) -> torch.Tensor:
    """Views multiplied by their matrices and moved by the offset."""
    return torch.baddbmm(offset_C1, matrix_NCC, x_NCSS.flatten(2)).view_as(x_NCSS)
