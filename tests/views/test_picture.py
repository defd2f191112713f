"""Picture of views: the place and the pixels of each part."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ssole.config import PRESETS, Crop, ViewRecipe
from ssole.views import make_views
from ssole.views.picture import picture

IMAGES = torch.randint(0, 256, (3, 3, 40, 60), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_a_row_for_each_image_and_a_column_for_each_view() -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=100), Crop(count=3, size=30)), jitter=0)
    ids = torch.tensor([5, 6, 7])
    sheet = np.asarray(picture(list(IMAGES), ids, recipe=recipe, seed=3, epoch=2))
    assert sheet.shape == (18 + 3 * 104 - 4, 6 * 104 - 4, 3)

    plain = dataclasses.replace(recipe, mean=(0, 0, 0), std=(1, 1, 1))
    large, small = make_views(IMAGES, ids, recipe=plain, seed=3, epoch=2)
    top, left = 18 + 104, 2 * 104  # second image, second view
    shown = torch.from_numpy(sheet[top : top + 100, left : left + 100].copy()).permute(2, 0, 1)
    assert (shown / 255 - large[1, 1]).abs().max() < 1 / 255
    top, left = 18 + 5, 3 * 104 + 5  # first image, first small view: each of its pixels is 3 x 3 on the sheet
    shown = torch.from_numpy(sheet[top : top + 90 : 3, left : left + 90 : 3].copy()).permute(2, 0, 1)
    assert (shown / 255 - small[0, 0]).abs().max() < 1 / 255


def test_images_of_both_depths_are_drawn_together() -> None:
    deep = [(image.int() * 257).to(torch.uint16) for image in IMAGES]
    sheets = [picture(images, torch.arange(3), recipe=ViewRecipe()) for images in (deep, [IMAGES[0], *deep[1:]])]
    assert np.allclose(*map(np.asarray, sheets), atol=1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_drawn(name: str) -> None:
    channels = {"grey": 1, "channels": 5}.get(name, 3)
    images = [torch.randint(0, 60000, (channels, 50 + i, 40), dtype=torch.uint16) for i in range(2)]
    recipe = PRESETS[name]
    sheet = picture(images, torch.arange(2), recipe=recipe)
    side = max(96, recipe.image_size)
    assert sheet.size == ((1 + recipe.views) * (side + 4) - 4, 18 + 2 * (side + 4) - 4)
