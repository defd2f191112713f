"""Crops against torchvision's, at the same parameters."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torchvision.transforms.v2 import functional as tv
from view_cases import PLAIN, as_float, params_of

from ssole.config import Crop
from ssole.views import augment, geometry, make_views
from ssole.views.params import ViewParams


def torchvisions_crop(image: torch.Tensor, params: ViewParams, n: int, size: int) -> torch.Tensor:
    left, top, width, height = (int(value) for value in params.box[n])
    view = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    view = view.flip(-1) if params.hflip[n] else view
    view = view.flip(-2) if params.vflip[n] else view
    return view.rot90(int(params.turns[n]), (-2, -1))


@pytest.mark.parametrize("size", [8, 16, 64, 256])
def test_crops_are_torchvisions_antialiased_resized_crops(photos: torch.Tensor, size: int) -> None:
    """Views from 8 times smaller than the photograph to 4 times larger, and much larger for small crops."""
    recipe = dataclasses.replace(
        PLAIN, crops=(Crop(count=4, size=size, scale=(0.05, 1.0)),), hflip=0.5, vflip=0.5, turn=0.75
    )
    ids = torch.arange(len(photos))
    (views,) = make_views(photos, ids, recipe=recipe, seed=0, epoch=0)
    (listed,) = make_views(list(photos), ids, recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, ids, 64, 80)
    assert params.turns.unique().tolist() == [0, 1, 2, 3]
    for row, (image, view) in enumerate(itertools.product(range(len(photos)), range(4))):
        expected = torchvisions_crop(as_float(photos[image]), params, row, size)
        for mine in (views, listed):
            torch.testing.assert_close(mine[image, view], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("one_by_one_from", [0, 1 << 40])
@pytest.mark.parametrize("size", [12, 100, 400])
def test_crops_of_large_images_are_torchvisions_too(
    size: int, one_by_one_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filtered crop by crop, with all channels together or each alone, and also against torchvision on uint8."""
    from sklearn.datasets import load_sample_image

    monkeypatch.setattr(augment, "_ONE_BY_ONE", one_by_one_from)
    monkeypatch.setattr(geometry, "_CHANNELS_TOGETHER", 350_000)
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    recipe = dataclasses.replace(
        PLAIN, crops=(Crop(count=8, size=size, scale=(0.05, 1.0)),), hflip=0.5, vflip=0.5, turn=0.75
    )
    (views,) = make_views(image, torch.tensor([3]), recipe=recipe, seed=0, epoch=0)
    params = params_of(recipe, torch.tensor([3]), 427, 640)
    pixels = params.box[:, 2] * params.box[:, 3] * 3
    assert pixels.min() < 350_000 < pixels.max()
    for n, view in enumerate(views[0]):
        exact = torchvisions_crop(as_float(image[0]), params, n, size)
        torch.testing.assert_close(view, exact, atol=1e-4, rtol=0)
        assert (view - as_float(torchvisions_crop(image[0], params, n, size))).abs().mean() < 2 / 255
