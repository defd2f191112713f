"""Large views on a CPU, one at a time.

What is computed of a view then stays in the cores' caches, and plain numbers say what takes tensors for many views:
which operation comes next, and by what factor. The same views as those of :mod:`ssole.views.colour`, to rounding.

Shape suffixes: C channels, S side of the crop, P = S * S pixels.
"""

from __future__ import annotations

import torch

from ssole.config import ViewRecipe
from ssole.views.colour import BRIGHTNESS, CONTRAST, HUE, blur_radius, blur_taps, hue, luma_weights, solarize
from ssole.views.crop import Images, crop_taps, crop_view
from ssole.views.filters import Taps, sums_of_rows_of_channels
from ssole.views.recipe import ViewParams


def make_one_by_one(images: Images, params: ViewParams, recipe: ViewRecipe, out: torch.Tensor) -> None:
    """Fill out (N, C, S, S) with the views of a crop group, of which every image has as many."""
    views, channels, size, _ = out.shape
    taps = crop_taps(images, params, size)
    blurring = blur_taps(params.sigma, size, recipe)
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    boxes, turns, orders = params.box.long().tolist(), params.turns.tolist(), params.order.tolist()
    jittered, factors, sigmas = params.jitter.tolist(), params.factors.tolist(), params.sigma.tolist()
    greyed, solarized = params.grey.tolist(), params.solarize.tolist()
    weights = luma_weights(channels, out.device)
    for n in range(views):
        x_CSS = crop_view(images[n * len(images) // views], boxes[n], taps, n)
        transposed = turns[n] % 2 == 0
        if jittered[n]:
            x_CSS = colour_jitter(x_CSS.flatten(1), orders[n], factors[n], weights).view_as(x_CSS)
        if sigmas[n] > 0:
            x_CSS = blur(x_CSS, blurring, n, blur_radius(sigmas[n], size, recipe))
            transposed = not transposed
        if greyed[n] and channels == 3:
            x_CSS = (weights @ x_CSS.flatten(1)).view(1, size, size)
        if solarized[n]:
            x_CSS = solarize(x_CSS)
        torch.sub(x_CSS.mT if transposed else x_CSS, mean, out=out[n]).div_(std)


def blur(x_CSS: torch.Tensor, taps: Taps, n: int, radius: int) -> torch.Tensor:
    """The transpose of a view after the blur that view n in `taps` has, whose weights reach so many pixels."""
    middle = taps.weight.shape[2] // 2
    some = slice(middle - radius, middle + radius + 1)
    mine = Taps(taps.source[n, :, some], taps.weight[n, :, some])
    return sums_of_rows_of_channels(sums_of_rows_of_channels(x_CSS, *mine).mT, *mine)


def colour_jitter(x_CP: torch.Tensor, order: list[int], factors: list[float], luma_C: torch.Tensor) -> torch.Tensor:
    """The four operations in a view's own order. Overwrites x."""
    x = x_CP
    for operation in order:
        factor = factors[operation]
        if operation == HUE:
            x = hue(x[None], torch.tensor([factor]))[0] if factor else x
        elif operation == BRIGHTNESS:
            x.mul_(factor)
        elif operation == CONTRAST:
            x.lerp_(luma_C @ x.mean(dim=1), 1 - factor)
        elif len(x) == 3:
            x.lerp_(luma_C @ x, 1 - factor)
        if operation != HUE and factor > 1:  # others stay within [0, 1]
            x.clamp_(0, 1)
    return x
