"""Thumbnails of decoded images, for people to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL import Image


def thumbnail(image: torch.Tensor, side: int) -> Image.Image:
    """Picture of a decoded image (C, h, w), uint8 or uint16, that fits into a square of `side` pixels.

    Three channels are shown, or one if there are fewer. Images smaller than the square stay as they are.
    """
    from PIL import Image

    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if shown.dtype != torch.uint8:
        shown = (shown.to(torch.int32) >> 8).to(torch.uint8)
    picture = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=None)
    return picture
