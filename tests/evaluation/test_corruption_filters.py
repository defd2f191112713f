"""Blurs and weather: SciPy's Gaussian, pixels that only change places, flakes by themselves, clouds without a seam."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ssole.evaluation.corruption_filters import (
    Draws,
    defocus_blur,
    frost,
    glass_blur,
    ice,
    motion_blur,
    plasma,
    smoothed,
    snow,
    trail,
)


def point(side: int = 33) -> torch.Tensor:
    made = torch.zeros(1, 1, side, side, dtype=torch.float64)
    made[..., side // 2, side // 2] = 1
    return made


def test_scipy_smooths_the_same() -> None:
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.5, 1.0, 2.5):
        expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=math.ceil(4 * sigma))
        assert np.allclose(smoothed(images, sigma).numpy(), expected, atol=1e-12)
    assert torch.equal(smoothed(images, 0.0), images)


def test_a_disc() -> None:
    disc = defocus_blur(point(), (1.0, 0.2), Draws([0]))  # radius 1: five pixels, nearly sharp at the edge
    assert float(disc.sum()) == pytest.approx(1, abs=1e-6)
    assert float(disc[0, 0, 16, 16]) == pytest.approx(0.2, abs=0.01)
    assert torch.allclose(disc, disc.transpose(2, 3))


def test_a_trail_is_half_a_gaussian_in_its_direction() -> None:
    angles = torch.tensor([0.0, math.pi / 2, math.pi / 4])
    made = trail(point(32).expand(3, -1, -1, -1), 6, 1.5, angles)[:, 0]
    weights = np.exp(-(np.arange(7) ** 2) / (2 * 1.5**2))
    assert torch.allclose(made.sum((1, 2)), torch.ones(3, dtype=torch.float64), atol=1e-6)
    # a pixel sees what lies to its right, so a point leaves its trail to the left; below, above; across, both
    assert np.allclose(made[0, 16, 10:17].flip(0).numpy(), weights / weights.sum(), atol=1e-4)
    assert np.allclose(made[1, 10:17, 16].flip(0).numpy(), weights / weights.sum(), atol=1e-4)
    assert made[0].count_nonzero() == made[1].count_nonzero() == 7
    assert torch.equal(made[2].nonzero()[:, 0], made[2].nonzero()[:, 1])


def test_motion_stays_within_its_angles() -> None:
    made = motion_blur(point().expand(50, -1, -1, -1), (9, 2.5), Draws(range(50)))[:, 0]
    rows, columns = made.sum(0).nonzero().T - 16
    assert (columns <= 0).all()
    assert (rows.abs() <= -columns).all()
    assert rows.min() < -3
    assert rows.max() > 3


def test_glass_only_moves_pixels_and_all_channels_together() -> None:
    side = 32
    image = torch.arange(side * side, dtype=torch.float64).view(1, 1, side, side).repeat(2, 2, 1, 1)
    image[:, 1] *= -1
    made = glass_blur(image, (0.01, 1, 1), Draws([0, 1]))  # a Gaussian so narrow that it changes nothing
    assert torch.equal(made[:, 0], -made[:, 1])
    assert not torch.equal(made[0], made[1])
    for one in made[:, 0]:
        assert one.flatten().sort().values.tolist() == list(range(side * side))
        assert torch.equal(one[0], image[0, 0, 0])  # the first row and column have no partner before them
        assert torch.equal(one[:, 0], image[0, 0, :, 0])
        assert float((one != image[0, 0]).double().mean()) > 0.5


# Weather


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
