"""Batched augmentation on tensors: the same code on CPU and GPU, V views of every image at once.

Geometry is linear and separable, so crop, antialiased resize and flips are one pair of small matrices per view, applied
by batched matrix products. Colour operations run in place on groups of views that fit the CPU's cache.

Shape suffixes: N views, C = 3 channels, S side of the crop, H x W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ssole.config import Crop, ViewRecipe
from ssole.views.recipe import ViewParams, sample_params

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, the weights of torchvision's rgb_to_grayscale
_CHUNK_FLOATS = 1 << 17  # 512 KiB of float32: a chunk and its temporaries stay in a core's L2 cache


@torch.no_grad()
def make_views(
    images: torch.Tensor | Sequence[torch.Tensor], ids: torch.Tensor, *, recipe: ViewRecipe, seed: int, epoch: int
) -> list[torch.Tensor]:
    """Make the views of a batch of images.

    Every random parameter is a pure function of (seed, epoch, id, view): an image's views do not depend on its batch.

    Args:
        images: uint8 (B, 3, H, W), or B tensors uint8 (3, h, w) of different sizes.
        ids: int64 (B,), each image's index in its data set.
        recipe: what to sample.
        seed, epoch: any integers.

    Returns:
        For each crop group a float32 tensor (B, V_g, 3, S_g, S_g), normalised by the recipe's mean and std, on the
        device of `images`.

    Raises:
        ValueError: images of another dtype or shape, or as many ids as there are no images.
    """
    _check_images(images, ids)
    device = images.device if isinstance(images, torch.Tensor) else images[0].device
    ids = ids.to(device)
    if isinstance(images, torch.Tensor):
        sizes = torch.tensor([images.shape[-2:]], device=device)
    else:
        sizes = torch.tensor([tuple(image.shape[-2:]) for image in images], device=device)
    groups, first = [], 0
    for crop in recipe.crops:
        numbers = torch.arange(first, first + crop.count, device=device)
        params = sample_params(recipe, crop, ids, numbers, sizes, seed=seed, epoch=epoch)
        x_NCSS = (
            _crop_uniform(images, crop, params)
            if isinstance(images, torch.Tensor)
            else _crop_list(images, crop, params)
        )
        _photometric(x_NCSS, recipe, params)
        groups.append(x_NCSS.unflatten(0, (len(ids), crop.count)))
        first += crop.count
    return groups


def _check_images(images: torch.Tensor | Sequence[torch.Tensor], ids: torch.Tensor) -> None:
    if len(images) != len(ids):
        raise ValueError(f"as many ids as images are needed, got {len(ids)} ids and {len(images)} images")
    one = images if isinstance(images, torch.Tensor) else images[0]
    dims = 4 if isinstance(images, torch.Tensor) else 3
    if one.dtype != torch.uint8 or one.dim() != dims or one.shape[-3] != 3:
        raise ValueError(
            f"images must be uint8 (B, 3, H, W) or a list of uint8 (3, h, w), got {one.dtype} {tuple(one.shape)}"
        )


def _resample_weights(
    start: torch.Tensor, length: torch.Tensor, flip: torch.Tensor, size: int, extent: int
) -> torch.Tensor:
    """Weights (N, size, extent) of an antialiased linear resize of pixels [start, start + length) to `size`.

    A triangle filter whose half-width grows with the scale when shrinking, restricted to the crop and normalised: what
    Pillow's and torchvision's antialiased bilinear resize computes.
    """
    out = torch.arange(size, device=start.device, dtype=torch.float32)
    out = torch.where(flip[:, None], size - 1 - out, out)
    scale = (length / size)[:, None]
    centre = start[:, None] + (out + 0.5) * scale
    pixel = torch.arange(extent, device=start.device, dtype=torch.float32) + 0.5
    weights = (pixel - centre[..., None]).abs_().div_(-scale.clamp(min=1)[..., None]).add_(1).clamp_(min=0)
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])
    weights *= inside[:, None, :]
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _apply_separable(x_NCHW: torch.Tensor, rows_NSH: torch.Tensor, columns_NSW: torch.Tensor) -> torch.Tensor:
    """rows @ x @ columns^T for every view and channel: (N, C, S, S)."""
    n, c, h, w = x_NCHW.shape
    x = x_NCHW.reshape(n, c * h, w) @ columns_NSW.mT
    out: torch.Tensor = rows_NSH[:, None] @ x.unflatten(1, (c, h))
    return out


def _crop_uniform(images: torch.Tensor, crop: Crop, params: ViewParams) -> torch.Tensor:
    height, width = images.shape[-2:]
    left, top, w, h = params.box.flatten(0, 1).unbind(-1)
    columns = _resample_weights(left, w, params.hflip.flatten(), crop.size, width)
    rows = _resample_weights(top, h, params.vflip.flatten(), crop.size, height)
    x = images.to(torch.float32).mul_(1 / 255)
    # each image meets its V views in one product: rows for all of them at once, then the columns of each
    v, s = crop.count, crop.size
    tall = rows.view(len(images), 1, v * s, height) @ x  # (B, C, V*S, W)
    tall = tall.unflatten(2, (v, s)).transpose(1, 2).reshape(len(images) * v, 3 * s, width)
    views: torch.Tensor = (tall @ columns.mT).unflatten(1, (3, s))
    return views


def _crop_list(images: Sequence[torch.Tensor], crop: Crop, params: ViewParams) -> torch.Tensor:
    views = []
    for image, boxes in zip(images, params.box.long().tolist(), strict=True):
        for left, top, w, h in boxes:
            part = image[None, :, top : top + h, left : left + w].to(torch.float32)
            views.append(F.interpolate(part, (crop.size, crop.size), mode="bilinear", antialias=True)[0])
    x = torch.stack(views).mul_(1 / 255)
    x = torch.where(params.hflip.flatten()[:, None, None, None], x.flip(-1), x)
    return torch.where(params.vflip.flatten()[:, None, None, None], x.flip(-2), x)


def _photometric(x_NCSS: torch.Tensor, recipe: ViewRecipe, params: ViewParams) -> None:
    """Colour jitter, grey, blur, solarize and normalisation, in place, chunk by chunk."""
    mean = torch.tensor(recipe.mean, device=x_NCSS.device)[:, None, None]
    std = torch.tensor(recipe.std, device=x_NCSS.device)[:, None, None]
    flat = {
        name: getattr(params, name).flatten(0, 1)
        for name in ("jitter", "order", "factors", "grey", "sigma", "solarize")
    }
    # views that share an order of operations are neighbours after sorting, so a chunk needs few masked operations
    chunk = max(1, _CHUNK_FLOATS // x_NCSS[0].numel()) if x_NCSS.device.type == "cpu" else len(x_NCSS)
    for start in range(0, len(x_NCSS), chunk):
        part = slice(start, start + chunk)
        x = x_NCSS[part]
        if recipe.jitter > 0:
            _colour_jitter(x, flat["jitter"][part], flat["order"][part], flat["factors"][part])
        if recipe.grey > 0:
            _on_subset(x, flat["grey"][part], lambda y, _: y.copy_(_luma(y).expand_as(y)))
        if recipe.blur > 0:
            sigma = flat["sigma"][part]
            _on_subset(x, sigma > 0, lambda y, rows, sigma=sigma: y.copy_(_blur(y, sigma[rows])))
        if recipe.solarize > 0:
            _on_subset(x, flat["solarize"][part], lambda y, _: y.copy_(torch.where(y >= 128 / 255, 1 - y, y)))
        x.sub_(mean).div_(std)


def _on_subset(x: torch.Tensor, chosen: torch.Tensor, operation) -> None:  # type: ignore[no-untyped-def]
    """Run an in-place operation on the chosen views only."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return
    y = x[rows]
    operation(y, rows)
    x[rows] = y


