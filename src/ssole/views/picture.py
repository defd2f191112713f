"""Picture of views: one row per image, which shows the image and then its views."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ssole.config import ViewRecipe
from ssole.views.augment import make_views

if TYPE_CHECKING:
    from PIL import Image

_GAP = 4  # pixels between pictures
_HEADER = 18  # pixels of the line of names
_PAPER = 224  # light grey, so that white views have a visible edge
_SMALLEST = 96  # pixels; smaller crops are enlarged to this, pixel by pixel


def picture(
    images: Sequence[torch.Tensor], ids: torch.Tensor, *, recipe: ViewRecipe, seed: int = 0, epoch: int = 0
) -> Image.Image:
    """Picture of images and of the views that :func:`~ssole.make_views` makes of them.

    Args:
        images: B tensors uint8 or uint16 (C, h, w). The first three channels are shown, or one if there are fewer.
        ids: int64 (B,), the index of each image in its data set.
        recipe: the settings of the views. Its mean and std are not used.

    Returns:
        An RGB picture with B rows: the image, and its views in the order of crop groups.
    """
    channels = images[0].shape[0]
    plain = dataclasses.replace(recipe, mean=(0.0,) * channels, std=(1.0,) * channels)
    # one by one, because they may be of 8 and of 16 bits
    pairs = zip(images, ids.split(1), strict=True)
    made = [make_views([image], one, recipe=plain, seed=seed, epoch=epoch) for image, one in pairs]
    groups = [torch.cat(views) for views in zip(*made, strict=True)]
    side = max(_SMALLEST, max(crop.size for crop in recipe.crops))
    columns = [[_fit_image(image, side) for image in images]]
    names = ["image"]
    for crop, views_BVCSS in zip(recipe.crops, groups, strict=True):
        for view_BCSS in views_BVCSS.unbind(1):
            columns.append(list(view_BCSS))
            names.append(f"{crop.size} px, view {len(names)}")
    return _draw_sheet(columns, names, side)


def _fit_image(image: torch.Tensor, side: int) -> torch.Tensor:
    """Whole image scaled to fit into a square, with its proportions: (C, h, w) in [0, 1]."""
    x = image[None].to(torch.float32) / torch.iinfo(image.dtype).max
    scale = side / max(x.shape[2:])
    height, width = (max(1, round(length * scale)) for length in x.shape[2:])
    mode = {"mode": "bilinear", "antialias": True} if scale < 1 else {"mode": "nearest"}
    return F.interpolate(x, (height, width), **mode)[0]


def _draw_sheet(columns: list[list[torch.Tensor]], names: list[str], side: int) -> Image.Image:
    """Sheet with the pictures of each column, (C, h, w) in [0, 1], in the middle of squares, below its name."""
    from PIL import Image, ImageDraw, ImageOps

    step = side + _GAP
    sheet = Image.new("RGB", (len(columns) * step - _GAP, _HEADER + len(columns[0]) * step - _GAP), (_PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    for across, (column, name) in enumerate(zip(columns, names, strict=True)):
        draw.text((across * step + 2, 2), name, fill="black")
        for down, x in enumerate(column):
            x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
            picture = Image.fromarray(x.permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy())
            factor = max(1, side // max(picture.size))  # a whole one, so that the pixels of small views stay sharp
            picture = ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
            left, top = (side - picture.width) // 2, (side - picture.height) // 2
            sheet.paste(picture, (across * step + left, _HEADER + down * step + top))
    return sheet
