"""Images for people to look at, and their thumbnails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssole.data.base import Source, evenly_spaced
from ssole.data.decode import decode
from ssole.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def images_to_show(
    source: Source, count: int, *, shrink_to: int, channels: int | None
) -> tuple[list[torch.Tensor], torch.Tensor, list[DataError]]:
    """At most `count` evenly spaced images (C, h, w) of a source, decoded as in training, and their indices (K,).

    Those that cannot be read are left out; the third value has their errors.
    """
    images, indices, errors = [], [], []
    for i in evenly_spaced(len(source), count):
        try:
            images.append(decode(source.read(i), where=source.id(i), shrink_to=shrink_to, channels=channels))
            indices.append(i)
        except DataError as error:
            errors.append(error)
    return images, torch.tensor(indices), errors


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
