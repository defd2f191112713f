"""Crops with antialiased resize, flips and quarter turns, as separable filters.

In a separable filter, each row and column of the result is a weighted sum of a few rows and columns of the source. An
antialiased resize is such a filter, with or without a flip, and so is a Gaussian blur. Each view has its own weights.

A CPU sums weighted rows with `embedding_bag`, at the speed of memory. Large views are transposed and summed again for
their columns. The columns of small views are a product with a matrix, which is faster there although most of the matrix
is zero. (Accelerators multiply both times: :mod:`ssole.views.device`.)

Shape suffixes: N views, C channels, H x W source, S side of the view, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from ssole.views.params import ViewParams

ImageBatch: TypeAlias = torch.Tensor | Sequence[torch.Tensor]
"""Decoded images: uint8 or uint16 (B, C, H, W), or B tensors (C, h, w) of different sizes."""
Operation: TypeAlias = Callable[[torch.Tensor, torch.Tensor | slice], torch.Tensor]
"""Function of some views and their rows that gives other views."""

TAPS_FLOATS = 20  # memory of `crop_taps` while it works, in floats per view and pixel of the longest side
_SMALL = 96  # pixels; images with no longer side are filtered whole and many at once on a CPU
_WIDTH = 32  # rows are padded to a multiple of this: `embedding_bag` generates code for every width it meets
_CHANNELS_TOGETHER = 1 << 22  # values of a source; the channels of larger ones are filtered one by one


class Taps(NamedTuple):
    """Source positions and weights of each row (or column) of a filter's result. Repeated positions add up."""

    source: torch.Tensor
    """int64 (N, S, K)."""
    weight: torch.Tensor
    """float32 (N, S, K)."""

    def select(self, views: slice, taps: slice = slice(None)) -> Taps:
        """The same for some of the views, with some of the K taps."""
        return Taps(self.source[views, :, taps], self.weight[views, :, taps])


def image_sizes(images: ImageBatch) -> list[torch.Size]:
    """Heights and widths: a single pair for a tensor, one per image for a list."""
    return [image.shape[-2:] for image in (images[:1] if isinstance(images, torch.Tensor) else images)]


def longest_side(images: ImageBatch) -> int:
    """Longest height or width of all images, in pixels."""
    return max(max(size) for size in image_sizes(images))


def filters_whole(images: ImageBatch) -> bool:
    """Whether a CPU filters these images whole and many at once, as it does for small ones, or crop by crop."""
    return longest_side(images) <= _SMALL


