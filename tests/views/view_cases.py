"""Recipes, parameters and conversions that the tests of views share."""

from __future__ import annotations

import torch

from ssole.config import Crop, ViewRecipe
from ssole.views.params import ViewParams, sample_params

PLAIN = ViewRecipe(hflip=0, jitter=0, grey=0, mean=(0, 0, 0), std=(1, 1, 1))
FULL = ViewRecipe(crops=(Crop(count=3, size=24),), vflip=0.3, turn=0.75, blur=0.5)


def params_of(recipe: ViewRecipe, ids: torch.Tensor, height: int, width: int, *, seed: int = 0) -> ViewParams:
    views = torch.arange(recipe.crops[0].count)
    return sample_params(recipe, recipe.crops[0], ids, views, torch.tensor([[height, width]]), seed=seed, epoch=0)


def as_float(photos: torch.Tensor) -> torch.Tensor:
    return photos.float() / 255
