"""Colour jitter, grey, blur, solarize and normalisation of many views at once.

Brightness, contrast and saturation are one thing: every pixel is multiplied by a small matrix that belongs to its view,
an offset is added, and the sum is clamped. So views with different operations and orders go through the same batched
product. Only hue needs a formula of its own.

Shape suffixes: N views, C channels, S side of the crop, P = S * S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ssole.config import ViewRecipe
from ssole.views.crop import apply_separable
from ssole.views.recipe import ViewParams

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights of torchvision's rgb_to_grayscale
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # numbers in `ViewParams.order`
_SMALL = 64  # pixels of a view up to which a matrix for its blur beats adding up shifted copies on a CPU


def photometric(x_NCSS: torch.Tensor, params: ViewParams, recipe: ViewRecipe, hue_at: int | None) -> torch.Tensor:
    """Everything after the crop, to the effect of :class:`~ssole.config.ViewRecipe`'s order. May overwrite its input.

    Grey comes after blur: both are linear, so that their order is free, and it then merges with normalisation. Only
    solarize, a threshold, has to wait for it.

    Args:
        hue_at: the place of hue in the order of all of these views; -1 when none is jittered, None when they differ.
    """
    x = x_NCSS
    if recipe.turn > 0:
        x = on_chosen(x, params.turns % 2 == 1, lambda y, _: y.mT)
    if recipe.jitter > 0 and hue_at != -1:
        x = colour_jitter(x, params, recipe, hue_at)
    if recipe.blur > 0:
        most = int(3 * recipe.blur_sigma[1] + 0.5)
        x = on_chosen(x, params.sigma > 0, lambda y, rows: blur(y, params.sigma[rows], most))
    if recipe.solarize > 0:
        x = grey_and_normalised(x, params.grey, (0,) * x.shape[1], (1,) * x.shape[1])
        x = on_chosen(x, params.solarize, lambda y, _: solarize(y))
        grey = torch.zeros_like(params.grey)
    else:
        grey = params.grey
    assert recipe.mean is not None
    assert recipe.std is not None
    return grey_and_normalised(x, grey, recipe.mean, recipe.std)


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


def colour_jitter(x_NCSS: torch.Tensor, params: ViewParams, recipe: ViewRecipe, hue_at: int | None) -> torch.Tensor:
    """The four operations, in each view's own order."""
    x = x_NCSS.flatten(2)
    if hue_at is not None:
        before, after, idle = range(hue_at), range(hue_at + 1, 4), None
    else:  # leave room for up to three before and after; a view idles in the places on the wrong side of its own hue
        before, after, idle = range(3), range(1, 4), (params.order == HUE).to(torch.uint8).argmax(dim=1)
    for place in before:
        x = linear(x, params.order[:, place], params.factors, None if idle is None else place >= idle)
    if recipe.hue > 0:
        x = hue(x, params.factors[:, HUE])
    for place in after:
        x = linear(x, params.order[:, place], params.factors, None if idle is None else place <= idle)
    return x.view_as(x_NCSS)


