"""Separable linear filters: every row and column of the result is a weighted sum of a few rows and columns.

An antialiased resize, with or without a flip, is one, and so is a Gaussian blur; each view has its own. On a CPU,
`embedding_bag` adds up weighted rows of a table at the speed of memory. Columns have their turn after a transpose where
views are large, and in a product with a matrix, mostly zeros, where they are small. Accelerators multiply twice.

Shape suffixes: N views, C channels, H x W source, S side of the result, K taps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Taps(NamedTuple):
    """Which positions of a dimension make up each of the result, and their weights: repeated ones add up."""

    source: torch.Tensor
    """int64 (N, S, K), or (S, K) of a single view."""
    weight: torch.Tensor
    """float32, the same shape."""


def filtered(
    x_NCHW: torch.Tensor, rows: Taps, columns: Taps, *, image_of_N: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 views (N, C, S, S), each of the image of its own number, or of the one that `image_of_N` says.

    Images are float32 on a CPU and of any dtype elsewhere.
    """
    combined = _sums_of_rows if x_NCHW.device.type == "cpu" else _products_of_rows
    x = combined(x_NCHW, rows, image_of_N)
    n, c, s, w = x.shape
    return torch.bmm(x.view(n, c * s, w), _matrix(columns, w).mT).view(n, c, s, -1)


def _products_of_rows(x_NCHW: torch.Tensor, taps: Taps, image_of_N: torch.Tensor | None) -> torch.Tensor:
    x = (x_NCHW if image_of_N is None else x_NCHW.index_select(0, image_of_N)).to(torch.float32)
    out: torch.Tensor = _matrix(taps, x.shape[2])[:, None] @ x
    return out


def _sums_of_rows(x_NCHW: torch.Tensor, taps: Taps, image_of_N: torch.Tensor | None) -> torch.Tensor:
    _, c, h, w = x_NCHW.shape
    image = torch.arange(len(x_NCHW)) if image_of_N is None else image_of_N
    first = h * (c * image[:, None] + torch.arange(c))  # row of each view's channels
    source = (taps.source[:, None] + first[..., None, None]).flatten(0, 2)
    weight = taps.weight[:, None].expand(-1, c, -1, -1).flatten(0, 2)
    return sums_of_rows(x_NCHW.contiguous().view(-1, w), source, weight).view(len(image), c, -1, w)


def sums_of_rows(table_RW: torch.Tensor, source_SK: torch.Tensor, weight_SK: torch.Tensor) -> torch.Tensor:
    """On a CPU, (S, W): sums of K weighted rows each."""
    return F.embedding_bag(source_SK, table_RW, mode="sum", per_sample_weights=weight_SK)


def sums_of_rows_of_channels(x_CHW: torch.Tensor, source_SK: torch.Tensor, weight_SK: torch.Tensor) -> torch.Tensor:
    """On a CPU, (C, S, W), contiguous: the same sums in every channel."""
    c, h, w = x_CHW.shape
    source = (source_SK + torch.arange(0, c * h, h)[:, None, None]).flatten(0, 1)
    return sums_of_rows(x_CHW.contiguous().view(c * h, w), source, weight_SK.repeat(c, 1)).view(c, -1, w)


def _matrix(taps: Taps, extent: int) -> torch.Tensor:
    """(N, S, extent)."""
    n, s, _ = taps.weight.shape
    return taps.weight.new_zeros(n, s, extent).scatter_add_(2, taps.source, taps.weight)
