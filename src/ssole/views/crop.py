"""Crop, antialiased resize, flips and quarter turns of many views.

Shape suffixes: N views, C channels, S side of the crop, K taps, H x W image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

from ssole.views.filters import Taps, filtered, sums_of_rows, sums_of_rows_of_channels
from ssole.views.recipe import ViewParams

Images: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""uint8 or uint16 (B, C, H, W), or B tensors (C, h, w) of different sizes."""

_SMALL = 96  # pixels of a side up to which a CPU filters many whole images at once, and not crop after crop
TAPS_FLOATS = 20  # a view and pixel of the longest side, while `crop_taps` works
_WIDTH = 32  # crops are padded to a multiple: `embedding_bag` generates code for every width that it meets
_CHANNELS_TOGETHER = 1 << 22  # pixels of a crop, all channels; of larger ones they are filtered one by one


class CropTaps(NamedTuple):
    """How crops become views: sums of rows, then of columns, both counted from the corner of the crop."""

    rows: Taps
    columns: Taps

    def of(self, views: slice) -> CropTaps:
        """Those of some of the views."""
        return CropTaps(*(Taps(source[views], weight[views]) for source, weight in (self.rows, self.columns)))


def crop_taps(images: Images, params: ViewParams, size: int) -> CropTaps:
    """The taps of all views, values of the images' dtype becoming [0, 1]."""
    # a quarter turn is the transpose of a mirrored image, half a turn is both mirrors
    hflip = params.hflip ^ ((params.turns == 1) | (params.turns == 2))
    vflip = params.vflip ^ ((params.turns == 2) | (params.turns == 3))
    # both dimensions in one go: for small views, calls cost more than what they compute
    lengths, flips = params.box[:, 2:].flip(1).T.flatten(), torch.cat([vflip, hflip])
    source, weight = resize_taps(lengths, flips, size, longest_side(images))
    rows, columns = (Taps(*both) for both in zip(source.chunk(2), weight.chunk(2), strict=True))
    columns.weight.mul_(1 / torch.iinfo(images[0].dtype).max)
    return CropTaps(rows, columns)


def resize_taps(length: torch.Tensor, flip: torch.Tensor, size: int, most: int) -> Taps:
    """Taps of an antialiased linear resize of `length` pixels to `size`.

    A triangle filter whose half-width grows with the scale when shrinking, normalised: what Pillow's and torchvision's
    antialiased bilinear resize computes.

    Args:
        length: float32 (N,), whole numbers up to `most`.
        flip: bool (N,), whether to mirror the result.
    """
    out = torch.arange(size, device=length.device, dtype=torch.float32)
    out = torch.where(flip[:, None], size - 1 - out, out)
    step = (length / size)[:, None]
    centre = (out + 0.5) * step
    half = step.clamp(min=1)
    # of these pixels, all that are nearer than `half`; the others get a weight of 0
    first = (centre - half + 0.5).floor_().clamp_(min=0)
    source = first[..., None] + torch.arange(_taps(most, size), device=length.device)
    weight = (source + 0.5 - centre[..., None]).abs_().div_(-half[..., None]).add_(1).clamp_(min=0)
    last = length[:, None, None] - 1
    weight *= source <= last
    weight /= weight.sum(dim=-1, keepdim=True)
    return Taps(torch.minimum(source, last).long(), weight)


def _taps(length: int, size: int) -> int:
    """The most pixels that are nearer to a point than the half-width of a filter from `length` to `size`."""
    return math.ceil(2 * max(1, length / size))


def longest_side(images: Images) -> int:
    """Pixels, of all images."""
    one_size = images[:1] if isinstance(images, torch.Tensor) else images
    return max(side for image in one_size for side in image.shape[-2:])


def filters_whole(images: Images) -> bool:
    """Whether a CPU filters whole images, many at once, and not crop after crop: small ones."""
    return images[0].device.type == "cpu" and longest_side(images) <= _SMALL


def crop_views(sources: Images, image_of_N: torch.Tensor, box_N4: torch.Tensor, taps: CropTaps) -> torch.Tensor:
    """Crops as float32 in [0, 1], (N, C, S, S): view n is of `sources[image_of_N[n]]`.

    Sources are one float32 tensor where a CPU filters them whole, and images as they are elsewhere.
    """
    if isinstance(sources, torch.Tensor) and (sources.device.type != "cpu" or sources.dtype == torch.float32):
        left, top = box_N4.long()[:, :2, None, None].unbind(1)
        rows, columns = (Taps(t.source + start, t.weight) for t, start in zip(taps, (top, left), strict=True))
        return filtered(sources, rows, columns, image_of_N=image_of_N)
    choices = zip(image_of_N.tolist(), box_N4.long().tolist(), strict=True)
    return torch.stack([crop_view(sources[image], box, taps, n).mT for n, (image, box) in enumerate(choices)])


def crop_view(image_CHW: torch.Tensor, box: Sequence[int], taps: CropTaps, n: int) -> torch.Tensor:
    """On a CPU, the transpose (C, S, S) of the crop that is view n in `taps`; contiguous."""
    left, top, width, height = box
    part = image_CHW[:, top : top + height, left : left + width]
    channels, size = len(part), taps.rows.weight.shape[1]
    if part.numel() > _CHANNELS_TOGETHER and channels > 1:
        return torch.cat([crop_view(channel, box, taps, n) for channel in image_CHW.split(1)])
    # the channels of a row side by side: their rows have the same taps
    x_HCW = torch.empty(height, channels, -(-width // _WIDTH) * _WIDTH)
    x_HCW[..., :width] = part.transpose(0, 1)
    x_HCW[..., width:] = 0
    x_SCW = sums_of_rows(x_HCW.flatten(1), *_of_view(taps.rows, n, height)).view(size, channels, -1)
    return sums_of_rows_of_channels(x_SCW.permute(1, 2, 0), *_of_view(taps.columns, n, width))


def _of_view(taps: Taps, n: int, length: int) -> Taps:
    """Those of a single view (S, K), without the ones that only larger crops have."""
    most = _taps(length, taps.weight.shape[1])
    return Taps(taps.source[n, :, :most], taps.weight[n, :, :most])