def mirrors_of(params: ViewParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the rows, and whether the columns of each crop are in reverse order, before any transposition."""
    # A quarter turn is the transpose of a mirrored image. Half a turn is both mirrors.
    columns = params.hflip ^ ((params.turns == 1) | (params.turns == 2))
    return params.vflip ^ ((params.turns == 2) | (params.turns == 3)), columns


def crop_taps(images: ImageBatch, params: ViewParams, size: int) -> tuple[Taps, Taps]:
    """Taps of the rows and of the columns of all crops, counted from a crop's corner. They also scale to [0, 1]."""
    # Both dimensions in one go: for small views, the calls cost more than the arithmetic.
    lengths, mirrored = params.box[:, 2:].flip(1).T.flatten(), torch.cat(mirrors_of(params))
    both = resize_taps(lengths, mirrored, size, longest_side(images))
    rows, columns = both.select(slice(0, len(params.box))), both.select(slice(len(params.box), None))
    columns.weight.mul_(1 / torch.iinfo(images[0].dtype).max)
    return rows, columns


def resize_taps(length: torch.Tensor, flip: torch.Tensor, size: int, most: int) -> Taps:
    """Taps of an antialiased linear resize from `length` to `size` pixels.

    A normalised triangle filter, whose half-width grows with the scale when shrinking. It is what the antialiased
    bilinear resizes of Pillow and torchvision compute.

    Args:
        length: float32 (N,), whole numbers up to `most`.
        flip: bool (N,), whether to mirror the result.
    """
    out = torch.arange(size, device=length.device, dtype=torch.float32)
    out = torch.where(flip[:, None], size - 1 - out, out)
    step = (length / size)[:, None]
    centre = (out + 0.5) * step
    half = step.clamp(min=1)
    # The first of the pixels nearer than `half`. Those after the last one get a weight of 0.
    first = (centre - half + 0.5).floor_().clamp_(min=0)
    source = first[..., None] + torch.arange(_most_taps(most, size), device=length.device)
    weight = (source + 0.5 - centre[..., None]).abs_().div_(-half[..., None]).add_(1).clamp_(min=0)
    last = length[:, None, None] - 1
    weight *= source <= last
    weight /= weight.sum(dim=-1, keepdim=True)
    return Taps(torch.minimum(source, last).long(), weight)


def _most_taps(length: int, size: int) -> int:
    """Largest number of pixels within the half-width of a filter from `length` to `size`, on both sides of a point."""
    return math.ceil(2 * max(1, length / size))


def crop_many(
    sources: ImageBatch, image_of_N: torch.Tensor, box_N4: torch.Tensor, rows: Taps, columns: Taps
) -> torch.Tensor:
    """Crops as float32 (N, C, S, S) in [0, 1], before the transposition of quarter turns.

    View n is of `sources[image_of_N[n]]`. Sources are a float32 tensor where whole images are filtered, and the images
    as they are elsewhere.
    """
    if isinstance(sources, torch.Tensor) and sources.dtype == torch.float32:
        left, top = box_N4.long()[:, :2, None, None].unbind(1)
        rows, columns = Taps(rows.source + top, rows.weight), Taps(columns.source + left, columns.weight)
        return filter_many(sources, rows, columns, image_of_N=image_of_N)
    choices = zip(image_of_N.tolist(), box_N4.long().tolist(), strict=True)
    return torch.stack([crop_one(sources[image], box, rows, columns, n).mT for n, (image, box) in enumerate(choices)])


def crop_one(image_CHW: torch.Tensor, box: Sequence[int], rows: Taps, columns: Taps, n: int) -> torch.Tensor:
    """Transpose (C, S, S) of the crop of view n, contiguous, on a CPU."""
    left, top, width, height = box
    part, size, view = image_CHW[:, top : top + height, left : left + width], rows.weight.shape[1], slice(n, n + 1)
    # without the taps that only larger crops need
    rows = rows.select(view, slice(_most_taps(height, size)))
    columns = columns.select(view, slice(_most_taps(width, size)))
    return filter_one(part, rows, columns)


def filter_many(
    x_NCHW: torch.Tensor, rows: Taps, columns: Taps, *, image_of_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Filtered views, float32 (N, C, S, S). View n is of image n, or of image `image_of_N[n]`."""
    x = _sums_of_rows(x_NCHW, rows, image_of_N)
    n, c, s, w = x.shape
    return torch.bmm(x.view(n, c * s, w), matrix_of(columns, w).mT).view(n, c, s, -1)


def filter_one(x_CHW: torch.Tensor, rows: Taps, columns: Taps) -> torch.Tensor:
    """Transpose (C, S, S) of a single filtered view, contiguous, float32, on a CPU. The taps have N = 1."""
    channels, height, width = x_CHW.shape
    if x_CHW.numel() > _CHANNELS_TOGETHER and channels > 1:
        return torch.cat([filter_one(channel, rows, columns) for channel in x_CHW.split(1)])
    # The channels of a row lie side by side, so that one sum serves them all: they have the same taps.
    x_HCW = torch.empty(height, channels, -(-width // _WIDTH) * _WIDTH)
    x_HCW[..., :width] = x_CHW.transpose(0, 1)
    x_HCW[..., width:] = 0
    x_SCW = _sums_of_rows(x_HCW.view(1, 1, height, -1), rows).view(-1, channels, x_HCW.shape[2])
    return _sums_of_rows(x_SCW.permute(1, 2, 0)[None], columns)[0]


def _sums_of_rows(x_NCHW: torch.Tensor, taps: Taps, image_of_N: torch.Tensor | None = None) -> torch.Tensor:
    n, c, h, w = x_NCHW.shape
    first_NC = torch.arange(0, n * c * h, h).view(n, c)  # row of the table at which each channel begins
    first_NC = first_NC if image_of_N is None else first_NC[image_of_N]
    source = (taps.source[:, None] + first_NC[..., None, None]).flatten(0, 2)
    weight = taps.weight[:, None].expand(-1, c, -1, -1).flatten(0, 2)
    table = x_NCHW.contiguous().view(-1, w)
    return F.embedding_bag(source, table, mode="sum", per_sample_weights=weight).view(len(first_NC), c, -1, w)


def matrix_of(taps: Taps, extent: int) -> torch.Tensor:
    """Dense weights (N, S, extent)."""
    n, s, _ = taps.weight.shape
    return taps.weight.new_zeros(n, s, extent).scatter_add_(2, taps.source, taps.weight)


def on_chosen(x: torch.Tensor, chosen: torch.Tensor, operation: Operation) -> torch.Tensor:
    """x with the chosen views replaced by operation(views, their rows). May overwrite x."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(x):
        return operation(x, slice(None))
    if len(rows):
        x[rows] = operation(x[rows], rows)
    return x