def linear(
    x_NCP: torch.Tensor, operation_N: torch.Tensor, factors_N4: torch.Tensor, idle_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Brightness, contrast or saturation of each view, as `operation_N` says; nothing where it is hue, or idle.

    With factor f, brightness is f x, contrast f x + (1 - f) mean(luma(x)), saturation f x + (1 - f) luma(x).
    """
    channels = x_NCP.shape[1]
    factor = factors_N4.gather(1, operation_N[:, None])[:, 0]
    nothing = operation_N == HUE if idle_N is None else idle_N | (operation_N == HUE)
    factor = factor.masked_fill(nothing, 1)
    weights = luma_weights(channels, x_NCP.device)
    matrix = torch.diag_embed(factor[:, None].expand(-1, channels))
    if channels == 3:
        matrix += ((1 - factor) * (operation_N == SATURATION))[:, None, None] * weights
    offset = (1 - factor) * (operation_N == CONTRAST) * (x_NCP.mean(dim=2) @ weights)
    return torch.baddbmm(offset[:, None, None], matrix, x_NCP).clamp_(0, 1)


def luma_weights(channels: int, device: torch.device) -> torch.Tensor:
    weights = _LUMA if channels == 3 else [1 / channels] * channels
    return torch.tensor(weights, device=device)


def hue(x_N3P: torch.Tensor, shift_N: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `shift` turns, in HSV, without branches.

    With value v, chroma c and hue h in turns, a channel is v - c clamp(2 - 6 d, 0, 1), which is
    v - 2 c + 6 c clamp(d, 1/6, 1/3). Here d is the distance from h + offset to the nearest whole number, and the offset
    is 1/2, 1/6 or -1/6 for red, green or blue.
    """
    red, green, blue = x_N3P.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # in sextants, times chroma: 4 c + r - g where blue is the largest, 2 c + b - r where green is, g - b where red is
    turns = (red - green).add_(chroma, alpha=4)
    # comparing in place gives 1.0 and 0.0; torch.where takes ten times as long
    turns.lerp_((blue - red).add_(chroma, alpha=2), green.clone().eq_(value))
    turns.lerp_(green - blue, red.clone().eq_(value))
    # grey pixels have no hue; their chroma of 0 removes whatever this gives
    turns = torch.addcdiv(shift_N[:, None], turns, chroma.clamp(min=1e-8), value=1 / 6)
    distance = turns[:, None] + turns.new_tensor([1 / 2, 1 / 6, -1 / 6])[:, None]
    distance.sub_(distance.round()).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul(value.sub_(chroma, alpha=2)[:, None], chroma[:, None], distance, value=6)


def blur(x_NCSS: torch.Tensor, sigma_N: torch.Tensor, most: int) -> torch.Tensor:
    """Gaussian blur with reflected borders, each view with its own sigma in pixels (0 for none).

    A view's window reaches 4 sigma to each side, beyond which 0.006 % of the weight lies, and at most `most` pixels.
    """
    size, device = x_NCSS.shape[-1], x_NCSS.device
    radius_N = torch.ceil(4 * sigma_N).clamp(max=min(most, size - 1))
    radius = min(most, size - 1)
    offsets = torch.arange(-radius, radius + 1, device=device)
    # at a sigma of 0.001 the neighbours' weights underflow to 0
    kernel_NK = torch.exp(-0.5 * (offsets / sigma_N.clamp(min=1e-3)[:, None]) ** 2)
    kernel_NK *= offsets.abs() <= radius_N[:, None]
    kernel_NK /= kernel_NK.sum(dim=-1, keepdim=True)
    if device.type == "cpu" and size > _SMALL:
        views = zip(x_NCSS, kernel_NK.tolist(), radius_N.tolist(), strict=True)
        return torch.stack([_convolved(_convolved(x, kernel, int(r), 2), kernel, int(r), 1) for x, kernel, r in views])
    source = (torch.arange(size, device=device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    matrix_NSS = torch.zeros(len(sigma_N), size, size, device=device)
    matrix_NSS.scatter_add_(2, source.expand(len(sigma_N), -1, -1), kernel_NK[:, None].expand(-1, size, -1))
    return apply_separable(x_NCSS, matrix_NSS, matrix_NSS)


def _convolved(x_CSS: torch.Tensor, kernel: list[float], radius: int, dim: int) -> torch.Tensor:
    """x with a kernel, of which `radius` weights to each side of the middle count, along a dimension."""
    size, middle = x_CSS.shape[dim], len(kernel) // 2
    padding = (radius, radius, 0, 0) if dim == 2 else (0, 0, radius, radius)
    padded = F.pad(x_CSS, padding, mode="reflect")
    out = x_CSS * kernel[middle]
    for offset in range(1, radius + 1):
        for start in (radius - offset, radius + offset):
            out.add_(padded.narrow(dim, start, size), alpha=kernel[middle + offset])
    return out


def solarize(x: torch.Tensor) -> torch.Tensor:
    """Values of 128/255 and more inverted."""
    bright = x.clone().ge_(128 / 255)
    return torch.addcmul(x, bright, 1 - 2 * x)


def grey_and_normalised(
    x_NCSS: torch.Tensor, grey_N: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """(x - mean) / std, of the luma where `grey_N`: one product, since both are linear in a pixel's channels."""
    channels, device = x_NCSS.shape[1], x_NCSS.device
    matrix = torch.eye(channels, device=device)
    if channels == 3:
        matrix = torch.where(grey_N[:, None, None], luma_weights(3, device).expand(3, 3), matrix)
    scale = 1 / torch.tensor(std, device=device)[:, None]
    offset = -torch.tensor(mean, device=device)[:, None] * scale
    matrix = (matrix * scale).expand(len(x_NCSS), -1, -1)
    return torch.baddbmm(offset, matrix, x_NCSS.flatten(2)).view_as(x_NCSS)