def _colour_jitter(x: torch.Tensor, chosen: torch.Tensor, order: torch.Tensor, factors: torch.Tensor) -> None:
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return
    y, order, factors = x[rows], order[rows], factors[rows]
    for place in range(4):
        for number, operation in enumerate(_JITTER):
            _on_subset(
                y,
                order[:, place] == number,
                lambda z, at, op=operation, k=number: op(z, factors[at, k].view(-1, 1, 1, 1)),
            )
    x[rows] = y


def _luma(x: torch.Tensor) -> torch.Tensor:
    red, green, blue = x.unbind(-3)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(-3)


def _brightness(x: torch.Tensor, factor: torch.Tensor) -> None:
    x.mul_(factor).clamp_(0, 1)


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> None:
    mean = _luma(x).mean(dim=(-3, -2, -1), keepdim=True)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation(x: torch.Tensor, factor: torch.Tensor) -> None:
    grey = _luma(x).mul_(1 - factor)
    x.mul_(factor).add_(grey).clamp_(0, 1)


def _hue(x: torch.Tensor, shift: torch.Tensor) -> None:
    """Turn the hue by `shift` turns, in HSV.

    With value v, chroma c and hue h in sextants, channel n in (5, 3, 1) for red, green, blue is
    v - c * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6: no conversion table and no branches.
    """
    red, green, blue = x.unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=1e-8)  # grey pixels have no hue; their chroma of 0 removes whatever this gives
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue += 6 * shift[:, 0]
    for channel, offset in ((red, 5), (green, 3), (blue, 1)):
        k = (hue + offset).remainder_(6)
        torch.sub(value, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma), out=channel)


_JITTER = (_brightness, _contrast, _saturation, _hue)


def _blur(x_NCSS: torch.Tensor, sigma_N: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with reflected borders, each view with its own sigma: one matrix per view on rows and columns."""
    size = x_NCSS.shape[-1]
    radius = min(size - 1, int(3 * float(sigma_N.max()) + 0.5) or 1)
    offsets = torch.arange(-radius, radius + 1, device=x_NCSS.device)
    kernel = torch.exp(-0.5 * (offsets / sigma_N[:, None]) ** 2)
    kernel /= kernel.sum(dim=-1, keepdim=True)
    source = (torch.arange(size, device=x_NCSS.device)[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    matrix = torch.zeros(len(sigma_N), size, size, device=x_NCSS.device)
    matrix.scatter_add_(2, source.expand(len(sigma_N), -1, -1), kernel[:, None].expand(-1, size, -1))
    return _apply_separable(x_NCSS, matrix, matrix)
