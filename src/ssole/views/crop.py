"""Crop, antialiased resize, flips and quarter turns of many views.

Geometry is linear and separable: one small matrix per view for the columns and one for the rows do all of it in two
batched products. Where images are large and the CPU computes, those matrices are mostly zeros, and torch's own
antialiased resize of each crop is quicker.

Shape suffixes: N views, C channels, S side of the crop, H x W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F

from ssole.views.recipe import ViewParams

Images: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""uint8 or uint16 (B, C, H, W), or B tensors (C, h, w) of different sizes."""

# Pixels of an image up to which products with dense matrices beat torch's resize on a CPU.
_DENSE_PIXELS = 96 * 96


def crop_views(images: Images, image_of_N: torch.Tensor, params: ViewParams, size: int) -> torch.Tensor:
    """Crops as float32 in [0, 1], (N, C, S, S): view n is of image `image_of_N[n]`."""
    # a quarter turn is the transpose of a mirrored image, half a turn is both mirrors
    hflip = params.hflip ^ ((params.turns == 1) | (params.turns == 2))
    vflip = params.vflip ^ ((params.turns == 2) | (params.turns == 3))
    if isinstance(images, torch.Tensor) and (images.device.type != "cpu" or images[0, 0].numel() <= _DENSE_PIXELS):
        return _by_products(images.index_select(0, image_of_N), params.box, hflip, vflip, size)
    return _one_by_one(images, image_of_N, params.box, hflip, vflip, size)


def _by_products(
    images_NCHW: torch.Tensor, box: torch.Tensor, hflip: torch.Tensor, vflip: torch.Tensor, size: int
) -> torch.Tensor:
    left, top, width, height = box.unbind(-1)
    columns = resize_weights(left, width, hflip, size, images_NCHW.shape[3])
    rows = resize_weights(top, height, vflip, size, images_NCHW.shape[2])
    columns *= 1 / torch.iinfo(images_NCHW.dtype).max
    return apply_separable(images_NCHW.to(torch.float32), rows, columns)


def resize_weights(
    start: torch.Tensor, length: torch.Tensor, flip: torch.Tensor, size: int, extent: int
) -> torch.Tensor:
    """Weights (N, size, extent) of an antialiased linear resize of pixels [start, start + length) to `size`.

    A triangle filter whose half-width grows with the scale when shrinking, restricted to the crop and normalised: what
    Pillow's and torchvision's antialiased bilinear resize computes.
    """
    out = torch.arange(size, device=start.device, dtype=torch.float32)
    out = torch.where(flip[:, None], size - 1 - out, out)
    step = (length / size)[:, None]
    centre = start[:, None] + (out + 0.5) * step
    pixel = torch.arange(extent, device=start.device, dtype=torch.float32) + 0.5
    slope = -1 / step.clamp(min=1)
    weights = (pixel - centre[..., None]).abs_().mul_(slope[..., None]).add_(1).clamp_(min=0)
    inside = ((pixel > start[:, None]) & (pixel < (start + length)[:, None])).to(torch.float32)
    weights *= inside[:, None, :]
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def apply_separable(x_NCHW: torch.Tensor, rows_NSH: torch.Tensor, columns_NSW: torch.Tensor) -> torch.Tensor:
    """rows @ x @ columns^T for every view and channel: (N, C, S, S)."""
    n, c, h, w = x_NCHW.shape
    x = torch.bmm(x_NCHW.reshape(n, c * h, w), columns_NSW.mT)
    out: torch.Tensor = rows_NSH[:, None] @ x.unflatten(1, (c, h))
    return out


def _one_by_one(
    images: Images, image_of_N: torch.Tensor, box: torch.Tensor, hflip: torch.Tensor, vflip: torch.Tensor, size: int
) -> torch.Tensor:
    views = []
    choices = zip(image_of_N.tolist(), box.long().tolist(), hflip.tolist(), vflip.tolist(), strict=True)
    for image, (left, top, width, height), mirrored, upside_down in choices:
        part = images[image][None, :, top : top + height, left : left + width]
        if dims := [-1] * mirrored + [-2] * upside_down:
            part = part.flip(dims)
        x = part.to(torch.float32).mul_(1 / torch.iinfo(part.dtype).max)
        views.append(F.interpolate(x, (size, size), mode="bilinear", antialias=True))
    return views[0] if len(views) == 1 else torch.cat(views)
