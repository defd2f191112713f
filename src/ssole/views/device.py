"""Views on an accelerator: all views of a batch at once, by few kernels and without waiting for the host.

Launching a kernel takes longer than processing small views, so arithmetic on the parameters of views would take most of
the time. It is done beforehand: each view has a row with the numbers that its pixels need. Where images have one
size, :class:`EpochRows` has the rows of a whole epoch, and a step only looks up its own. Every view goes through every
operation of the recipe. Crops and blurs are products with dense matrices.

Shape suffixes: B images, V views of a crop group, N = B V views, C channels, H x W image, S side of the view, P = S * S
pixels, F numbers of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ssole.config import ViewRecipe
from ssole.runtime import copy_to
from ssole.views import geometry, photometric
from ssole.views.geometry import ImageBatch
from ssole.views.params import ViewParams, sample_groups

_VIEWS_AT_ONCE = 1 << 16  # of which rows are computed together; temporaries take about 4 kB a view
MAX_TABLE_BYTES = 1 << 30  # bytes of the rows of an epoch; with more, each batch computes its own


class RowParts(NamedTuple):
    """Parameters of N views, by part. Pairs are (vertical, horizontal), in pixels of the image."""

    start: torch.Tensor
    """(N, 2): where the crop begins, or where it ends if it is mirrored."""
    slope: torch.Tensor
    """(N, 2): pixels of the image for each pixel of the view, negative if it is mirrored."""
    reach: torch.Tensor
    """(N, 2): minus the reciprocal of the filter's half-width."""
    middle: torch.Tensor
    """(N, 2): middle of the crop."""
    half: torch.Tensor
    """(N, 2): half of its height and width."""
    transposed: torch.Tensor
    """(N,): 1 for an odd number of quarter turns, else 0."""
    jitter: torch.Tensor
    """(N, 6, C, C): matrices of the slots of :class:`~ssole.views.photometric.Jitter`."""
    contrast: torch.Tensor
    """(N, 6, C): by which a view's mean colour is multiplied in each slot, for the offset that contrast adds."""
    shift: torch.Tensor
    """(N,): of hue, in turns."""
    sigma: torch.Tensor
    """(N,): of the blur, in pixels of the view; 0 for none."""
    grey: torch.Tensor
    """(N, C, C): takes the luma where a view is grey. Used before solarizing alone."""
    solarize: torch.Tensor
    """(N,): 1 where a view is solarized, else 0."""
    matrix: torch.Tensor
    """(N, C, C): normalisation, of the luma where a view is grey."""
    offset: torch.Tensor
    """(N, C): added to it."""

    @staticmethod
    def shapes(channels: int) -> list[tuple[int, ...]]:
        """Shapes of the parts, for a single view."""
        # start, slope, reach, middle, half; transposed, jitter, contrast, shift, sigma, grey, solarize, matrix, offset
        square = (channels, channels)
        pairs: list[tuple[int, ...]] = [(2,)] * 5
        return [*pairs, (), (6, *square), (6, channels), (), (), square, (), square, (channels,)]

    @classmethod
    def from_rows(cls, rows_NF: torch.Tensor, channels: int) -> RowParts:
        """Parts of rows, without a copy."""
        shapes = cls.shapes(channels)
        parts = rows_NF.split([math.prod(shape) for shape in shapes], dim=1)
        return cls(
            *(part.unflatten(1, shape) if shape else part[:, 0] for part, shape in zip(parts, shapes, strict=True))
        )


def rows_of(params: ViewParams, recipe: ViewRecipe, size: int, channels: int) -> torch.Tensor:
    """Rows (N, F), float32, of views with these parameters and this size in pixels."""
    jitter = photometric.jitter_of(params, channels)
    zeros, ones = (make(channels, device=params.box.device) for make in (torch.zeros, torch.ones))
    matrix, offset = photometric.last_normalisation(params, recipe)
    corner, length = params.box[:, :2].flip(1), params.box[:, 2:].flip(1)
    mirrored = torch.stack(geometry.mirrors_of(params), dim=1)
    step = length / size
    parts = RowParts(
        start=torch.where(mirrored, corner + length, corner),
        slope=torch.where(mirrored, -step, step),
        reach=-1 / step.clamp(min=1),
        middle=corner + length / 2,
        half=length / 2,
        transposed=params.turns % 2,
        jitter=jitter.matrix,
        contrast=jitter.contrast,
        shift=jitter.shift,
        sigma=params.sigma,
        grey=photometric.normalisation_of(params.grey, zeros, ones)[0],
        solarize=params.solarize,
        matrix=matrix,
        offset=offset[:, 0].expand(len(params.box), -1),
    )
    return torch.cat([part.to(torch.float32).reshape(len(params.box), -1) for part in parts], dim=1)


