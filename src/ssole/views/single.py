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
from ssole.views.filters import Taps, filtered_transposed
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
    for n in range(views):
        x = crop_view(images[n * len(images) // views], boxes[n], taps, n)
        transposed = turns[n] % 2 == 0
        if jittered[n]:
            x = colour_jitter(x.flatten(2), orders[n], factors[n]).view_as(x)
        if sigmas[n] > 0:
            x = blur(x, blurring, n, blur_radius(sigmas[n], size, recipe))
            transposed = not transposed
        if greyed[n] and channels == 3:
            x = (luma_weights(3, x.device) @ x.flatten(2)).view(1, 1, size, size)
        if solarized[n]:
            x = solarize(x)
        torch.sub(x[0].mT if transposed else x[0], mean, out=out[n]).div_(std)


def blur(x_1CSS: torch.Tensor, taps: Taps, n: int, radius: int) -> torch.Tensor:
    """The transpose of a view after the blur that view n in `taps` has, whose weights reach so many pixels."""
    middle = taps.weight.shape[2] // 2
    some = slice(middle - radius, middle + radius + 1)
    mine = Taps(taps.source[n : n + 1, :, some], taps.weight[n : n + 1, :, some])
    return filtered_transposed(x_1CSS, mine, mine)


def colour_jitter(x_1CP: torch.Tensor, order: list[int], factors: list[float]) -> torch.Tensor:
    """The four operations in a view's own order. Overwrites x."""
    x = x_1CP
    weights = luma_weights(x.shape[1], x.device)
    for operation in order:
        factor = factors[operation]
        if operation == HUE:
            x = hue(x, torch.tensor([factor])) if factor else x
        elif operation == BRIGHTNESS:
            x.mul_(factor)
        elif operation == CONTRAST:
            x.lerp_(weights @ x.mean(dim=2)[0], 1 - factor)
        elif x.shape[1] == 3:
            x.lerp_(weights @ x, 1 - factor)
        if operation != HUE and factor > 1:  # others stay within [0, 1]
            x.clamp_(0, 1)
    return x
