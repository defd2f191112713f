"""Weather: flakes and ice by themselves, clouds without a seam."""

from __future__ import annotations

import pytest
import torch

from ssole.evaluation.blurs import Draws
from ssole.evaluation.weather import frost, ice, plasma, snow


def test_snow_falls_both_ways_and_only_brightens() -> None:
    black = torch.zeros(4, 3, 32, 32)
    layer = snow(black, (0.1, 0.2, 1.0, 0.5, 10, 4, 1.0), Draws(range(4)))
    assert torch.allclose(layer, layer.rot90(2, (2, 3)))
    assert torch.equal(layer[:, 0], layer[:, 2])
    assert float(layer.min()) == 0 < float(layer.max())
    down, across = ((layer - layer.roll(1, axis)).abs().mean() for axis in (2, 3))
    assert down < across  # streaks are upright
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (snow(image, (0.1, 0.2, 1.0, 0.6, 8, 3, 0.9), Draws(range(4))) >= image - 1e-6).all()


def test_whitening_without_flakes() -> None:
    image = torch.tensor([0.2, 0.6, 0.4]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    made = snow(image, (0.0, 0.0, 1.0, 0.5, 8, 3, 0.9), Draws([0]))
    white = 1.5 * (0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4) + 0.5
    assert torch.allclose(made, 0.9 * image + 0.1 * white)
    grey = snow(image[:, :1], (0.0, 0.0, 1.0, 0.5, 8, 3, 0.9), Draws([0]))
    assert float(grey[0, 0, 0, 0]) == pytest.approx(0.9 * 0.2 + 0.1 * 0.8)


@pytest.mark.parametrize("side", [20, 32, 224])
def test_ice_is_bluish_white_and_differs(side: int) -> None:
    layer = ice(side, Draws([0, 1]))
    assert layer.shape == (2, 3, side, side)
    assert 0 <= float(layer.min()) <= float(layer.max()) <= 1
    assert (layer[:, 2] > layer[:, 0]).all()
    assert 0.35 < float(layer.mean()) < 0.65
    assert float(layer.std()) > 0.1
    assert not torch.equal(layer[0], layer[1])


def test_frost_is_a_sum_of_image_and_ice() -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer = ice(32, Draws([5, 6]))
    assert torch.allclose(frost(image, (0.75, 0.45), Draws([5, 6])), 0.75 * image + 0.45 * layer)
    grey = frost(image[:, :1], (0.75, 0.45), Draws([5, 6]))
    assert torch.allclose(grey, 0.75 * image[:, :1] + 0.45 * layer.mean(1, keepdim=True))


def test_clouds_continue_across_their_edges() -> None:
    cloud = plasma(64, 3.0, Draws([0, 1]))
    assert cloud.amin((1, 2)).tolist() == [0, 0]
    assert cloud.amax((1, 2)).tolist() == [1, 1]
    steps = (cloud - cloud.roll(1, 2)).abs().mean((0, 1))
    assert float(steps[0]) < 3 * float(steps[1:].mean())  # no jump where the last column meets the first