class EpochRows:
    """Rows of the views of all images in an epoch, drawn at once by the first batch of each epoch.

    Only on an accelerator, for images of one size, and if they fit: elsewhere each batch draws its own. They stay at
    the same place in memory, so that a CUDA graph may read them.

    Args:
        images: number of images in the data set; None if each batch is to draw its own.
        seed: of the run.
    """

    def __init__(self, recipe: ViewRecipe, images: int | None, channels: int, seed: int) -> None:
        self._recipe, self._images, self._channels, self._seed, self._epoch = recipe, images, channels, seed, -1
        self._size: torch.Size | None = None
        self._tables: list[torch.Tensor] = []
        if images is not None and 4 * images * recipe.views * row_length(channels) > MAX_TABLE_BYTES:
            self._images = None

    def lookup(self, images: ImageBatch, ids: torch.Tensor, epoch: int) -> list[torch.Tensor] | None:
        """Rows (B, V, F) of a batch on an accelerator, for each crop group; None if it is to draw its own."""
        return [table.index_select(0, ids) for table in self._tables] if self.ready(images, epoch) else None

    def ready(self, images: ImageBatch, epoch: int) -> bool:
        """Whether the rows of an epoch are there; missing ones are drawn first. If False, each batch draws its own."""
        if self._images is None or not isinstance(images, torch.Tensor) or images.device.type == "cpu":
            return False
        if self._size is None:
            self._size = images.shape[2:]
        if images.shape[2:] != self._size:
            return False
        if epoch != self._epoch:
            self._draw(epoch, images.device)
        return True

    def _draw(self, epoch: int, on: torch.device) -> None:
        assert self._images is not None
        width, step = row_length(self._channels), max(1, _VIEWS_AT_ONCE // self._recipe.views)
        if not self._tables:
            self._tables = [torch.empty(self._images, crop.count, width, device=on) for crop in self._recipe.crops]
        sizes = copy_to([self._size], on)
        for start in range(0, self._images, step):
            ids = torch.arange(start, min(start + step, self._images), device=on)
            rows = batch_rows(self._recipe, ids, sizes, self._channels, seed=self._seed, epoch=epoch)
            for table, rows_BVF in zip(self._tables, rows, strict=True):
                table[start : start + step] = rows_BVF
        self._epoch = epoch


def row_length(channels: int) -> int:
    """Number F of numbers in a row."""
    return sum(math.prod(shape) for shape in RowParts.shapes(channels))


def batch_rows(
    recipe: ViewRecipe, ids: torch.Tensor, sizes: torch.Tensor, channels: int, *, seed: int, epoch: int
) -> list[torch.Tensor]:
    """Rows (B, V, F) of images, for each crop group. Arguments as of `sample_params`."""
    return [
        rows_of(params, recipe, crop.size, channels).unflatten(0, (len(ids), crop.count))
        for crop, params in sample_groups(recipe, ids, sizes, seed=seed, epoch=epoch)
    ]


def fill_views(images_BCHW: torch.Tensor, rows_BVF: torch.Tensor, recipe: ViewRecipe, out_NCSS: torch.Tensor) -> None:
    """Fill out with the views of a crop group of images uint8 or uint16."""
    channels, size = out_NCSS.shape[1:3]
    parts = RowParts.from_rows(rows_BVF.flatten(0, 1), channels)
    x = _crops(images_BCHW, parts, size)
    if recipe.turn > 0:
        x = torch.where(parts.transposed[:, None, None, None] > 0, x.mT, x)
    x = x.flatten(2)
    if recipe.jitter > 0:
        jitter = photometric.Jitter(parts.jitter, parts.contrast, parts.shift)
        x = photometric.jitter_many(x, jitter, recipe, hue_at=None)
    if recipe.blur > 0:
        blurred = _blurred(x.unflatten(2, (size, size)), parts.sigma, recipe).flatten(2)
        x = torch.where(parts.sigma[:, None, None] > 0, blurred, x)
    if recipe.solarize > 0:
        x = torch.bmm(parts.grey, x)
        x = torch.where(parts.solarize[:, None, None] > 0, photometric.solarize(x), x)
    torch.baddbmm(parts.offset[..., None], parts.matrix, x, out=out_NCSS.flatten(2))


def _crops(images_BCHW: torch.Tensor, parts: RowParts, size: int) -> torch.Tensor:
    """Crops (N, C, S, S) in [0, 1], before the transposition of quarter turns; the filter of `geometry.resize_taps`."""
    images, channels, height, width = images_BCHW.shape
    device, views = images_BCHW.device, len(parts.start) // images
    pixel = torch.arange(0.5, max(height, width), device=device)
    centre_N2S = torch.addcmul(parts.start[..., None], parts.slope[..., None], torch.arange(0.5, size, device=device))
    weight_N2SX = (pixel - centre_N2S[..., None]).abs_().mul_(parts.reach[..., None, None]).add_(1).clamp_(min=0)
    weight_N2SX.mul_(((pixel - parts.middle[..., None]).abs_() < parts.half[..., None])[:, :, None])
    weight_N2SX.div_(weight_N2SX.sum(dim=-1, keepdim=True))
    rows_NSH, columns_NSW = weight_N2SX[:, 0, :, :height], weight_N2SX[:, 1, :, :width]
    x_BVHCW = images_BCHW.transpose(1, 2)[:, None].expand(-1, views, -1, -1, -1)
    x_BVHCW = x_BVHCW.to(torch.float32, memory_format=torch.contiguous_format)
    x_BVHCW.mul_(1 / torch.iinfo(images_BCHW.dtype).max)
    x = torch.bmm(rows_NSH, x_BVHCW.view(-1, height, channels * width))
    x = torch.bmm(x.view(-1, size * channels, width), columns_NSW.mT)
    return x.view(-1, size, channels, size).transpose(1, 2).contiguous()


def _blurred(x_NCSS: torch.Tensor, sigma_N: torch.Tensor, recipe: ViewRecipe) -> torch.Tensor:
    size = x_NCSS.shape[-1]
    taps = photometric.blur_taps(sigma_N, size, recipe)
    matrix_NSS = geometry.matrix_of(taps, size)
    return matrix_NSS[:, None] @ (x_NCSS @ matrix_NSS.mT[:, None])
